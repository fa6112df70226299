"""The tables that are committed below experiments/, and the cells that make them."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from hydra._internal.hydra import Hydra
from hydra.types import RunMode

from metaopt.cli import folders
from metaopt.cli.loading import CONFIG
from metaopt.cli.sweep import cells
from metaopt.files.errors import ConfigError, listed
from metaopt.report.check import Name, Row, read_table
from metaopt.report.collect import Collection, ReportError, collect

MADE_BY = "- Table made by: metaopt-report "
"""How a table.md names the folder of the runs."""

SETUP = 1.5
"""Seconds in which a run is composed, its data are made and its files are written (measured on one
AMD EPYC core): the seconds of a table are those of the outer steps alone."""


ANY = ""
"""The method of a run without a label."""


@dataclass(frozen=True)
class CommittedTable:
    """A table.csv of experiments/.

    Args:
        path: the file.
        name: its folder below experiments/, such as "reward_model/noise/30".
        experiment: what `experiment=` takes to make it, such as "reward_model/noise".
        runs: the folder of its runs, such as results/reward_model/noise/noise_0.3.
        rows: its cells.
    """

    path: Path
    name: str
    experiment: str
    runs: Path
    rows: Mapping[Name, Row]

    @property
    def devices(self) -> list[str]:
        """Where it was made, such as "cpu"."""
        return sorted({row.get("device") or "cpu" for row in self.rows.values()})

    def seeds(self, method: str) -> list[str]:
        """Return the seeds of a method; none of one that the table does not have."""
        return [seed for name, seed in self.rows if name == method]

    def finished(self) -> Collection | None:
        """Return the finished runs, or `None` where there are none."""
        try:
            return collect(self.runs)
        except ReportError:
            if any(self.runs.rglob("result.json")):  # such as runs of several tables
                raise
            return None

    def seconds(self, names: Iterable[Name]) -> float:
        """Return about how long it takes to make cells; replicates of one run count once."""
        each = {(name[0], row["seconds"]) for name in names if (row := self.rows[name])["seconds"]}
        return sum(float(seconds) + SETUP for _, seconds in each)

    def asks(self, names: Iterable[Name]) -> bool:
        """Return whether a cell among those of some names has sent requests to a model."""
        return any(float(self.rows[name].get("budget/lm_requests") or 0) for name in names)


def committed(root: Path, chosen: Sequence[str] = ()) -> list[CommittedTable]:
    """Return the tables below a folder, by name.

    Args:
        root: the folder experiments/.
        chosen: families, experiments or tables, such as "reward_model/noise"; all when empty.

    Raises:
        ConfigError: there is no table, none of a chosen name, or one without an experiment.
    """
    paths = {p.parent.relative_to(root).as_posix(): p for p in sorted(root.rglob("table.csv"))}
    if not paths:
        raise ConfigError(
            f"There is no table.csv below {root}. Run this in the root of the repository, or name "
            "its folder with --experiments FOLDER."
        )
    for name in chosen:
        if not any(_is_of(table, name) for table in paths):
            raise ConfigError(f"{name} is no table of {root}. There are:\n{listed(list(paths))}")
    return [
        _table(path, name)
        for name, path in paths.items()
        if not chosen or any(_is_of(name, each) for each in chosen)
    ]


def _is_of(name: str, group: str) -> bool:
    return f"{name}/".startswith(f"{group.strip('/')}/")


def _table(path: Path, name: str) -> CommittedTable:
    known = folders.groups()["experiment"]
    parts = name.split("/")
    # A table of a part of an experiment is in a folder below that of the experiment.
    longest = ("/".join(parts[:end]) for end in range(len(parts), 0, -1))
    experiment = next((each for each in longest if each in known), None)
    if experiment is None:
        raise ConfigError(
            f"{path} has no experiment that makes it: there is no configs/experiment/{name}.yaml. "
            "Add it, or move the table."
        )
    return CommittedTable(path, name, experiment, _runs(path, experiment), read_table(path))


def _runs(path: Path, experiment: str) -> Path:
    """Return the folder that the table.md next to a table.csv was made from."""
    text = path.with_suffix(".md")
    lines = text.read_text(encoding="utf-8").splitlines() if text.is_file() else []
    made = (shlex.split(line.removeprefix(MADE_BY)) for line in lines if line.startswith(MADE_BY))
    return Path(next(made, [f"results/{experiment}"])[0])


def cells_of(
    hydra: Hydra, experiment: str, tables: Sequence[CommittedTable]
) -> tuple[list[Sequence[str]], list[str]]:
    """Return the overrides of the cells that the tables of an experiment have.

    A method that the experiment does not list is looked for by its label among those of the family.

    Returns:
        The overrides; and a line for each method that nothing makes.

    Cost: one composition for each method and setting.
    """
    given = [f"experiment={experiment}"]
    config = hydra.compose_config(CONFIG, given, RunMode.MULTIRUN)
    chosen = _chosen(hydra, config, cells(config), given, tables)
    unknown = []
    for table in tables:
        known = {method for _, (name, method) in chosen if name == table.name}
        for method in dict.fromkeys(name for name, _ in table.rows):
            if known & {method, ANY}:
                continue
            options = _labelled(method, experiment)
            more = [cell for option in options for cell in cells(config, option)]
            made = _chosen(hydra, config, more, given, [table])
            chosen += made
            if not made:
                unknown.append(f"{table.name}: no config of {experiment} has the label {method!r}")
    return [cell for cell, _ in chosen], unknown


def _chosen(
    hydra: Hydra,
    config: Any,
    candidates: Sequence[Sequence[str]],
    given: Sequence[str],
    tables: Sequence[CommittedTable],
) -> list[tuple[Sequence[str], tuple[str, str]]]:
    """Return the cells that a table has, each with (the table's name, its method)."""
    settings: dict[tuple[str, ...], list[Sequence[str]]] = {}
    for cell in candidates:
        alike = tuple(word for word in cell if not word.startswith("seed="))
        settings.setdefault(alike, []).append(cell)
    chosen: list[tuple[Sequence[str], tuple[str, str]]] = []
    for group in settings.values():
        composed = hydra.config_loader.load_sweep_config(config, [*group[0], *given])
        folder = Path(composed.hydra.sweep.dir) / composed.hydra.sweep.subdir
        method = _method(composed)
        for table in tables:
            # Without labels, the methods are what the overrides of all runs together say.
            seeds = [seed for _, seed in table.rows] if method == ANY else table.seeds(method)
            if seeds and table.runs in folder.parents:
                # More seeds than runs are the replicates of each.
                several = len(seeds) > len(group)
                chosen += [
                    (cell, (table.name, method))
                    for cell in group
                    if several or _seed(cell) in (None, *seeds)
                ]
    return chosen


def _method(composed: Any) -> str:
    """Return what a table calls a config's run; `ANY` where it has no label."""
    if not composed.label:
        return ANY
    group = (composed.get("report") or {}).get("group")
    return f"{group}: {composed.label}" if group else str(composed.label)


def _seed(cell: Sequence[str]) -> str | None:
    return next((word.partition("=")[2] for word in cell if word.startswith("seed=")), None)


def _labelled(method: str, experiment: str) -> list[str]:
    """Return the options of `method=` of an experiment's family with a label."""
    family = experiment.split("/")[0]
    options = [name for name in folders.groups()["method"] if name.split("/")[0] == family]
    files = {name: folders.file_of("method", name) for name in options}
    return [
        name
        for name, path in files.items()
        if path and (yaml.safe_load(path.read_text(encoding="utf-8")) or {}).get("label") == method
    ]
