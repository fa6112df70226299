"""Options of adaptive rollout length that take more than a number."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from metaopt.environments import Environment, Physics

Lengths = Tensor | int
"""Rollout lengths: one for each run, (R) integers, or one for all."""


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
