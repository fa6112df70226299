"""The checkpoints of a run: the newest few, the best, and the newest that can be read."""

from __future__ import annotations

import re
import shutil
import sys
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from metaopt.engine.tree import UnknownStateError
from metaopt.files.errors import FolderError
from metaopt.files.reading import steps
from metaopt.files.tensors import CheckpointError, read_tensors, write_tensors

STATE = {
    "engine": dict, "solution": object, "last": dict, "seconds": float, "config": dict, "log": dict,
}  # fmt: skip
"""What the state in a checkpoint has, and of which kind; see `metaopt.runs.run.Run`."""

ENGINE = {
    "outer_step": int, "seed": object, "inner": object, "frozen": object, "optimizer": dict,
    "estimator": dict, "spent": dict, "stop": object,
}  # fmt: skip
"""The same of its engine's state; see `metaopt.engine.Engine.state_dict`."""

LOG = {"bytes": int, "sha256": str}
"""The same of what metrics.jsonl held; see `metaopt.runs.tracking.Jsonl.commit`."""

BEST = "best_{:08d}.pt"
"""Name of the best checkpoint, by its outer step. It holds what any other does."""


def best_files(folder: Path) -> list[tuple[int, Path]]:
    """Return the (step, file) pairs of the best checkpoints, the newest and so the best one last.

    More than one only where a kill came between writing it and removing the one before.
    """
    named = (
        (re.fullmatch(r"best_(\d{8,})\.pt", path.name), path) for path in folder.glob("best_*")
    )
    return sorted((int(match[1]), path) for match, path in named if match)


def files(folder: Path) -> list[tuple[int, Path]]:
    """Return the (step, file) pairs that a run may continue from, the oldest first."""
    return sorted([*steps(folder), *best_files(folder)])


def save_best(folder: Path, step: int, state: dict[str, Any]) -> None:
    """Write `state` as the best checkpoint in place of the one before."""
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / BEST.format(step), state)
    for number, path in best_files(folder):
        if number != step:
            path.unlink()


def best(folder: Path) -> dict[str, Any]:
    """Return the state of the best checkpoint.

    Raises:
        FolderError: none is kept, or it is damaged.
    """
    pairs = best_files(folder)
    if not pairs:
        raise FolderError(
            f"{folder} holds no best checkpoint: the run was started without keep_best, or has "
            f"evaluated nothing yet."
        )
    step, path = pairs[-1]
    return _read(path, step)


def save(folder: Path, step: int, state: dict[str, Any], keep: int) -> Path:
    """Write `state` as the checkpoint of outer step `step`; see `prune`.

    Args:
        folder: made when absent.
        keep: number of checkpoints to keep, >= 1.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step_{step:08d}.pt"
    write_tensors(path, state)
    prune(folder, step, keep)
    return path


def prune(folder: Path, step: int, keep: int) -> None:
    """Remove all checkpoints but the newest `keep` and the best up to `step`.

    Later ones were damaged, or the run would not be at `step`; what outer steps have left goes,
    too. A folder in the place of a checkpoint would be in the way of the next, and is somebody's:
    it is renamed.
    """
    for _, path in steps(folder):
        if path.is_dir():
            path.rename(path.with_name(f"{path.name}.{time.time_ns()}"))
    for number, left in interrupted(folder.parent):
        if number <= step:
            shutil.rmtree(left)
            if not any(left.parent.iterdir()):
                left.parent.rmdir()
    for kind, count in ((steps, keep), (best_files, 1)):
        newest = [number for number, _ in kind(folder) if number <= step][-count:]
        for number, old in kind(folder):
            if number not in newest:
                old.unlink()


def interrupted(run: Path | None) -> list[tuple[int, Path]]:
    """Return what estimators have left of outer steps, so that a kill inside one loses little.

    Args:
        run: the run's folder; what is left is in `reverse/step_<outer step>`.
    """
    left = () if run is None else (run / "reverse").glob("step_*")
    named = ((re.fullmatch(r"step_(\d+)", path.name), path) for path in left if path.is_dir())
    return [(int(match[1]), path) for match, path in named if match]


def latest(folder: Path) -> dict[str, Any] | None:
    """Return the state of the newest checkpoint that can be read, or `None` where there is none.

    Damaged files that are skipped are named on the standard error.

    Raises:
        CheckpointError: there are checkpoints and all are damaged; names the newest.
    """
    errors: dict[Path, CheckpointError] = {}
    for step, path in reversed(files(folder)):
        try:
            state = _read(path, step)
        except CheckpointError as error:
            errors[path] = error
        else:
            for damaged in errors:
                print(f"{damaged} is damaged; continuing from {path.name}.", file=sys.stderr)
            return state
    if not errors:
        return None
    newest = next(iter(errors.values()))
    raise CheckpointError(
        f"{newest} No older checkpoint is left; delete {folder} to start from the first step."
    ) from newest


def newest_readable(folder: Path, most: int, whole: bool = True) -> int:
    """Return the outer step of the newest checkpoint up to `most` that can be read, 0 without one.

    Says nothing of damaged ones, which `latest` names.

    Args:
        folder: of the checkpoints.
        most: the last outer step that counts.
        whole: whether files are read to their end, or only tested for being zip archives, which
            costs as little for gigabytes.
    """
    readable = _readable if whole else _is_archive
    newest_first = (n for n, path in reversed(files(folder)) if n <= most and readable(path, n))
    return next(newest_first, 0)


def _is_archive(path: Path, step: int) -> bool:
    return path.is_file() and zipfile.is_zipfile(path)


def _readable(path: Path, step: int) -> bool:
    try:
        _read(path, step)
    except UnknownStateError:  # whole, and of a problem that is not imported
        return True
    except CheckpointError:
        return False
    return True


def _read(path: Path, step: int) -> dict[str, Any]:
    """Return the state of the checkpoint of outer step `step`."""
    state = read_tensors(path)
    whole = _has(state, STATE) and _has(state["engine"], ENGINE) and _has(state["log"], LOG)
    if not whole:
        raise CheckpointError(f"{path} is damaged: it holds no state of a run.")
    done = state["engine"]["outer_step"]
    if done != step:
        raise CheckpointError(f"{path} is damaged: it holds the state of outer step {done}.")
    return dict(state)


def _has(value: Any, kinds: Mapping[str, type]) -> bool:
    return isinstance(value, dict) and all(
        key in value and isinstance(value[key], kind) for key, kind in kinds.items()
    )
