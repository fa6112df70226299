"""What estimators share: K inner steps, what they refuse, what they save."""

from __future__ import annotations

from typing import Any, ClassVar

from metaopt.engine.guards import refuse_start_from_outer, refuse_state, require_gradients
from metaopt.engine.inner_loop import InnerLoop


class InnerRun:
    """An estimator that takes K inner steps and says something of where they end.

    Args:
        inner_steps: number K of inner steps, at least `least_steps`.

    Attributes:
        least_steps: smallest K.
        carries_state: whether the derivative of the problem's own state is in the result.
        differentiates_inner: whether g is differentiated in phi, which decisions of phi without a
            derivative would make wrong.
        fixed_start: whether a theta_0 made of phi is refused.
        memory: what is kept from one call to the next: `name` is the attribute `_name`.
    """

    least_steps: ClassVar[int] = 1
    carries_state: ClassVar[bool] = False
    differentiates_inner: ClassVar[bool] = True
    fixed_start: ClassVar[bool] = False
    memory: ClassVar[tuple[str, ...]] = ()

    def __init__(self, inner_steps: int = 1) -> None:
        if inner_steps < self.least_steps:
            raise ValueError(
                f"{type(self).__name__} needs inner_steps >= {self.least_steps}; got {inner_steps}."
            )
        self.inner_steps = inner_steps

    def check(self, loop: InnerLoop) -> None:
        """Raise an error that says what to use instead where this estimator would be wrong."""
        name = type(self).__name__
        require_gradients(loop, name, self.differentiates_inner)
        if self.fixed_start:
            refuse_start_from_outer(loop, name)
        if not self.carries_state:
            refuse_state(loop, name)

    def state_dict(self) -> dict[str, Any]:
        """Return what the next call needs of this one."""
        return {name: getattr(self, f"_{name}") for name in self.memory}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            ValueError: the state is another estimator's.
        """
        if set(state) != set(self.memory):
            raise ValueError(
                f"{type(self).__name__} keeps {', '.join(self.memory) or 'no state'}, but the "
                f"checkpoint holds {', '.join(state) or 'nothing'}; it was written by another "
                f"estimator."
            )
        for name, value in state.items():
            setattr(self, f"_{name}", value)
