"""A bank of rewards for MountainCar: those that come to mind first, and random mixtures."""

from __future__ import annotations

import torch
from torch import Generator

from metaopt.engine.random import fold, generator
from metaopt.environments import MountainCar
from metaopt.problems.reward_design.language import parse
from metaopt.problems.reward_design.variables import of

TERMS = {
    "cost": (-0.5, ""),
    "goal": (1.0, "terminated"),
    "gain": (500.0, "(energy2 - energy)"),
    "speed": (10.0, "abs(v2)"),
    "height": (0.5, "height2"),
    "position": (1.0, "p2"),
    "progress": (10.0, "(p2 - p)"),
    "valley": (-1.0, "abs(p2 + 0.5)"),
    "energy": (200.0, "energy2"),
    "effort": (-0.1, "square(action - 1)"),
}
"""Weight and body of ten terms; each is between 0.01 and 1 in size in most steps."""

NAMED = {
    "own": "cost := -1",
    "cost, goal": ("cost", "goal"),
    "gain": ("gain",),
    "gain, goal": ("gain", "goal"),
    "speed": ("speed",),
    "speed, goal": ("speed", "goal"),
    "height": ("height",),
    "cost, gain, goal": ("cost", "gain", "goal"),
    "position": ("position",),
    "progress, goal": ("progress", "goal"),
    "valley": ("valley",),
}
"""Rewards by name: the environment's own, and sums of terms."""

FACTORS = (-4.0, -2.0, -1.0, -0.5, -0.25, 0.25, 0.5, 1.0, 2.0, 4.0)
"""What the weights of a random mixture are multiplied by."""


def mountain_car_rewards(random: int = 25, seed: int = 0) -> dict[str, str]:
    """Return eleven rewards by name, and random ones as `random 1`, `random 2` and so on.

    A random one has one to three different terms of `TERMS`, their weights multiplied by
    `FACTORS`; all choices are uniform, and no reward is there twice.

    Args:
        random: number of random ones, 0 to 1000.
        seed: of the random ones; with the same seed more of them begin with the same.

    Raises:
        ValueError: the number is out of range.
    """
    if not 0 <= random <= 1000:
        raise ValueError(f"mountain_car_rewards needs 0 <= random <= 1000; got {random}.")
    texts = {
        name: terms if isinstance(terms, str) else "\n".join(map(_line, terms))
        for name, terms in NAMED.items()
    }
    draw = generator(fold(seed, "bank"))
    while len(texts) < len(NAMED) + random:
        text = _mixture(draw)
        if text not in texts.values():
            texts[f"random {len(texts) - len(NAMED) + 1}"] = text
    names = of(MountainCar()).names
    return {name: parse(text, names).text for name, text in texts.items()}


def _line(name: str, factor: float = 1.0) -> str:
    """Return the line of a term."""
    weight, body = TERMS[name]
    return f"{name} := {weight * factor:g}" + (f" * {body}" if body else "")


def _mixture(draw: Generator) -> str:
    """Return a sum of one to three terms."""
    count = int(torch.randint(1, 4, (), generator=draw))
    chosen = torch.randperm(len(TERMS), generator=draw)[:count].sort().values.tolist()
    factors = torch.randint(len(FACTORS), (count,), generator=draw).tolist()
    names = list(TERMS)
    return "\n".join(
        _line(names[term], FACTORS[factor]) for term, factor in zip(chosen, factors, strict=True)
    )
