"""Options of adaptive rollout length that take more than a number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from metaopt.problems.rollout_length.environments import Environment, Physics

Lengths = Tensor | int
"""Rollout lengths: one for each run, (R) integers, or one for all."""


@dataclass(frozen=True, kw_only=True)
class Exploration:
    """Probability of a random action: 1, then linearly down to `last`.

    Args:
        random: real steps with random actions only, >= 0; `None` for one phase.
        decay: real steps of the descent, >= 0; `None` for one phase.
        last: probability from then on, in [0, 1].
    """

    random: int | None = None
    decay: int | None = None
    last: float = 0.1

    def __post_init__(self) -> None:
        counts = [c for c in (self.random, self.decay) if c is not None]
        if any(c < 0 for c in counts) or not 0 <= self.last <= 1:
            raise ValueError(
                f"Exploration needs random >= 0 and decay >= 0, or null, and 0 <= last <= 1; got "
                f"random={self.random}, decay={self.decay}, last={self.last}."
            )

    def __call__(self, step: int, phase: int) -> float:
        """Return the probability after `step` real steps, in phases of `phase`."""
        random = phase if self.random is None else self.random
        decay = phase if self.decay is None else self.decay
        if step < random:
            return 1.0
        share = min(1.0, (step - random) / decay) if decay else 1.0
        return 1.0 + share * (self.last - 1.0)


class Groups:
    """Equal groups of the runs, in order: their names in tables, and how each group plans.

    Args:
        runs: number R of runs.
        names: one for each group; `None` to number them.
        planning: "synthetic" or "real", for all or for each group.
    """

    def __init__(
        self, runs: int, names: Sequence[str] | None, planning: str | Sequence[str]
    ) -> None:
        kinds = [planning] * len(names or [""]) if isinstance(planning, str) else list(planning)
        if not kinds or any(kind not in ("synthetic", "real") for kind in kinds):
            raise ValueError(
                f"RolloutLength needs planning=synthetic, real or a list of them; got {planning!r}."
            )
        if names is not None and (isinstance(names, str) or len(names) != len(kinds)):
            raise ValueError(
                f"RolloutLength needs as many groups as entries of planning; got groups={names!r} "
                f"and planning={planning!r}."
            )
        if runs % len(kinds):
            raise ValueError(
                f"RolloutLength needs runs that divide into {len(kinds)} equal groups; got "
                f"runs={runs}."
            )
        numbered = [f"group {i + 1}" for i in range(len(kinds))] if len(kinds) > 1 else [""]
        self.names = numbered if names is None else list(names)
        self.kinds, self.each = kinds, runs // len(kinds)

    def real(self) -> Tensor:
        """Return which runs plan on real data, (R) booleans."""
        return torch.tensor([kind == "real" for kind in self.kinds]).repeat_interleave(self.each)

    def of(self, tensor: Tensor) -> list[tuple[str, Tensor]]:
        """Return the name and the runs of each group of a tensor (R, ...)."""
        return list(zip(self.names, tensor.split(self.each), strict=True))


def check_options(
    counts: Mapping[str, int], error_episodes: int, training_episodes: int,
    updates_per_step: float, score: str, clip: float | None,
) -> None:  # fmt: skip
    """Raise a `ValueError` that names the first option out of range."""
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"RolloutLength needs {name} >= 1; got {count}.")
    side, phase, steps = (counts[k] for k in ("environments", "phase", "steps"))
    if steps % phase or phase % side:
        raise ValueError(
            f"RolloutLength needs steps divisible by phase, and phase by environments; got "
            f"steps={steps}, phase={phase}, environments={side}."
        )
    if error_episodes and error_episodes < side:
        raise ValueError(
            f"RolloutLength needs error_episodes=0 or at least environments={side}; got "
            f"{error_episodes}."
        )
    if training_episodes < 0:
        raise ValueError(f"RolloutLength needs training_episodes >= 0; got {training_episodes}.")
    if not updates_per_step > 0:
        raise ValueError(f"RolloutLength needs updates_per_step > 0; got {updates_per_step}.")
    if score not in ("training", "greedy"):
        raise ValueError(f"RolloutLength needs score=training or greedy; got {score!r}.")
    if clip is not None and not clip > 0:
        raise ValueError(f"RolloutLength needs clip > 0 or null; got {clip}.")


def check_outer_steps(asked: int | None, episode: int, needed: int) -> None:
    """Raise a `ValueError` where a run ends before its tests do, or goes on after them.

    Args:
        asked: outer steps of the run; `None` for no check.
        episode: outer steps of an episode; a run of no more than one is a trial, and legal.
        needed: outer steps of all training episodes and tests.
    """
    if asked is not None and asked > episode and not needed <= asked < needed + episode:
        raise ValueError(
            f"RolloutLength needs outer_steps={needed}, which is (training_episodes + tests) * "
            f"(steps / phase + 1), or at most {episode} for a trial without its tests; got "
            f"{asked}. Set outer_steps, or meta.outer_steps for a learned policy."
        )


def lengths_of_runs(outer: Lengths, runs: int, cap: int) -> Tensor:
    """Return the lengths (R) on the CPU.

    Raises:
        ValueError: no integers, not as many as runs, or not in 0..cap.
    """
    lengths = torch.as_tensor(outer).cpu()
    if lengths.is_floating_point() or lengths.numel() not in (1, runs):
        raise ValueError(
            f"RolloutLength needs an integer or {runs} of them as rollout lengths; got {outer!r}."
        )
    if bool(((lengths < 0) | (lengths > cap)).any()):
        raise ValueError(
            f"RolloutLength needs rollout lengths in 0..{cap}, the planner's cap; got "
            f"{lengths.tolist()}."
        )
    return lengths.flatten().expand(runs)


def variants(environment: Environment, tests: Sequence[str]) -> list[Environment]:
    """Return the environments of the tests.

    Raises:
        ValueError: no tests, one of them twice, or a name that is no variant's.
    """
    if isinstance(tests, str) or not tests or len(set(tests)) < len(tests):
        raise ValueError(
            f"RolloutLength needs a list of different tests, at least one; got {tests!r}."
        )
    return [_variant(environment, name) for name in tests]


def _variant(environment: Environment, name: str) -> Environment:
    if name == "default":
        return environment
    if not isinstance(environment, Physics):
        raise ValueError(
            f"RolloutLength finds variants of physics only; a {type(environment).__name__} has "
            f"none, so that tests must be [default] and not name {name!r}."
        )
    return environment.variant(name)
