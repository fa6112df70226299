"""Variables of a reward: observations before and after a step, and formulas over them.

A quantity is stated in the reward language over an environment's observations, so that one text is
what the coder reads, what torch evaluates and what an exported reward computes.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from keyword import iskeyword
from typing import final

from torch import Tensor

from metaopt.problems.reward_design.language.nodes import Node, evaluate, rename
from metaopt.problems.reward_design.language.operators import FUNCTIONS
from metaopt.problems.reward_design.language.parsing import formula

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,30}")


@final
@dataclass(frozen=True)
class Quantity:
    """One observation, or what a formula derives from observations.

    Args:
        name: before a step.
        description: what it is, with its unit.
        formula: in the reward language, over the observations before a step; empty for an
            observation.
        later: name after a step; by default with a 2 at the end, as in `p2`.
    """

    name: str
    description: str
    formula: str = ""
    later: str = ""

    def at(self, end: bool) -> str:
        """Return its name before a step, or after it at the `end`."""
        return (self.later or f"{self.name}2") if end else self.name


@final
@dataclass(frozen=True)
class Variables:
    """The variables of a reward: a name, a meaning and a value for each transition.

    Args:
        observations: one of each number that an agent observes, in order.
        derived: formulas over them.
        action: what the number of an action means.
        action_size: 0 for discrete actions, else how many numbers an action has: their names are
            `action` if there is one, else `action0`, `action1` and so on.
        terminated: what it means that an episode has terminated.

    Example:
        >>> from metaopt.environments import MountainCar
        >>> from metaopt.problems.reward_design import variables
        >>> variables.of(MountainCar()).names["height2"]
        'height after the step'
    """

    observations: tuple[Quantity, ...]
    derived: tuple[Quantity, ...] = ()
    action: str = "number of the action"
    action_size: int = 0
    terminated: str = "1 if the episode terminated in this step, else 0; 0 at a time limit"

    @cached_property
    def names(self) -> Mapping[str, str]:
        """What each legal name means, with formula and unit, in the order of the coder's prompt."""
        texts = {quantity.name: quantity.description for quantity in self.observations}
        for quantity in self.derived:
            texts[quantity.name] = f"{quantity.formula}, {quantity.description}"
        for quantity in (*self.observations, *self.derived):
            texts[quantity.at(True)] = f"{quantity.name} after the step"
        texts |= dict.fromkeys(self.action_names, self.action)
        return texts | {"terminated": self.terminated}

    @cached_property
    def action_names(self) -> tuple[str, ...]:
        """`action`, or one name for each of its numbers."""
        if self.action_size <= 1:
            return ("action",)
        return tuple(f"action{i}" for i in range(self.action_size))

    @cached_property
    def formulas(self) -> Mapping[str, Node]:
        """Formula of each derived quantity before and after a step."""
        names = [quantity.name for quantity in self.observations]
        later = {quantity.name: quantity.at(True) for quantity in self.observations}
        trees = {}
        for quantity in self.derived:
            trees[quantity.name] = formula(quantity.formula, names)
            trees[quantity.at(True)] = rename(trees[quantity.name], later)
        return trees

    def __call__(
        self,
        observation: Tensor,
        action: Tensor,
        next_observation: Tensor,
        terminated: Tensor,
        names: Collection[str] | None = None,
    ) -> dict[str, Tensor]:
        """Return the value of each variable in each transition.

        They have the dtype of the observations, and derived ones double precision, since a
        difference of two energies is small.

        Args:
            observation, next_observation: before and after a step, (*shape, d), in the units of the
                environment (not scaled for a network).
            action: (*shape), or (*shape, a) where an action has several numbers.
            terminated: the task ended here, (*shape): not that a time limit cut the episode, which
                a reward must not see.
            names: which ones to compute; `None` for all. A reward needs `expression.names`.
        """
        values: dict[str, Tensor] = {}
        for end, numbers in enumerate((observation, next_observation)):
            labels = [quantity.at(bool(end)) for quantity in self.observations]
            values |= zip(labels, numbers.unbind(-1), strict=True)
        like = observation[..., 0].double()
        parts = action.unbind(-1) if action.dim() == observation.dim() else (action,)
        for name, part in zip(self.action_names, parts, strict=True):
            if names is None or name in names:
                values[name] = part.to(observation.dtype)
        if names is None or "terminated" in names:
            values["terminated"] = terminated.to(observation.dtype)
        for name, tree in self.formulas.items():
            if names is None or name in names:
                values[name] = evaluate(tree, values, like).expand_as(like)
        return values


def unnamed(size: int, action_size: int = 0) -> Variables:
    """Return variables `o0`, `o1`, ... before and `n0`, `n1`, ... after a step."""
    numbers = [
        Quantity(f"o{i}", f"number {i} of the observation", later=f"n{i}") for i in range(size)
    ]
    return Variables(tuple(numbers), action_size=action_size)


def named(names: Sequence[str], action_size: int = 0) -> Variables:
    """Return variables by a user's names of the observations, such as `x` before, `x2` after.

    Raises:
        ValueError: a name that a reward cannot have, or two variables of one name.
    """
    numbers = [Quantity(name, f"number {i} of the observation") for i, name in enumerate(names)]
    result = Variables(tuple(numbers), action_size=action_size)
    reserved = {*result.action_names, "terminated", *FUNCTIONS}
    wrong = [n for n in names if not _NAME.fullmatch(n) or iskeyword(n) or n in reserved]
    both = [quantity.at(end) for quantity in numbers for end in (False, True)]
    wrong += [n for n, count in Counter(both).items() if count > 1]
    if wrong:
        raise ValueError(
            f"observations must be different names of letters, digits and underscores that begin "
            f"with a letter, other than {', '.join(sorted(reserved))}, and a name with a 2 behind "
            f"it is the observation after the step; got {list(names)}: change {wrong[0]}."
        )
    return result
