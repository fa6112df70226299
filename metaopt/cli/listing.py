"""The commands `metaopt ls FOLDER` and `metaopt show RUN`: what is in the folders of runs."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from metaopt.report.collect import failure


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
        config = _config(path)
        label = config.get("label") or config.get("name") or ""
        metrics = _result(path).get("metrics") or {}
        shown = "  ".join(f"{k} {v:.4g}" for k, v in metrics.items() if _shown(k, v))
        print(
            f"{path}  {state(path, config)}  {label}, seed {config.get('seed')}  {shown}".rstrip()
        )
    return 0


def show(arguments: Sequence[str]) -> int:
    """Print what one run is, how far it is, what came out, and what can be done with it."""
    parser = argparse.ArgumentParser("metaopt show", description="One run: what it is, its result.")
    parser.add_argument("run", type=Path, help="the run's folder")
    folder = parser.parse_args(arguments).run
    if not (folder / "config.yaml").is_file():
        raise ValueError(f"{folder} is no run's folder: {folder / 'config.yaml'} is missing.")
    config, result = _config(folder), _result(folder)
    lines = {"folder": str(folder), "state": state(folder, config)}
    lines |= {k: str(config[k]) for k in ("name", "label", "seed") if config.get(k) is not None}
    lines |= {
        p: config[p]["_target_"] for p in ("problem", "estimator", "optimizer") if p in config
    }
    if overrides := result.get("overrides"):
        lines["overrides"] = " ".join(overrides)
    metrics = result.get("metrics") or {}
    lines |= {name: f"{value:.6g}" for name, value in metrics.items() if value is not None}
    lines |= {f"budget/{unit}": f"{n:,}" for unit, n in (result.get("budget") or {}).items()}
    lines["files"] = ", ".join(sorted(path.name for path in folder.iterdir()))
    lines["next"] = f"metaopt-report {folder}" if result else _resume_command(folder)
    width = max(map(len, lines)) + 2
    for name, text in lines.items():
        print(f"{name:<{width}}{text}")
    return 0


def state(folder: Path, config: dict[str, Any]) -> str:
    """Return `finished`, `failed: <why>`, or the outer step that a continuation starts from."""
    if (folder / "result.json").is_file():
        stopped = _result(folder).get("stopped")
        return f"finished (stopped by {stopped})" if stopped else "finished"
    steps = [int(path.stem[5:]) for path in (folder / "checkpoints").glob("step_*.pt")]
    step = f"outer step {max(steps, default=0)} of {config.get('outer_steps')}"
    return failure(folder) or f"unfinished, {step}"


def _resume_command(folder: Path) -> str:
    from metaopt.runs.provenance import resume_command  # it imports torch, which takes a second

    return resume_command(folder)


def _config(folder: Path) -> dict[str, Any]:
    config: Any = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    return dict(config or {})


def _result(folder: Path) -> dict[str, Any]:
    path = folder / "result.json"
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def _shown(name: str, value: Any) -> bool:
    return name.startswith("eval/") and value is not None
