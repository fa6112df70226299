"""Finds the finished runs below a folder and groups them by method."""

from __future__ import annotations

import math
import os
import re
import shlex
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from metaopt.files.errors import FolderError, listed
from metaopt.files.numbers import is_number, or_nan
from metaopt.files.reading import damaged, read_json, read_records
from metaopt.runs.checks import read_checks
from metaopt.runs.continuing import refuse_edited
from metaopt.runs.folder import read_config, result_of

JOURNAL = Path("study", "journal", "log.jsonl")
"""What a search of hyperparameters has in its folder, from its first trial."""

_NOT_METHOD = ("seed", "seeds", "name", "label", "experiment", "tracker", "device", "threads")
"""Keys that do not tell methods apart."""


class ReportError(Exception):
    """A mistake in what the report was asked for; the message says what to do."""


@dataclass(frozen=True)
class Cell:
    """One finished run, or one of the replicates that it trained as one batch.

    Of a run with several seeds each is one. Replicate i of a vectorized problem with seed s and R
    replicates counts as seed s R + i. What the run measured only once belongs to its first
    replicate.

    Args:
        folder: the run's folder.
        method: what the table calls the run: its label, or the overrides that set it apart.
        seed: the run's seed, or the replicate's.
        metrics: final metrics by name; NaN where the run wrote no finite number.
        seconds: wall-clock seconds, or `None` where they were not written.
        config: the resolved config.
        result: what result.json holds.
        replicate: index of the replicate; 0 in a run without replicates.
    """

    folder: Path
    method: str
    seed: int
    metrics: Mapping[str, float]
    seconds: float | None
    config: Mapping[str, Any]
    result: Mapping[str, Any]
    replicate: int = 0

    @property
    def overrides(self) -> dict[str, str]:
        """The overrides that tell methods apart, by key."""
        pairs = (str(x).lstrip("+~").partition("=") for x in self.result.get("overrides") or [])
        return {
            key: value
            for key, _, value in pairs
            if key.split(".")[0] not in (*_NOT_METHOD, "hydra")
        }

    @property
    def cost(self) -> Mapping[str, float]:
        """What the run has spent, by unit."""
        return self.result.get("budget") or {}


@dataclass(frozen=True)
class Collection:
    """The finished runs below a folder, and the folders (with a reason) that have no result."""

    cells: Sequence[Cell]
    incomplete: Sequence[tuple[Path, str]]

    def of(self, method: str) -> list[Cell]:
        """Return the cells of a method, by seed."""
        return sorted((c for c in self.cells if c.method == method), key=lambda c: c.seed)

    @property
    def first_replicates(self) -> list[Cell]:
        """One cell a run."""
        return [c for c in self.cells if c.replicate == 0]

    @property
    def resplit(self) -> float:
        """Test examples for each training example where seeds are splits of one data set; else 0.

        The largest of the runs', as each says it; see `metaopt.report.stats.t_interval`.
        """
        return max(float(c.result.get("resplit", 0.0)) for c in self.cells)

    @property
    def methods(self) -> list[str]:
        """The methods, in the order of their folders."""
        return list(dict.fromkeys(c.method for c in self.cells))

    @property
    def metric_names(self) -> list[str]:
        """Every metric that some run has, sorted."""
        return sorted({name for c in self.cells for name in c.metrics})


def collect(folder: Path) -> Collection:
    """Read every run folder below `folder`, or the run that it is the folder of.

    A run folder is one with a config.yaml; it is finished when it has a readable result.json. Other
    runs within the folder of a run are not its own and are listed as left out, as is a search of
    hyperparameters next to other runs, which has a table of its own.

    Raises:
        ReportError: the folder is missing, holds no finished run, runs of several tables, or one
            run twice.
    """
    if not folder.is_dir():
        raise ReportError(f"There is no folder {folder}.\nGive the folder of a run or of a sweep.")
    cells: list[Cell] = []
    # In the order in which a person would list them, which tables keep.
    paths, incomplete = _without_searches(folder, sorted(folder.rglob("config.yaml"), key=_natural))
    for path in paths:
        if path.parent != folder and (folder / "config.yaml").exists():
            incomplete.append((path.parent, f"another run than that of {folder}, and left out"))
            continue
        if not (path.parent / "result.json").exists():
            incomplete.append((path.parent, failure(path.parent) or "not finished"))
            continue
        try:
            cells += _cells(path.parent)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            incomplete.append((path.parent, _reason(error)))
    if not cells:
        raise ReportError(_nothing(folder, incomplete))
    _refuse_several(folder, cells)
    return Collection(_labelled(cells), incomplete)


def _without_searches(
    folder: Path, paths: Sequence[Path]
) -> tuple[Sequence[Path], list[tuple[Path, str]]]:
    """Return the configs that are not of a search below a folder, unless all are; and a line each.

    A search lies below the results of its problem, as results/ridge/tune does.
    """
    homes = {journal.parents[len(JOURNAL.parts) - 1] for journal in folder.rglob(str(JOURNAL))}
    searches = sorted(homes - {folder})
    own = [path for path in paths if not any(home in path.parents for home in searches)]
    if not own or not searches:
        return paths, []
    advice = "a search of hyperparameters, and left out; it has a report of its own: metaopt-report"
    return own, [(home, f"{advice} {shlex.quote(str(home))}") for home in searches]


def _natural(path: Path) -> list[Any]:
    """Sort numbers in names by value, so that K=2 comes before K=10."""
    parts = re.split(r"(\d+(?:\.\d+)?(?:e[+-]?\d+)?)", str(path))
    return [float(part) if at % 2 else part for at, part in enumerate(parts)]


def _cells(folder: Path) -> list[Cell]:
    config, result = read_config(folder), result_of(folder) or {}
    refuse_edited(folder, config)
    metrics = {name: or_nan(value) for name, value in result["metrics"].items()}
    metrics |= read_checks(folder)
    seconds = _seconds(folder / "timing.json")
    if (log := folder / "metrics.jsonl").exists():
        read_records(log)  # for its damaged lines: curves are drawn from it
    label = config.get("label") or ""
    if group := (config.get("report") or {}).get("group"):
        label = f"{group}: {label}"
    run = Cell(folder, label, int(config["seed"]), metrics, seconds, config, result)
    replicates = result.get("replicates") or {}
    if not replicates:
        return [run]
    count = len(next(iter(replicates.values())))
    by_replicate = [{k: or_nan(x[i]) for k, x in replicates.items()} for i in range(count)]
    by_replicate[0] = {**metrics, **by_replicate[0]}
    seeds = result.get("seeds") or [run.seed * count + i for i in range(count)]
    return [
        replace(run, seed=seed, metrics=measured, replicate=i)
        for i, (seed, measured) in enumerate(zip(seeds, by_replicate, strict=True))
    ]


def _seconds(path: Path) -> float | None:
    if not path.exists():
        return None
    advice = "Delete it: the seconds are then unknown."
    seconds = read_json(path, advice).get("seconds")
    if not is_number(seconds) or not 0 <= seconds < math.inf:
        raise damaged(path, "seconds is not a number >= 0", advice)
    return float(seconds)


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, FolderError) else f"unreadable: {type(error).__name__}: {text}"


def failure(folder: Path) -> str | None:
    """Return the error in the log of a run that failed, else `None`.

    Notes, such as the outer step, follow the error in a traceback, whose frames are indented.
    """
    if not (folder / "error.log").is_file():
        return None
    try:
        text = (folder / "error.log").read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        return f"failed: error.log cannot be read ({error.strerror})"
    lines = text.strip().splitlines()
    frames = [at for at, line in enumerate(lines) if line.startswith("  ")]
    rest = lines[max(frames, default=-1) + 1 :]
    errors = [line for line in rest if line and not line.startswith("Traceback")]
    return f"failed: {errors[0]}" if errors else "failed"


def _nothing(folder: Path, incomplete: Sequence[tuple[Path, str]]) -> str:
    if not incomplete:
        return f"There is no run below {folder}: no folder in it has a config.yaml."
    listed = "\n".join(f"  {path}: {why}" for path, why in incomplete[:5])
    return f"No run below {folder} has finished; {len(incomplete)} have begun:\n{listed}"


def _refuse_several(folder: Path, cells: Sequence[Cell]) -> None:
    """Raise a `ReportError` where the runs below a folder belong to several tables.

    A table has the runs of one `name` that state one `report.title`, or none.
    """
    tables: dict[tuple[str, str], list[Path]] = defaultdict(list)
    for cell in cells:
        title = (cell.config.get("report") or {}).get("title")
        tables[str(cell.config.get("name")), str(title or "")].append(cell.folder)
    names, titles = (set(part) for part in zip(*tables, strict=True))
    if len(names) == 1 and len(titles - {""}) <= 1:
        return
    lines = []
    for (name, title), folders in tables.items():
        # Of a single run its folder, of several the one that they share.
        shared = os.path.commonpath(folders)
        count = len(set(folders))
        runs = f"{count} runs" if count > 1 else "1 run"
        lines.append(f"{shared}: {runs} of {name}{f', {title}' if title else ''}")
    raise ReportError(
        f"{folder} holds runs of {len(tables)} tables:\n{listed(lines)}\n"
        "Report on a folder that holds those of one."
    )


def _labelled(cells: Sequence[Cell]) -> list[Cell]:
    """Name each cell's method: its label, else what its overrides change among all the cells."""
    unnamed = [c for c in cells if not c.method]
    named = [
        c if c.method else replace(c, method=_changes(c, unnamed) or str(c.config.get("name")))
        for c in cells
    ]
    return _without_duplicates(_split(named))


def _changes(cell: Cell, among: Sequence[Cell]) -> str:
    return ", ".join(
        f"{key}={value}"
        for key, value in cell.overrides.items()
        if len({c.overrides.get(key) for c in among}) > 1
    )


def _split(cells: Sequence[Cell]) -> list[Cell]:
    """Where a method has a seed twice, tell its cells apart by the overrides they differ in."""
    times = Counter((c.method, c.seed) for c in cells)
    crowded = {method for (method, _), n in times.items() if n > 1}
    groups = {method: [c for c in cells if c.method == method] for method in crowded}
    return [
        replace(c, method=f"{c.method} ({changes})")
        if c.method in crowded and (changes := _changes(c, groups[c.method]))
        else c
        for c in cells
    ]


def _without_duplicates(cells: list[Cell]) -> list[Cell]:
    folders: dict[tuple[str, int], list[Path]] = defaultdict(list)
    for c in cells:
        folders[c.method, c.seed].append(c.folder)
    for (method, seed), paths in folders.items():
        if len(paths) > 1:
            listed = "\n".join(f"  {path}" for path in paths)
            raise ReportError(
                f"The method {method!r} has {len(paths)} runs with seed {seed}:\n{listed}\n"
                "Report on a folder that holds one of them."
            )
    return cells
