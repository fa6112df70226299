"""Writes the pages of a report: `index.html` of the experiment, `runs/<run>.html` of each run."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from pathlib import Path

from metaopt.files.writing import write_text
from metaopt.report.experiment_page import experiment_blocks, name_of
from metaopt.report.page import page
from metaopt.report.run_page import run_blocks, run_title
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

    Args:
        summary, shown, footer, gaps, pictures, root: see `experiment_blocks`.
        out: folder of the report.
    """
    index = out / "index.html"
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
    return index


def _short(name: str) -> str:
    """Return a path relative to `runs` of which no part is too long for a file's name."""
    return "/".join(
        part
        if len(os.fsencode(part)) <= LONGEST
        else f"{part[: LONGEST // 5]}-{blake2b(os.fsencode(part), digest_size=8).hexdigest()}"
        for part in Path(name).parts
    )
