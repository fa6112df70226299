"""Finished runs whose learned weights `metaopt-check --retrain` scores, grouped by training."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metaopt.engine.gradient_problem import GradientProblem
from metaopt.engine.inner_loop import loop_of
from metaopt.estimators.inner_run import require_gradients
from metaopt.files.errors import ConfigError
from metaopt.runs.python import load
from metaopt.runs.result import Result
from metaopt.runs.torch_settings import prepare_torch
from metaopt.testing.retraining_check import trained_value


@dataclass(frozen=True)
class WeightedRun:
    """A finished run with learned weights, without its problem, which may be large.

    Args:
        folder: its folder.
        label: what tables call it; may be empty.
        seed: its seed.
        steps: inner steps K of a training.
        weights: the learned weight of each training example, (n,).
        value: F after training on all examples, where there are other runs.
    """

    folder: Path
    label: str
    seed: int
    steps: int
    weights: Tensor
    value: float | None

    def problem(self) -> GradientProblem:
        """Return its problem, made again."""
        problem: GradientProblem = load(self.folder).problem
        return problem


def whole_steps(config: Mapping[str, Any], problem: GradientProblem) -> int:
    """Return the inner steps of a whole run: those of all outer steps, if each goes on."""
    return int(config["inner_steps"] * (config["outer_steps"] if problem.warm_start else 1))


def read_runs(paths: Sequence[Path], steps: int | None) -> tuple[list[WeightedRun], list[str]]:
    """Return the runs of folders, of runs or of sweeps, and a line on each that has no weights.

    They are read one after another, so that one problem is in memory at a time.

    Args:
        paths: of the folders.
        steps: inner steps of a training; `None` for those of each whole run.

    Raises:
        ConfigError: a run cannot be scored, or none has weights that differ.
    """
    runs, skipped = [], []
    every = [folder for path in paths for folder in _finished(path)]
    folders = [*{folder.resolve(): folder for folder in every}.values()]  # each of them once
    for folder in folders:
        try:
            run = _read(folder, steps, alone=len(folders) == 1)
        except ConfigError as error:
            if len(folders) == 1:
                raise
            skipped.append(f"{folder} is left out: {error}")
            continue
        runs.append(run)
    if not runs:
        raise ConfigError("\n".join(skipped))
    return runs, skipped


def _finished(path: Path) -> Iterator[Path]:
    """Yield a run's folder, or the finished runs below the folder of a sweep."""
    below = sorted(path.glob("**/result.json"))
    if (path / "config.yaml").exists() or not below:
        yield path
    else:
        yield from (result.parent for result in below)


def _read(folder: Path, steps: int | None, alone: bool) -> WeightedRun:
    run = load(folder)
    config, problem = run.config, run.problem
    if config.get("seeds") is not None:
        raise ConfigError(f"{folder} holds several seeds; --weights takes a run of one.")
    prepare_torch(config.get("threads", 1), config.get("device", "cpu"))
    require_gradients(loop_of(problem), "metaopt-check", through_decisions=False)
    weights, seed = _weights(problem, run), int(config["seed"])
    if steps is None:
        if "inner_steps" not in config:
            raise ConfigError(
                f"{folder} was started from Python; say --steps, those of a training."
            )
        steps = whole_steps(config, problem)
    value = None if alone else trained_value(problem, steps, seed)
    return WeightedRun(folder, str(config.get("label") or ""), seed, steps, weights, value)


def _weights(problem: GradientProblem, run: Result) -> Tensor:
    """Return the weights that a run has learned.

    Raises:
        ConfigError: there are none, or they are equal.
    """
    learned = getattr(problem, "learned_weights", None)
    if learned is None:
        raise ConfigError(
            f"{type(problem).__name__} has no learned_weights(outer, inner), the weight (n,) of "
            f"each training example; without --weights, problem= compares the gradient alone."
        )
    try:
        weights: Tensor = learned(run.outer, run.inner)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if torch.equal(weights, weights[:1].expand_as(weights)):
        raise ConfigError("all its examples have the same weight, which predicts nothing.")
    return weights.detach().clone()  # as a view it would keep all that it is a part of


def grouped(runs: Sequence[WeightedRun]) -> list[dict[str, WeightedRun]]:
    """Return runs that share their retrainings, by name.

    Runs share them where they have one seed, one number of steps and of examples, and training on
    all examples gives the same F to the bit.
    """
    groups: dict[tuple[Any, ...], list[WeightedRun]] = {}
    for run in runs:
        key = run.seed, run.steps, len(run.weights), run.value
        groups.setdefault(key, []).append(run)
    return [_named(members) for members in groups.values()]


def _named(runs: Sequence[WeightedRun]) -> dict[str, WeightedRun]:
    """Return runs by label, where no other run has it as a name, else by folder."""
    labels = [run.label for run in runs]
    folders = [os.path.abspath(run.folder) for run in runs]
    shared = os.path.dirname(folders[0]) if len(folders) == 1 else os.path.commonpath(folders)
    paths = [os.path.relpath(folder, shared) for folder in folders]
    times = Counter([*labels, *paths])
    return {
        label if label and times[label] == 1 else path: run
        for label, path, run in zip(labels, paths, runs, strict=True)
    }
