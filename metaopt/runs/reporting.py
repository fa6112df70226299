"""What a problem reports of a run: snapshots on its way, figures and its product at the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from metaopt.engine import Engine
from metaopt.engine.protocols import Report
from metaopt.files.errors import FolderError
from metaopt.files.reading import steps
from metaopt.files.tensors import CheckpointError, read_tensors, write_tensors


def take_snapshot(folder: Path, engine: Engine, step: int) -> None:
    """Write what the problem's figures need of outer step `step`, where it reports at all.

    Raises:
        TypeError: the first snapshot cannot be read again; said early.
    """
    report = engine.problem.report
    if report is None or engine.inner is None:
        return
    snapshot = report.snapshot(*engine.reported())
    if snapshot is None:
        return
    saved = folder / "snapshots"
    saved.mkdir(exist_ok=True)
    path = saved / f"step_{step:08d}.pt"
    write_tensors(path, snapshot)
    if len(steps(saved)) == 1:
        _check_snapshot(path, report)


def report(folder: Path, engine: Engine) -> str:
    """Draw the learning curve and the problem's figures; return what it says of its product.

    Raises:
        FolderError: a snapshot is damaged.
    """
    # matplotlib takes longer to import than a small run takes to finish.
    from metaopt.report.figures import learning_curve

    learning_curve(folder)
    reports = engine.problem.report
    if reports is None or engine.inner is None:
        return ""
    snapshots = [(step, _snapshot(path)) for step, path in steps(folder / "snapshots")]
    figures = folder / "figures"
    figures.mkdir(exist_ok=True)
    reports.figures(snapshots, figures)
    return reports.deliver(*engine.reported(), snapshots, folder)


def _check_snapshot(path: Path, report: Report) -> None:
    try:
        read_tensors(path)
    except CheckpointError as error:
        raise TypeError(
            f"{type(report).__name__}.snapshot must return tensors, texts, numbers, and lists and "
            f"dicts of these; what it returned cannot be read again: {error}"
        ) from error


def _snapshot(path: Path) -> Any:
    try:
        return read_tensors(path)
    except CheckpointError as error:
        raise FolderError(
            f"{error} Delete it and continue the run, which ends here; its figures then lack that "
            f"step."
        ) from error
