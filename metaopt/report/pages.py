"""Writes the pages of a report: `index.html` of the experiment, `runs/<run>.html` of each run."""

from __future__ import annotations

import html
import os
import re
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from urllib.parse import unquote

from metaopt.files.writing import write_text
from metaopt.report.experiment_page import experiment_blocks, name_of
from metaopt.report.page import page
from metaopt.report.run_page import CURVES, run_blocks, run_title
from metaopt.report.table import Table
from metaopt.report.tables import Summary

LONGEST = 200
"""Bytes of a file's name, to which `.html.part` is added; file systems allow 255."""


def write_pages(
    summary: Summary,
    shown: Sequence[Table],
    footer: Sequence[str],
    gaps: Sequence[str],
    pictures: Mapping[str, Sequence[Path]],
    root: Path,
    out: Path,
) -> Path:
    """Write a page for the experiment and one for each run into `out`; return the former.

    A page needs no other file, no server and nothing from elsewhere. Pages link to each other by
    relative addresses and, where `out` is below `root`, to files of the runs.

    Pages of runs that are no longer there, which the index of an earlier report links to, are
    removed.

    Args:
        summary, shown, footer, gaps, pictures, root: see `experiment_blocks`.
        out: folder of the report.
    """
    index = out / "index.html"
    before = _linked(index)
    inside = out.resolve().is_relative_to(root.resolve())
    links = {}
    for cell in summary.runs.first_replicates:
        path = out / "runs" / f"{_short(name_of(cell.folder, root))}.html"
        path.parent.mkdir(parents=True, exist_ok=True)
        back = os.path.relpath(index, path.parent)
        write_text(
            path, page(run_title(cell), [*run_blocks(cell, back, path, inside)], cell.folder)
        )
        links[cell.folder] = str(path.relative_to(out))
    title = summary.settings.title or name_of(root, root)
    blocks = experiment_blocks(summary, shown, footer, gaps, pictures, links, root)
    write_text(index, page(title, [*blocks], out))
    for address in before - {*links.values()}:
        _remove(out, address)
    return index


def _linked(index: Path) -> set[str]:
    """Return the addresses of the runs' pages that an index links to."""
    text = index.read_text(encoding="utf-8", errors="replace") if index.is_file() else ""
    hrefs = re.findall(r'<a href="\./(runs/[^"]+\.html)">', text)
    return {unquote(html.unescape(href)) for href in hrefs}


def _remove(out: Path, address: str) -> None:
    """Remove the page of a run, its figures, and folders that are then empty, below runs/."""
    path, runs = out / address, out / "runs"
    if ".." in path.parts or not path.is_file() or path.is_symlink():
        return
    figures = path.with_suffix("")
    for file in (path, *figures.glob(CURVES)):
        file.unlink()
    for folder in filter(Path.is_dir, (figures, *path.parents)):
        if folder == runs or any(folder.iterdir()):
            return
        folder.rmdir()


def _short(name: str) -> str:
    """Return a path relative to `runs` of which no part is too long for a file's name."""
    return "/".join(
        part
        if len(os.fsencode(part)) <= LONGEST
        else f"{part[: LONGEST // 5]}-{blake2b(os.fsencode(part), digest_size=8).hexdigest()}"
        for part in Path(name).parts
    )
