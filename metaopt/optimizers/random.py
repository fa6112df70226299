"""Random search."""

from __future__ import annotations

from typing import Any, final

from metaopt.engine.random import generator
from metaopt.optimizers.open_loop import OpenLoop
from metaopt.optimizers.spaces import Normal, Space, draw


@final
class Random(OpenLoop):
    """Draw every outer variable afresh from a space and keep the best.

    Args:
        space: a distribution, a list of choices, or either by name for an outer variable with
            names; `None` draws tensors and numbers from Normal(initial value, 1).

    References: Bergstra and Bengio, JMLR 2012.
    """

    def __init__(self, space: Space | None = None) -> None:
        self.space = Normal() if space is None else space

    def _propose(self, initial: Any, step: int, key: int) -> Any:
        return draw(self.space, initial, generator(key))
