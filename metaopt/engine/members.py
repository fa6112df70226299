"""What the loops of one inner run and of several have in common: their members.

A member is one inner run. `InnerLoop` has one, `metaopt.engine.stacked.Stacked` several, along the
leading axes of all tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor

from metaopt.engine.gradient_problem import GradientProblem, GradientState
from metaopt.engine.protocols import Tree

if TYPE_CHECKING:
    from metaopt.engine.inner_loop import InnerLoop

T = TypeVar("T")


class OneMember:
    """The members of a loop that has one.

    Attributes:
        shape: how many members there are along each leading axis.
        per_member: what a loss reads of the problem that differs between members, with the axes of
            the outer variable: attributes by name, and `frozen` weights.
    """

    problem: GradientProblem
    shape: tuple[int, ...] = ()
    per_member: Mapping[str, Any] = {}

    def each(self: Any, key: int) -> Iterator[tuple[InnerLoop, int]]:
        """Yield each member's own loop, at the present outer step and task, and its key."""
        yield self, key

    def outer_of(self, outer: Tree, index: int) -> Tree:
        """Return the outer variable of one member; memory is shared."""
        return outer

    def first_of(
        self: Any, outer: Tree, inner: GradientState, key: int
    ) -> tuple[InnerLoop, Tree, GradientState, int]:
        """Return the loop, phi, state and key of the first member; memory is shared."""
        return self, outer, inner, key

    def total(self, theta: Tree) -> Tree:
        """Return the sum over tasks of what each has in the place of theta."""
        return theta

    def mapped(
        self, function: Callable[..., T], shared: Sequence[Tensor], own: Sequence[Tensor]
    ) -> T:
        """Return function(*shared, *own) of each member.

        Args:
            function: of the tensors of one member.
            shared: tensors with the axes of the outer variable.
            own: tensors with the axes of members.
        """
        return function(*shared, *own)

    def broadcast(self, shared: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return tensors with the axes of the outer variable that broadcast over all members."""
        return shared

    def problem_with(self, per_member: Mapping[str, Any]) -> GradientProblem:
        """Return the problem of a member, given the member's part of `self.per_member`."""
        return self.problem
