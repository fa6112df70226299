"""The commands `metaopt ls FOLDER` and `metaopt show RUN`: what is in the folders of runs.

On a terminal both are for a person, and `ls` fits its width. Into a pipe or a file go whole values
between tabs: `ls` writes a line for each run below a line with the names of the columns, `show` a
name and a value on each line.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import sys
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from metaopt.cli.run_states import State, measured, state_of
from metaopt.engine.seeds import seeds_in_words
from metaopt.files.errors import FolderError
from metaopt.files.numbers import or_nan
from metaopt.runs.checkpoint import best_files
from metaopt.runs.continuing import refuse_edited
from metaopt.runs.fitting import Column, fitted, rounded, shortened
from metaopt.runs.folder import read_config, result_of
from metaopt.runs.headline import headline, stated_metrics
from metaopt.runs.provenance import repeat_command, resume_command
from metaopt.runs.run import PYTHON

COLUMNS = (
    "run", "state", "step", "steps", "metric", "value", "label", "seed", "command", "note",
)  # fmt: skip
"""What `ls` writes of a run."""

LEAST_NAME, LEAST_METRIC = 20, 12
"""Columns of a terminal that a folder and a metric get at least."""

LEAST_COMMAND = 24
"""Columns of a terminal that a command gets, or it is left out."""


def ls(arguments: Sequence[str]) -> int:
    """Print a line for each run below a folder: its state, step, main metric and command."""
    parser = argparse.ArgumentParser("metaopt ls", description="The runs of a folder, their state.")
    parser.add_argument(
        "folder", nargs="?", type=Path, default=Path("runs"), help="runs by default"
    )
    folder = parser.parse_args(arguments).folder
    if not folder.is_dir():
        raise ValueError(
            f"There is no folder {folder}. Runs are in runs and sweeps in results where they were "
            "started, unless the command named another folder."
        )
    paths = sorted(path.parent for path in folder.rglob("config.yaml"))
    if not paths:
        raise ValueError(f"There is no run below {folder}: no folder in it has a config.yaml.")
    rows = [_row(path) for path in paths]
    if not sys.stdout.isatty():
        print(*COLUMNS, sep="\t")
        for row in rows:
            print(*(" ".join(str(row.get(name, "")).split()) for name in COLUMNS), sep="\t")
        return 0
    print("\n".join(_table(rows, shutil.get_terminal_size().columns)))
    count = Counter(row["state"] for row in rows)
    runs = "1 run" if len(rows) == 1 else f"{len(rows)} runs"
    print(f"{runs}: {', '.join(f'{n} {word}' for word, n in count.most_common())}")
    return 0


def _row(path: Path) -> dict[str, Any]:
    """Return the columns of a run; of one that cannot be read, why."""
    try:
        config, result, state = _read(path, whole=False)
    except FolderError as error:
        return {"run": path, "state": "unreadable", "note": error}
    metrics = measured(path, state, result)
    metric, *_ = [*headline(stated_metrics(config), metrics), ""]
    value = or_nan(metrics[metric]) if metric else ""
    return {
        "run": path, "state": state.status, "step": state.step, "steps": state.steps,
        "metric": metric, "value": value, "label": config.get("label") or config.get("name") or "",
        "seed": _seeds(config), "command": repeat_command(path, config, result or {}),
        "note": state.note,
    }  # fmt: skip


def _read(folder: Path, whole: bool = True) -> tuple[dict[str, Any], dict[str, Any] | None, State]:
    """Return the config, the result and the state of a run; `whole` as for `state_of`."""
    config, result = read_config(folder), result_of(folder)
    refuse_edited(folder, config)
    state = state_of(folder, config, result, whole)
    if result is None and state.status != "running":
        result = result_of(folder)  # of a run that has ended since it was looked for
        state = state if result is None else state_of(folder, config, result, whole)
    return config, result, state


def _table(rows: Sequence[Mapping[str, Any]], width: int) -> list[str]:
    """Return lines of a width: numbers and states whole, names of folders and metrics shortened.

    What all folders are in is a line of its own. The note of a run that failed or cannot be read,
    and the command of any other, are last.
    """
    place, names = _names([row["run"] for row in rows])
    lines = _fitted(rows, names, width)
    if any("…" in name for name, *_ in lines):
        shared, names = _differing(names)
        lines = _fitted(rows, names, width)
        place += f"  names without {','.join(shared)}" if shared else ""
    return [*([shortened(place, width)] if place else []), *("  ".join(x).rstrip() for x in lines)]


def _fitted(rows: Sequence[Mapping[str, Any]], names: Sequence[str], width: int) -> list[list[str]]:
    failed = ("failed", "unreadable")
    last = [str(row.get("note" if row["state"] in failed else "command", "")) for row in rows]
    return fitted(
        [
            Column(names, LEAST_NAME, both_ends=True),
            Column([row["state"] for row in rows]),
            Column([f"{r['step']}/{r['steps']}" if "step" in r else "" for r in rows], right=True),
            Column([str(row.get("metric", "")) for row in rows], LEAST_METRIC),
            Column([f"{r['value']:.4g}" if r.get("metric") else "" for r in rows], right=True),
            Column([" ".join(text.split()) for text in last], LEAST_COMMAND, optional=True),
        ],
        width,
    )


def _names(folders: Sequence[Path]) -> tuple[str, list[str]]:
    """Return the folder that all are in, "" where it is the working one, and where they are there.

    Example:
        >>> _names([Path("runs/ridge/a"), Path("runs/ridge/b")])
        ('runs/ridge/', ['a', 'b'])
    """
    paths = list(map(str, folders))
    place = os.path.commonpath([os.path.dirname(path) for path in paths]) if len(paths) > 1 else ""
    if place in ("", os.curdir):
        return "", paths
    return os.path.join(place, ""), [os.path.relpath(path, place) for path in paths]


def _differing(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the overrides that all names of folders have, and the names without them.

    Numbers that a search has drawn are rounded.

    Example:
        >>> _differing(["lr=0.012906392710974313,problem=ridge", "lr=0.1,problem=ridge"])
        (['problem=ridge'], ['lr=0.01291', 'lr=0.1'])
    """
    parts = [name.split(",") for name in names]
    shared = [part for part in parts[0] if all(part in other for other in parts)]
    rest = [",".join(part for part in each if part not in shared) for each in parts]
    if len(parts) == 1 or not all(rest):
        shared, rest = [], list(names)
    return shared, list(map(rounded, rest))


def _seeds(config: Mapping[str, Any]) -> str:
    return seeds_in_words(config.get("seed", 0), config.get("seeds"))


def show(arguments: Sequence[str]) -> int:
    """Print what one run is, how far it is, what came out, and what can be done with it."""
    parser = argparse.ArgumentParser("metaopt show", description="One run: what it is, its result.")
    parser.add_argument("run", type=Path, help="the run's folder")
    folder = parser.parse_args(arguments).run
    lines = _lines(folder, *_read(folder))
    if not sys.stdout.isatty():
        for name, text in lines.items():
            print(name, " ".join(text.split()), sep="\t")
        return 0
    width = max(map(len, lines)) + 2
    room = max(shutil.get_terminal_size().columns - width, 20)
    for name, text in lines.items():
        # A command stays on one line, to be copied.
        rows = textwrap.wrap(text, room, break_on_hyphens=False) if name == "files" else [text]
        print(f"{name:<{width}}" + f"\n{'':<{width}}".join(rows))
    return 0


def _lines(
    folder: Path, config: dict[str, Any], result: dict[str, Any] | None, state: State
) -> dict[str, str]:
    """Return what is to be said of a run, by name."""
    done = result or {}
    note = f": {state.note}" if state.note else ""
    lines = {"folder": str(folder), "state": f"{state.status}{note}"}
    lines["outer steps"] = f"{state.step} of {state.steps}"
    lines |= {k: str(config[k]) for k in ("name", "label") if config.get(k) is not None}
    name, _, which = _seeds(config).partition(" ")
    lines[name] = which
    for part in ("problem", "estimator", "optimizer"):
        if isinstance(node := config.get(part), dict):
            lines[part] = str(node.get("_target_") or node.get("_class_"))
    lines["command"] = repeat_command(folder, config, done)
    metrics = measured(folder, state, result)
    logged = {k: v for k, v in metrics.items() if not k.startswith(("budget/", "time/"))}
    logged.pop("outer_step", None)
    lines |= {name: f"{value:.6g}" for name, value in logged.items() if value is not None}
    lines |= {f"budget/{unit}": f"{n:,}" for unit, n in (done.get("budget") or {}).items()}
    lines |= _best(folder, done)
    lines["files"] = ", ".join(sorted(path.name for path in folder.iterdir()))
    lines["next"] = _next(folder, config, state)
    return lines


def _best(folder: Path, result: Mapping[str, Any]) -> dict[str, str]:
    """Return a line on the best checkpoint, where one is kept."""
    checkpoints, best = best_files(folder / "checkpoints"), result.get("best") or {}
    if not checkpoints:
        return {}
    step, path = checkpoints[-1]
    value = best.get("value")
    what = "" if value is None else f"{best.get('metric')} {value:.6g} "
    return {"best": f"{what}at outer step {step}, {path}"}


def _next(folder: Path, config: Mapping[str, Any], state: State) -> str:
    if state.status == "finished":
        return f"metaopt-report {shlex.quote(str(folder))}"
    if state.status == "running":
        return "wait for it"
    if config.get("started") == PYTHON:
        return f'metaopt.resume("{folder}", problem=...) in Python'
    return resume_command(folder)
