"""Rewards that a coder would guess who knows what rewards look like, and nothing of the task."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

SIZES = (0.1, 1.0, 10.0, 100.0, 1000.0)
"""Sizes of weights; the sign is drawn, too."""

MOST_TERMS = 3


def guess(names: Sequence[str], draw: np.random.Generator) -> str:
    """Return the text of a random reward over an environment's variables.

    It is the sum of one to three different terms of those that rewards are made of: a constant, the
    end of the task, and of each quantity its value after the step, the size of that, and its change
    in the step. Number of terms, terms, sizes of weights and signs are uniform.

    Args:
        names: of the variables; a quantity after the step is called as before with a 2 at the end,
            or `n0` for `o0`.
        draw: of all choices.
    """
    bodies = {"constant": ""}
    if "terminated" in names:
        bodies["goal"] = "terminated"
    for name in names:
        later = after(name)
        if later in names:
            bodies |= {
                name: later,
                f"size_{name}": f"abs({later})",
                f"gain_{name}": f"({later} - {name})",
            }
    count = min(int(draw.integers(1, MOST_TERMS + 1)), len(bodies))
    chosen = sorted(draw.choice(len(bodies), count, replace=False).tolist())
    labels = list(bodies)
    return "\n".join(_line(labels[place], bodies[labels[place]], draw) for place in chosen)


def after(name: str) -> str:
    """Return the name of a quantity after the step: `p2` of `p`, `n0` of `o0`."""
    number = name.removeprefix("o")
    return f"n{number}" if name.startswith("o") and number.isdigit() else f"{name}2"


def _line(name: str, body: str, draw: np.random.Generator) -> str:
    weight = float(draw.choice(SIZES)) * float(draw.choice((-1.0, 1.0)))
    return f"{name} := {weight:g}" + (f" * {body}" if body else "")
