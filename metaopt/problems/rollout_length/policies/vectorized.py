"""Several policies on equal groups of the same batch of inner runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor

from metaopt.engine.protocols import Feedback, OuterOptimizer
from metaopt.engine.random import fold
from metaopt.problems.rollout_length.policies.policy import lengths_of


@final
class Vectorized:
    """Give each optimizer an equal group of the runs, in order, and show it that group alone.

    A comparison of schedules is then one batch of inner runs. Of an observation, the entries of a
    mapping that hold one value per run are divided; the rest is shown to all. The meta-objective,
    `Feedback.value`, is that of all runs.

    Args:
        optimizers: by name, at least one.
    """

    def __init__(self, optimizers: Mapping[str, OuterOptimizer]) -> None:
        if not optimizers:
            raise ValueError("Vectorized needs at least one optimizer; got none.")
        self.optimizers = dict(optimizers)
        self._runs = 0

    def init(self, outer: Any) -> None:
        """Divide the first outer variable.

        Raises:
            TypeError: it is not one whole number per run.
            ValueError: the runs do not divide into equal groups, or an optimizer refuses its one.
        """
        first = lengths_of(outer, "Vectorized")
        if len(first) % len(self.optimizers):
            raise ValueError(
                f"Vectorized needs a number of runs that {len(self.optimizers)} optimizers can "
                f"share equally; got {len(first)}."
            )
        self._runs = len(first)
        groups = first.chunk(len(self.optimizers))
        for (name, optimizer), group in zip(self.optimizers.items(), groups, strict=True):
            try:
                optimizer.init(group.clone())
            except ValueError as error:
                raise ValueError(f"The optimizer {name!r}: {error}") from error

    def ask(self, key: int) -> Tensor:
        """Return what each optimizer asks for, one group after the other."""
        return torch.cat([o.ask(fold(key, name)) for name, o in self.optimizers.items()])

    def tell(self, feedback: Feedback) -> None:
        """Tell each optimizer about its group."""
        each, observation = self._runs // len(self.optimizers), feedback.observation
        for i, optimizer in enumerate(self.optimizers.values()):
            group = slice(i * each, (i + 1) * each)
            part = self._part(observation, group)
            optimizer.tell(dataclasses.replace(feedback, observation=part))

    def _part(self, observation: Any, group: slice) -> Any:
        if not isinstance(observation, Mapping):
            return observation
        return {
            k: v[group] if isinstance(v, Tensor) and v.shape[:1] == (self._runs,) else v
            for k, v in observation.items()
        }

    @property
    def solution(self) -> Tensor | None:
        """The solutions of the groups, one after the other; `None` before `init`."""
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
