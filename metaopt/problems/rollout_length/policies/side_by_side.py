"""Several acting optimizers on equal parts of the same inner runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor

from metaopt.engine.protocols import Feedback, OuterOptimizer
from metaopt.engine.random import fold
from metaopt.problems.rollout_length.policies.observation import lengths_of


@final
class SideBySide:
    """Give each optimizer an equal share of the runs, in order, and show it that share alone.

    A comparison of schedules is then one batch of inner runs. Of an observation, the entries of a
    mapping that hold one row per run are divided; the rest is shown to all. The meta-objective,
    `Feedback.value`, is that of all runs.

    Args:
        optimizers: by name, at least one.
    """

    def __init__(self, optimizers: Mapping[str, OuterOptimizer]) -> None:
        if not optimizers:
            raise ValueError("SideBySide needs at least one optimizer; got none.")
        self.optimizers = dict(optimizers)
        self._runs = 0

    def init(self, outer: Any) -> None:
        """Divide the first outer variable.

        Raises:
            TypeError: it is not one whole number per run.
            ValueError: the runs do not divide into equal parts, or an optimizer refuses its part.
        """
        first = lengths_of(outer, "SideBySide")
        if len(first) % len(self.optimizers):
            raise ValueError(
                f"SideBySide needs a number of runs that {len(self.optimizers)} optimizers can "
                f"share equally; got {len(first)}."
            )
        self._runs = len(first)
        parts = first.chunk(len(self.optimizers))
        for (name, optimizer), part in zip(self.optimizers.items(), parts, strict=True):
            try:
                optimizer.init(part.clone())
            except ValueError as error:
                raise ValueError(f"The optimizer {name!r}: {error}") from error

    def ask(self, key: int) -> Tensor:
        """Return what each optimizer asks for, one part after the other."""
        return torch.cat([o.ask(fold(key, name)) for name, o in self.optimizers.items()])

    def tell(self, feedback: Feedback) -> None:
        """Tell each optimizer about its part."""
        each, seen = self._runs // len(self.optimizers), feedback.observation
        for i, optimizer in enumerate(self.optimizers.values()):
            share = slice(i * each, (i + 1) * each)
            optimizer.tell(dataclasses.replace(feedback, observation=self._part(seen, share)))

    def _part(self, seen: Any, share: slice) -> Any:
        if not isinstance(seen, Mapping):
            return seen
        return {
            k: v[share] if isinstance(v, Tensor) and v.shape[:1] == (self._runs,) else v
            for k, v in seen.items()
        }

    @property
    def solution(self) -> Tensor | None:
        """The parts' solutions, one after the other; `None` before `init`."""
        if not self._runs:
            return None
        return torch.cat([o.solution for o in self.optimizers.values()])

    def state_dict(self) -> dict[str, Any]:
        """Return the states by name."""
        return {name: o.state_dict() for name, o in self.optimizers.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state[name])
