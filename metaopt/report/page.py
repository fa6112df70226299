"""A page of headings, texts, tables, figures and verbatim texts, as Markdown and as HTML."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from metaopt.report.table import Table


@dataclass(frozen=True)
class Figure:
    """A picture in a page; `path` is relative to the page."""

    path: str
    caption: str


@dataclass(frozen=True)
class Verbatim:
    """A text shown as it is."""

    text: str


@dataclass(frozen=True)
class Heading:
    """The title of a section."""

    text: str


Block = Figure | Table | Verbatim | Heading | str


def markdown(title: str, blocks: Sequence[Block]) -> str:
    """Return the page as Markdown."""
    return "\n\n".join([f"# {_plain(title)}", *(_markdown(block) for block in blocks)]) + "\n"


def page(title: str, blocks: Sequence[Block], folder: Path) -> str:
    """Return the page as HTML that needs no other file: figures are read from `folder`."""
    body = "\n".join(_html(block, folder) for block in blocks)
    name = html.escape(title)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n{_POLICY}\n'
        f"<title>{name}</title>\n<style>{_STYLE}</style>\n</head>\n"
        f"<body>\n<h1>{name}</h1>\n{body}\n</body>\n</html>\n"
    )


def _markdown(block: Block) -> str:
    match block:
        case Heading(text):
            return f"## {_plain(text)}"
        case Table():
            return block.markdown(_plain)
        case Verbatim(text):
            fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
            return f"{fence}text\n{text}\n{fence}"
        case Figure(path, caption):
            return f"![{_plain(Path(path).stem)}]({path})\n\n{_plain(caption)}"
    return _plain(block)


def _plain(text: str) -> str:
    """Return the text on one line, with what Markdown would read as a mark escaped."""
    return re.sub(r"([\\`*<>\[\]|&~]|\b_|_\b)", r"\\\1", " ".join(text.split()))


def _html(block: Block, folder: Path) -> str:
    match block:
        case Heading(text):
            return f"<h2>{html.escape(text)}</h2>"
        case Table(header, rows):
            head = _row("th", header)
            body = "\n".join(_row("td", row) for row in rows)
            return f"<table>\n<thead>{head}</thead>\n<tbody>\n{body}\n</tbody>\n</table>"
        case Verbatim(text):
            return f"<pre>\n{html.escape(text)}</pre>"
        case Figure(path, caption):
            data = base64.b64encode((folder / path).read_bytes()).decode()
            said = html.escape(caption)
            image = f'<img alt="{html.escape(Path(path).stem)}" src="data:image/png;base64,{data}">'
            return f"<figure>\n{image}\n<figcaption>{said}</figcaption>\n</figure>"
    return f"<p>{html.escape(block)}</p>"


def _row(cell: str, texts: Sequence[str]) -> str:
    return "<tr>" + "".join(f"<{cell}>{html.escape(text)}</{cell}>" for text in texts) + "</tr>"


_POLICY = (
    '<meta http-equiv="Content-Security-Policy" '
    "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">"
)

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff; max-width: 54rem;
  margin: 2rem auto; padding: 0 1rem; }
h2 { margin-top: 2.2rem; border-bottom: 1px solid #ddd; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 0.3rem 0.9rem 0.3rem 0; border-bottom: 1px solid #e3e3e3;
  vertical-align: top; overflow-wrap: anywhere; }
pre { background: #f6f6f6; padding: 0.8rem 1rem; white-space: pre-wrap; overflow-wrap: anywhere; }
figure { margin: 1rem 0; } img { max-width: 100%; } figcaption { color: #555; font-size: 0.9rem; }
"""
