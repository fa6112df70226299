"""The commands `metaopt ls FOLDER` and `metaopt show RUN`: what is in the folders of runs."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from metaopt.engine.seeds import seeds_in_words
from metaopt.files.errors import FolderError
from metaopt.files.reading import steps
from metaopt.report.collect import failure
from metaopt.runs.continuing import refuse_edited, taken
from metaopt.runs.folder import read_config, result_of
from metaopt.runs.provenance import resume_command


def ls(arguments: Sequence[str]) -> int:
    """Print a line for each run below a folder: its state, its method, its metrics."""
    parser = argparse.ArgumentParser("metaopt ls", description="The runs of a folder, their state.")
    parser.add_argument(
        "folder", nargs="?", type=Path, default=Path("runs"), help="runs by default"
    )
    folder = parser.parse_args(arguments).folder
    if not folder.is_dir():
        raise ValueError(f"There is no folder {folder}. Give the folder of runs or of a sweep.")
    paths = sorted(path.parent for path in folder.rglob("config.yaml"))
    if not paths:
        raise ValueError(f"There is no run below {folder}: no folder in it has a config.yaml.")
    for path in paths:
        try:
            config, result = read_config(path), result_of(path) or {}
            refuse_edited(path, config)
        except FolderError as error:
            print(f"{path}  {' '.join(str(error).split())}")
            continue
        label = config.get("label") or config.get("name") or ""
        metrics = result.get("metrics") or {}
        shown = "  ".join(f"{k} {v:.4g}" for k, v in metrics.items() if _shown(k, v))
        how_far = state(path, config, whole=False)
        print(f"{path}  {how_far}  {label}, {_seeds(config)}  {shown}".rstrip())
    return 0


def _seeds(config: Mapping[str, Any]) -> str:
    return seeds_in_words(config.get("seed", 0), config.get("seeds"))


def show(arguments: Sequence[str]) -> int:
    """Print what one run is, how far it is, what came out, and what can be done with it."""
    parser = argparse.ArgumentParser("metaopt show", description="One run: what it is, its result.")
    parser.add_argument("run", type=Path, help="the run's folder")
    folder = parser.parse_args(arguments).run
    config, result = read_config(folder), result_of(folder) or {}
    refuse_edited(folder, config)
    lines = {"folder": str(folder), "state": state(folder, config)}
    lines |= {k: str(config[k]) for k in ("name", "label") if config.get(k) is not None}
    name, _, which = _seeds(config).partition(" ")
    lines[name] = which
    for part in ("problem", "estimator", "optimizer"):
        if isinstance(node := config.get(part), dict):
            lines[part] = str(node.get("_target_") or node.get("_class_"))
    if overrides := result.get("overrides"):
        lines["overrides"] = " ".join(map(str, overrides))
    metrics = result.get("metrics") or {}
    lines |= {name: f"{value:.6g}" for name, value in metrics.items() if value is not None}
    lines |= {f"budget/{unit}": f"{n:,}" for unit, n in (result.get("budget") or {}).items()}
    lines["files"] = ", ".join(sorted(path.name for path in folder.iterdir()))
    lines["next"] = f"metaopt-report {folder}" if result else resume_command(folder)
    width = max(map(len, lines)) + 2
    for name, text in lines.items():
        print(f"{name:<{width}}{text}")
    return 0


def state(folder: Path, config: dict[str, Any], whole: bool = True) -> str:
    """Return `finished`, `failed: <why>`, or the outer step that a continuation starts from.

    `whole` says whether checkpoints are read to their end, see `newest_readable`.
    """
    result = result_of(folder)
    if result is not None:
        stopped = result.get("stopped")
        return f"finished (stopped by {stopped})" if stopped else "finished"
    done = taken(folder, config, whole)
    later = [path for number, path in steps(folder / "checkpoints") if number > done]
    note = f" ({later[-1].name} is damaged, or another run's)" if later else ""
    step = f"outer step {done} of {config.get('outer_steps')}{note}"
    return failure(folder) or f"unfinished, {step}"


def _shown(name: str, value: Any) -> bool:
    return name.startswith("eval/") and value is not None
