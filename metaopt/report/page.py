"""A page of headings, texts, tables, figures and verbatim texts, as Markdown and as HTML.

All texts are escaped, and a page's policy lets nothing run or load but its own style and script:
configs, metrics and replies of language models stay text whatever is in them.
"""

from __future__ import annotations

import base64
import html
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from urllib.parse import quote

from metaopt.report.page_assets import SORT, STYLE
from metaopt.report.table import Table

PIXELS = 96 / 160
"""CSS pixels for each pixel of a figure, whose texts then have the size they are drawn with."""


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


@dataclass(frozen=True)
class Sortable:
    """A table, of which a click on a column's head sorts the rows.

    Args:
        table: what is shown.
        links: for each row the address, relative to the page, of what its first cell links to.
    """

    table: Table
    links: Sequence[str] = ()


@dataclass(frozen=True)
class Gallery:
    """PNG pictures that share lines as far as they fit, each with a caption."""

    pictures: Sequence[tuple[bytes, str]]


@dataclass(frozen=True)
class Folded:
    """A text shown as it is when its summary is clicked."""

    summary: str
    text: str


@dataclass(frozen=True)
class Links:
    """Links to other files: (text, address relative to the page)."""

    targets: Sequence[tuple[str, str]]


HtmlBlock = Block | Sortable | Gallery | Folded | Links


def markdown(title: str, blocks: Sequence[Block]) -> str:
    """Return the page as Markdown."""
    return "\n\n".join([f"# {_plain(title)}", *(_markdown(block) for block in blocks)]) + "\n"


def page(title: str, blocks: Sequence[HtmlBlock], folder: Path) -> str:
    """Return the page as HTML that needs no other file: figures are read from `folder`."""
    body = "\n".join(_html(block, folder) for block in blocks)
    name = html.escape(title)
    script = SORT if any(isinstance(block, Sortable) for block in blocks) else ""
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n{_policy(script)}\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{name}</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n<h1>{name}</h1>\n{body}\n"
        + (f"<script>{script}</script>\n" if script else "")
        + "</body>\n</html>\n"
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


def _html(block: HtmlBlock, folder: Path) -> str:
    match block:
        case Heading(text):
            return f"<h2>{html.escape(text)}</h2>"
        case Table():
            return _table(block)
        case Sortable(table, links):
            return _table(table, "sortable", links)
        case Verbatim(text):
            return f"<pre>\n{html.escape(text)}</pre>"
        case Folded(summary, text):
            body = f"<pre>\n{html.escape(text)}</pre>"
            return f"<details>\n<summary>{html.escape(summary)}</summary>\n{body}\n</details>"
        case Links(targets):
            items = "".join(f"<li>{_link(text, to)}</li>" for text, to in targets)
            return f"<ul>{items}</ul>"
        case Figure(path, caption):
            return _picture((folder / path).read_bytes(), Path(path).stem, caption)
        case Gallery(pictures):
            return "\n".join(
                ['<div class="gallery">', *(_picture(p, c, c) for p, c in pictures), "</div>"]
            )
    return f"<p>{html.escape(block)}</p>"


def _table(table: Table, kind: str = "", links: Sequence[str] = ()) -> str:
    """Return a table, in a box that scrolls where the window is narrower than it."""
    rows = [[html.escape(cell) for cell in row] for row in table.rows]
    for row, cells, address in zip(rows, table.rows, links, strict=False):
        row[0] = _link(cells[0], address)
    start = f'<table class="{kind}">' if kind else "<table>"
    head = _row(table, "th", [html.escape(name) for name in table.header])
    body = "\n".join(_row(table, "td", row) for row in rows)
    return (
        f'<div class="wide">\n{start}\n<thead>{head}</thead>\n<tbody>\n{body}\n</tbody>\n'
        "</table>\n</div>"
    )


def _row(table: Table, tag: str, cells: Sequence[str]) -> str:
    kinds = ["" if table.left(i) else ' class="number"' for i in range(len(cells))]
    kinds = [
        ' class="long"' if not kind and len(cell) > 60 and tag == "td" else kind
        for kind, cell in zip(kinds, cells, strict=True)
    ]
    texts = (f"<{tag}{kind}>{cell}</{tag}>" for kind, cell in zip(kinds, cells, strict=True))
    return f"<tr>{''.join(texts)}</tr>"


def _link(text: str, address: str) -> str:
    # Quoted, with `./` in front: no name of a file becomes a scheme such as `javascript:`.
    return f'<a href="./{html.escape(quote(address))}">{html.escape(text)}</a>'


def _picture(png: bytes, name: str, caption: str) -> str:
    data = base64.b64encode(png).decode()
    width = ""
    if png[12:16] == b"IHDR":
        width = f' width="{round(PIXELS * struct.unpack(">I", png[16:20])[0])}"'
    image = f'<img alt="{html.escape(name)}"{width} src="data:image/png;base64,{data}">'
    return (
        f'<figure>\n<div class="wide">{image}</div>\n'
        f"<figcaption>{html.escape(caption)}</figcaption>\n</figure>"
    )


def _policy(script: str) -> str:
    """Return what a browser may use of the page: pictures in it, its own style and script."""
    run = f"; script-src {_hash(script)}" if script else ""
    return (
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        f'img-src data:; style-src {_hash(STYLE)}{run}">'
    )


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(sha256(text.encode()).digest()).decode()}'"
