"""What a run says on the standard error, once, of numbers that mean less than they seem to."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from metaopt.engine import Engine, tree
from metaopt.engine.protocols import Tree
from metaopt.runs.tracking import Tracker


class GrowthWarning(Tracker):
    """Says once, on the standard error, that the adjoint of an unrolled run grows.

    `metrics["inner/adjoint_growth"]` is |dF/dtheta_0| / |dF/dtheta_K|. Stable training contracts it
    (0.3 to 1 on this repository's small networks); runs whose hypergradient bfloat16 got wrong, or
    retraining did not follow, had 6 to 160. The threshold is a proposal.
    """

    MOST = 10.0

    def __init__(self) -> None:
        self._said = False

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Warn at the first step at which the growth is above `MOST`."""
        growth = metrics.get("inner/adjoint_growth", 0.0)
        if self._said or not growth > self.MOST:  # NaN where F has no slope in theta
            return
        self._said = True
        print(
            f"Warning: at outer step {step} the adjoint grew {growth:.3g}-fold on its way back "
            f"through the inner steps (inner/adjoint_growth), and rounding errors with it: the "
            f"hypergradient may be imprecise, or say little of where retraining ends. "
            f"metaopt-check with the keys of this run measures both and names cures.",
            file=sys.stderr,
        )


class DivergenceWarning(Tracker):
    """Says once that the outer loss has grown out of all proportion, though it is still finite.

    Where the logged value first is above `MOST` times |that of the first record|, at least `MOST`.

    Args:
        first: outer loss of the first record, of a run that continues.
    """

    MOST = 1e6

    def __init__(self, first: float | None = None) -> None:
        self._most = None if first is None else self._threshold(first)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Compare the outer loss with that of the first record."""
        loss = metrics.get("outer/loss")
        if loss is None:
            return
        if self._most is None:
            self._most = self._threshold(loss)
        if not loss > self._most:
            return
        self._most = math.inf
        print(
            f"Warning: at outer step {step} the outer loss was {loss:.3g}, so the run has "
            f"diverged, and unless it recovers, what it ends with means nothing. Lower a learning "
            f"rate (problem.inner_optimizer.lr, outer_lr) or clip a gradient "
            f"(optimizer.clip_norm), or take fewer outer steps.",
            file=sys.stderr,
        )

    def _threshold(self, first: float) -> float:
        return self.MOST * max(abs(first), 1.0)


def warn_of_equal_replicates(outer: Any, metrics: Mapping[str, Any]) -> None:
    """Say on the standard error that several seeds have the same results, to the bit.

    Args:
        outer: outer variables after the first step, with an axis of replicates in front.
        metrics: of that step; those of replicates have the shape (R,).
    """
    values = [v for v in metrics.values() if isinstance(v, Tensor) and v.ndim]
    if not all(bool((t == t[:1]).all()) for t in [*tree.tensors(outer), *values]):
        return
    print(
        "Warning: all seeds have the same results: nothing in the first outer step depended on the "
        "seed, and an interval over these seeds would say nothing. Where the problem draws its "
        "data itself, put `seed: ${seed}` into the YAML of the problem, or pass a list with the "
        "problem of each seed in Python.",
        file=sys.stderr,
    )


def warn_of_search(engine: Engine) -> None:
    """Say on the standard error what a search pays for nothing, and what favours later candidates.

    Args:
        engine: not yet iterated; of a continued run nothing is said.
    """
    optimizer, estimator = engine.optimizer, engine.estimator
    # A `Search` that proposes nothing has one candidate, and one may keep the latest instead.
    one = getattr(optimizer, "proposer", optimizer) is None
    compares = getattr(optimizer, "keeps_best", False) and not one
    if engine.outer_step or not compares or getattr(optimizer, "keep", "best") != "best":
        return
    name, problem = type(optimizer).__name__, type(engine.problem).__name__
    if getattr(estimator, "gives_gradient", True):
        print(
            f"Warning: {name} reads the value of F alone, and {type(estimator).__name__} pays for "
            f"a hypergradient as well. estimator=score takes the inner steps alone.",
            file=sys.stderr,
        )
    if getattr(engine.problem, "warm_start", False):
        print(
            f"Warning: {name} compares candidates, and {problem} starts the inner run of each "
            f"where that of the one before ended, which favours later ones. Set "
            f"problem.warm_start=false (warm_start = False in its class), with inner_steps for a "
            f"whole training.",
            file=sys.stderr,
        )


class UpdateWarning:
    """Says once that the outer optimizer's steps are too small to move phi in the steps of the run.

    At the first update, every `accumulate` outer steps, after t >= T / 5 of them, with c the root
    mean square of phi's change so far, that is where c T / t is below `LEAST` times the root mean
    square of phi's start (of 1 where that is zero).
    Plain SGD is where it happens: the hypergradient of the weight of one of n examples has
    a factor 1/n. Nothing is said where the hypergradient is 0, as `Direct`'s is for a control with
    fixed weights: no rate would move phi.

    Args:
        engine: not yet iterated; of a continued run, a search or one of few steps nothing is said.
    """

    LEAST = 1e-3

    FEW = 50
    """Outer steps below which a run is a trial."""

    ENTRIES = 10_000
    """About how many entries of each tensor are looked at."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self._start = engine, list[Tensor]()
        descends = getattr(engine.optimizer, "needs_gradient", False)
        fresh = engine.outer_step == 0 and engine.outer_steps >= self.FEW
        # A schedule may begin with tiny steps.
        if descends and fresh and not getattr(engine.optimizer, "scheduled", False):
            self._start = self._entries()
        # Between two updates of an optimizer that accumulates, phi stays as it is.
        every = getattr(engine.optimizer, "accumulate", 1)
        self._at = every * math.ceil(engine.outer_steps / 5 / every)

    def _entries(self) -> list[Tensor]:
        flat = (t.detach().flatten() for t in tree.tensors(self._engine.optimizer.solution))
        return [t[:: 1 + t.numel() // self.ENTRIES].clone() for t in flat]

    def look(self, step: int, grad: Tree | None) -> None:
        """Compare phi with its start when about a fifth of the run is over."""
        if step != self._at or not self._start:
            return
        if grad is not None and not any(bool(t.any()) for t in tree.tensors(grad)):
            return
        start, now = self._start, self._entries()
        change, size = _rms([b - a for a, b in zip(start, now, strict=True)]), _rms(start)
        self._start = []
        steps = self._engine.outer_steps
        if change * steps / step >= self.LEAST * (size or 1.0):
            return
        print(
            f"Warning: {step} outer steps moved the outer variable by {change:.2g} (root mean "
            f"square), and at that pace all {steps} move it by less than a thousandth of its size"
            f"{f', {size:.2g}' if size else ', taken as 1'}. Raise the outer optimizer's lr "
            f"(outer_lr), or use optimizer=adam, whose steps are about lr in each entry whatever "
            f"the scale of the hypergradient.",
            file=sys.stderr,
        )


def _rms(tensors: list[Tensor]) -> float:
    """Return the root mean square of all entries."""
    squares = torch.stack([t.double().square().sum() for t in tensors]).sum()
    return math.sqrt(squares / sum(t.numel() for t in tensors))
