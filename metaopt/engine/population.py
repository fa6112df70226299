"""A population: the inner runs of P members with hyperparameters of their own, trained together."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from metaopt.engine import tree
from metaopt.engine.gradient_problem import GradientProblem, GradientState
from metaopt.engine.protocols import OuterOptimizer, Tree
from metaopt.engine.random import Keys, fold
from metaopt.engine.replicates import Replicates


@tree.tagged("members")
class Members(NamedTuple):
    """The outer variables of P members, as an optimizer of a population asks for them.

    Args:
        outer: named tensors, the first axis of each counting members.
        parents: (P,), the member of the last outer step from whose inner state each goes on: its
            own, or that of another one whose parameters, moments, buffers and problem's state it
            takes over.

    Example:
        >>> members = Members({"log_lr": torch.tensor([-1.0, -2.0])}, torch.tensor([0, 0]))
        >>> members.of(1)
        {'log_lr': tensor(-2.)}
    """

    outer: Tree
    parents: Tensor

    @property
    def size(self) -> int:
        """Number P of members."""
        return len(self.parents)

    def of(self, member: int) -> Tree:
        """Return the outer variable of one member; memory is shared."""
        return {name: value[member] for name, value in self.outer.items()}

    def copied(self) -> Tensor:
        """Return which members go on from another one's state, (P,)."""
        return self.parents != torch.arange(self.size)


class Population(Replicates):
    """The inner level of P members of one problem, each under a key of its own.

    All tensors have a leading axis of members. Member i trains as a run with its outer variable
    under `member_keys(key, P).each[i]` alone does, to round-off; member 0 has the key of the outer
    step itself.

    Args:
        problem: what each member is a run of.
        size: number P of members.

    Raises:
        TypeError: no `GradientProblem`.
        ValueError: the problem trains replicates of its own, or keeps records beside its run.
    """

    noun = "member"
    instead = (
        "Try hyperparameters one after the other instead: optimizer=random, grid or search with "
        "estimator=score"
    )

    def __init__(self, problem: GradientProblem, size: int) -> None:
        super().__init__([problem] * size, range(size))
        self.size = size

    def inherited(self, states: GradientState, parents: Tensor) -> GradientState:
        """Return the states from which members go on that take over those of their parents.

        Parameters, moments, buffers and the problem's own state are copied bit by bit. The count of
        steps, which Adam's bias correction reads, is one for all members.
        """
        return tree.map_tensors(lambda t: t.index_select(0, parents.to(t.device)), states)

    @torch.no_grad()
    def values(self, outer: Tree, states: GradientState, key: int) -> Tensor:
        """Return F of each member, (P,), all of them on the same outer batch."""
        return self.outer_value(outer, states, self.outer_draw(states, Keys([key] * self.size)))


def member_keys(key: int, size: int) -> Keys:
    """Return the keys of the inner runs of P members; the first is that of the outer step."""
    return Keys([fold(key, "member", i) if i else key for i in range(size)])


def best_member(values: Tensor) -> int:
    """Return the number of the member with the lowest F; of equal ones, the first."""
    return int(values.sort(stable=True).indices[0])


def asks_for_members(optimizer: OuterOptimizer) -> bool:
    """Return whether an outer optimizer asks for the outer variables of a population."""
    return hasattr(optimizer, "members")
