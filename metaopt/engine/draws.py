"""Which batches several inner runs draw together."""

from __future__ import annotations

from dataclasses import dataclass

from metaopt.engine.random import Draw


@dataclass(frozen=True)
class Draws(Draw):
    """Which batches the members draw.

    Args:
        each: of each member.
    """

    each: tuple[Draw, ...] = ()

    def of_block(self, block: int) -> Draw:
        """Return these draws of a given block."""
        return Draws(self.key, each=tuple(draw.of_block(block) for draw in self.each))


def each_draw(draw: Draw) -> tuple[Draw, ...]:
    """Return the draws of the members.

    Raises:
        TypeError: it is the draw of one inner run.
    """
    if not isinstance(draw, Draws):
        raise TypeError("stacked runs take the draws that their own `draw` returns.")
    return draw.each
