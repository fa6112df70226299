"""The page of a run: what it measured and spent, figures, commands, config, provenance."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import yaml

from metaopt.engine.budget import UNITS
from metaopt.engine.seeds import seeds_in_words
from metaopt.report.collect import Cell
from metaopt.report.figures import learning_curve
from metaopt.report.notes import flat
from metaopt.report.page import (
    Figure,
    Folded,
    Gallery,
    Heading,
    HtmlBlock,
    Links,
    Sortable,
    Verbatim,
)
from metaopt.report.table import Table
from metaopt.runs.configs import flatten
from metaopt.runs.contents import delivered
from metaopt.runs.provenance import repeat_command, resume_command
from metaopt.runs.stopping import stop_of

LONGEST = 20_000
"""Characters of a learned text that are shown."""

CURVES = "learning_curves*.png"
"""Figures that are kept next to the page of a run."""


def run_title(cell: Cell) -> str:
    """Return what a run is called: its method and its seeds."""
    seed = cell.config.get("seed", 0)
    return f"{cell.method}, {seeds_in_words(seed, cell.result.get('seeds'))}"


def run_blocks(cell: Cell, index: str, page: Path, inside: bool) -> Iterator[HtmlBlock]:
    """Yield the parts of a run's page.

    Args:
        cell: the run, or its first replicate.
        index: address of the experiment's page.
        page: where the page will be.
        inside: whether it is below the run's folder or next to it, so that links to files of the
            run go with it when the whole is moved.
    """
    folder, result = cell.folder, cell.result
    stopped = f", stopped early: {stop}" if (stop := stop_of(result)) else ""
    seconds = "" if cell.seconds is None else f" in {cell.seconds:,.1f} s"
    yield f"{result.get('outer_steps', 'unknown')} outer steps{seconds}{stopped}. Folder: {folder}"
    yield Links([("all runs of this report", index)])
    yield Heading("Metrics")
    yield Sortable(Table(["metric", "value"], [*_metrics(cell)]))
    if cell.cost:
        yield Heading("Budget")
        rows = [[UNITS.get(unit, unit), f"{spent:,.10g}"] for unit, spent in cell.cost.items()]
        yield Table(["unit", "spent"], rows)
    figures = sorted((folder / "figures").glob("*.png"), key=_first_curves)
    if figures:
        yield Heading("Figures")
        yield from (Figure(str(path.relative_to(folder)), path.name) for path in figures)
    elif (folder / "metrics.jsonl").is_file():
        yield from _curves(folder, page.with_suffix(""))
    yield Heading("Commands")
    commands = repeat_command(folder, cell.config, result), resume_command(folder)
    yield "Compute it again; go on where it ended, with outer_steps=<more>; load it in Python:"
    yield Verbatim("\n".join([*commands, f'metaopt.load("{folder}")']))
    if (learned := folder / "outer.txt").is_file():
        yield Heading("Learned text")
        text = learned.read_text(encoding="utf-8", errors="replace")
        yield Verbatim(text[:LONGEST] + ("\n[cut here]" if len(text) > LONGEST else ""))
    if inside:
        yield from _files(folder, page)
    yield Heading("Config")
    yield Folded("config.yaml", yaml.safe_dump(dict(cell.config), sort_keys=False))
    yield Heading("Provenance")
    known = {k: result.get(k) for k in ("commit", "config_hash", "hardware", "versions")}
    yield Table(["what", "value"], [[k, flat(v)] for k, v in flatten(known)], words=2)


def _metrics(cell: Cell) -> Iterator[list[str]]:
    means = {**cell.metrics, **(cell.result.get("metrics") or {})}
    for name in sorted(means, key=lambda name: (not name.startswith("eval/"), name)):
        value = means[name]
        yield [name, "not finite" if value is None else f"{value:.6g}"]


def _curves(folder: Path, cache: Path) -> Iterator[HtmlBlock]:
    """Yield the learning curves of a run that drew none, as `figures=false` says.

    They are kept in a folder next to the page, since a figure takes longer than the rest of a page,
    and drawn again when the log is newer.
    """
    paths = sorted(cache.glob(CURVES))
    drawn = min((path.stat().st_mtime for path in paths), default=0.0)
    if drawn < (folder / "metrics.jsonl").stat().st_mtime:
        for path in paths:
            path.unlink()
        paths = learning_curve(folder, cache)
    if paths:
        yield Heading("Learning curves")
        yield Gallery([(path.read_bytes(), "") for path in paths])


def _first_curves(path: Path) -> tuple[bool, str]:
    return not path.name.startswith("learning_curves"), path.name


def _files(folder: Path, page: Path) -> Iterator[HtmlBlock]:
    """Yield links to the log, the result and what the problem has delivered."""
    names = [p.name for p in sorted(folder.iterdir()) if delivered(p) and p.is_file()]
    names += [n for n in ("metrics.jsonl", "result.json", "config.yaml") if (folder / n).is_file()]
    yield Heading("Files")
    yield Links([(name, os.path.relpath(folder / name, page.parent)) for name in names])
