"""Options of adaptive rollout length that take more than a number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from metaopt.engine.ranges import check_ranges
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
        check_ranges(self, "random >= 0 or null", "decay >= 0 or null", "0 <= last <= 1")

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

    Attributes:
        names: one for each group.
        each: number of runs of a group.
        real: which runs plan on real data, (R) booleans.
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
        self.each = runs // len(kinds)
        real = torch.tensor([kind == "real" for kind in kinds])
        self.real = real.repeat_interleave(self.each)

    def of(self, tensor: Tensor) -> list[tuple[str, Tensor]]:
        """Return the name and the runs of each group of a tensor (R, ...)."""
        return list(zip(self.names, tensor.split(self.each), strict=True))


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
        ValueError: no tests, one of them twice, or a name that is not a variant's.
    """
    if isinstance(tests, str) or not tests or len(set(tests)) < len(tests):
        raise ValueError(
            f"RolloutLength needs a list of different tests, at least one; got {tests!r}."
        )
    if isinstance(environment, Physics):
        return [environment if name == "default" else environment.variant(name) for name in tests]
    if list(tests) != ["default"]:
        raise ValueError(
            f"a {type(environment).__name__} has no perturbed variants, as the physics have that "
            f"metaopt implements: set tests=[default]; got {list(tests)}."
        )
    return [environment]
