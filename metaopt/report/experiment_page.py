"""The page of an experiment: tables, figures, runs with their commands, configs, provenance."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from metaopt.engine.budget import UNITS
from metaopt.report.collect import Cell
from metaopt.report.notes import flat
from metaopt.report.page import Folded, Gallery, Heading, HtmlBlock, Sortable
from metaopt.report.table import Table
from metaopt.report.tables import Summary
from metaopt.runs.configs import flatten
from metaopt.runs.provenance import repeat_command

PER_RUN = ("seed", "label", "report")
"""Keys of a config that the page shows elsewhere."""


def experiment_blocks(
    summary: Summary,
    shown: Sequence[Table],
    footer: Sequence[str],
    gaps: Sequence[str],
    pictures: Mapping[str, Sequence[Path]],
    links: Mapping[Path, str],
    root: Path,
) -> Iterator[HtmlBlock]:
    """Yield the parts of an experiment's page.

    Args:
        summary: of the experiment.
        shown: its tables.
        footer, gaps: the lines below the tables, and what is incomplete.
        pictures: figures by the title of their section.
        links: address of the page of each run's folder.
        root: the folder that was reported on.
    """
    runs = summary.runs.first_replicates
    yield f"Finished runs: {len(runs)}, methods: {len(summary.methods)}, in {root}."
    for table in shown:
        yield Heading(table.title)
        yield Sortable(table)
    for title, paths in pictures.items():
        yield Heading(title)
        yield Gallery([(path.read_bytes(), "") for path in paths])
    if gaps:
        yield Heading("Incomplete")
        yield Sortable(Table(["what is missing"], [[text] for text in gaps]))
    yield Heading("Runs")
    yield "What each has spent, the command that computes it again and, behind its name, its page."
    yield _runs(summary, links)
    yield Heading("Configs")
    yield from _configs(runs)
    yield Heading("Provenance")
    yield Table(["what", "value", "runs"], list(_provenance(runs)), words=2)
    yield Heading("Notes")
    yield from footer


def _runs(summary: Summary, links: Mapping[Path, str]) -> Sortable:
    settings, cells = summary.settings, [c for m in summary.methods for c in summary.runs.of(m)]
    units = [unit for unit in UNITS if any(unit in c.cost for c in cells)]
    header = ["method", "seed", *map(settings.label, settings.metrics), "outer steps"]
    header += [*(UNITS[unit] for unit in units), "seconds", "command"]
    rows = []
    for cell in cells:
        rows.append(
            [
                cell.method,
                str(cell.seed),
                *(_metric(summary, cell, metric) for metric in settings.metrics),
                str(cell.result.get("outer_steps", "–")),
                *(f"{cell.cost[unit]:,.0f}" if unit in cell.cost else "–" for unit in units),
                "–" if cell.seconds is None else f"{cell.seconds:,.1f}",
                repeat_command(cell.folder, cell.config, cell.result),
            ]
        )
    texts = {0, len(header) - 1}
    return Sortable(Table(header, rows, words=texts), [links[c.folder] for c in cells])


def _metric(summary: Summary, cell: Cell, metric: str) -> str:
    if metric not in cell.metrics:
        return "–"
    settings = summary.settings
    return settings.show(metric, settings.factor(metric) * cell.metrics[metric])


def name_of(folder: Path, root: Path) -> str:
    """Return what a run's folder is called in a report on `root`."""
    return folder.name if folder == root else str(folder.relative_to(root))


def _configs(cells: Sequence[Cell]) -> Iterator[HtmlBlock]:
    """Yield what all configs have in common, and a table of what differs between methods."""
    absent = object()
    leaves = [dict(flatten({k: v for k, v in c.config.items() if k not in PER_RUN})) for c in cells]
    keys = list(dict.fromkeys(key for leaf in leaves for key in leaf))
    shared: dict[str, Any] = {}
    different = []
    for key in keys:
        values = [leaf.get(key, absent) for leaf in leaves]
        if all(value == values[0] for value in values):
            shared[key] = values[0]
            continue
        methods: dict[str, list[str]] = {}
        for cell, value in zip(cells, values, strict=True):
            methods.setdefault("absent" if value is absent else str(value), []).append(cell.method)
        named = {text: ", ".join(dict.fromkeys(each)) for text, each in methods.items()}
        if len(set(named.values())) > 1:  # else it differs between the seeds of each method
            different += [[key, text, each] for text, each in named.items()]
    if different:
        yield Sortable(Table(["key that differs", "value", "methods"], different, words=3))
    text = yaml.safe_dump(shared, sort_keys=False, allow_unicode=True)
    yield Folded(f"{len(shared)} keys that all runs share", text)


def _provenance(cells: Sequence[Cell]) -> Iterator[list[str]]:
    counted: dict[tuple[str, str], int] = {}
    for cell in cells:
        known = dict(flatten({k: cell.result.get(k) for k in ("commit", "hardware", "versions")}))
        for name, value in known.items():
            at = name, flat(value)
            counted[at] = counted.get(at, 0) + 1
    for (name, value), n in sorted(counted.items()):
        yield [name, value, str(n)]
