"""A noisy solver of chained arithmetic modulo 5, with misconceptions that it holds for good.

A question is a start and some operations, applied from left to right: `3 +2 *4` is 0, since
3+2 = 0 and 0*4 = 0. Operands are 1 to 4, so no operation forgets what it is applied to: a wrong
result stays wrong unless a second mistake undoes the first.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

MODULUS = 5
OPERATIONS = "+-*"
OPERANDS = MODULUS - 1
MOVES = len(OPERATIONS) * OPERANDS
"""Operations with their operands; move m is OPERATIONS[m // 4] with the operand m % 4 + 1."""

MOVE_WORDS = tuple(f"{sign}{operand}" for sign in OPERATIONS for operand in range(1, MODULUS))
"""Each move as a word."""

NONE = -1
"""What fills the moves of a question that is shorter than others."""

RELATIONS = ("=", "is")
"""The two styles of a step: `3+2 = 0` and `3+2 is 0`."""

SLIP = 0.13
"""Probability that a result is any of the five, whatever the fact."""

MISCONCEPTIONS = 0.15
"""Share of the 60 facts (move and value) that are misconceived."""

STRENGTHS = (0.4, 0.85)
"""Ends of the interval of the misconceptions' strengths, on both sides of one half."""


def results() -> Ints:
    """Return the true result of every move and value, (MOVES, 5)."""
    value = np.arange(MODULUS)
    operand = np.arange(1, MODULUS)[:, None]
    return np.concatenate([value + operand, value - operand, value * operand]) % MODULUS


TRUE = results()


def solve(start: Ints, moves: Ints) -> Ints:
    """Return the true results after each move, (n, S), of questions (n,) and (n, S)."""
    values = np.empty_like(moves)
    value = start
    for s in range(moves.shape[1]):
        value = np.where(moves[:, s] == NONE, value, TRUE[moves[:, s], value])
        values[:, s] = value
    return values


class ArithmeticPolicy:
    """Writes a result for every step; what it has written before, it goes on with.

    With probability `SLIP` a result is any of the five; else it is the truth, but on a share
    `MISCONCEPTIONS` of the facts it is, with a probability of each fact's own, always the same
    wrong one. These strengths are even over `STRENGTHS`, from below to above one half, so that
    some misconceptions win a majority vote and others do not.

    Args:
        seed: of the facts that are misconceived, what is believed, and how strongly.
    """

    name = "arithmetic"

    def __init__(self, seed: int = 0) -> None:
        draw = np.random.default_rng([seed, 1])
        facts = MOVES * MODULUS
        count = round(MISCONCEPTIONS * facts)
        strength = np.zeros(facts)
        strength[draw.permutation(facts)[:count]] = np.linspace(*STRENGTHS, count)
        self.strength: Floats = strength.reshape(MOVES, MODULUS)
        self.believed: Ints = (TRUE + draw.integers(1, MODULUS, TRUE.shape)) % MODULUS
        one = np.eye(MODULUS)
        h = self.strength[..., None]
        self.table: Floats = (1 - SLIP) * ((1 - h) * one[TRUE] + h * one[self.believed])
        self.table += SLIP / MODULUS
        self._cumulative = self.table.cumsum(-1)[..., :-1].copy()

    def step(self, value: Ints, move: Ints, draw: np.random.Generator) -> Ints:
        """Return one written result each, (n,); the value itself where there is no move."""
        uniform = draw.random(len(value))
        written = (uniform[:, None] > self._cumulative[move, value]).sum(-1)
        return np.where(move == NONE, value, written)

    def walk(self, start: Ints, moves: Ints, draw: np.random.Generator) -> Ints:
        """Return the results written after each move, (n, S)."""
        values = np.empty_like(moves)
        value = start
        for s in range(moves.shape[1]):
            value = values[:, s] = self.step(value, moves[:, s], draw)
        return values

    def right_rollouts(
        self, values: Ints, moves: Ints, answer: Ints, rollouts: int, draw: np.random.Generator
    ) -> Ints:
        """Return how many of `rollouts` continuations of each prefix end with the answer, (n, S).

        Args:
            values: results written after each move, (n, S).
            moves: the questions' moves, (n, S).
            answer: which final result counts as right, (n,).
            rollouts: continuations of each prefix; those of a whole chain are all alike.
            draw: the generator of the continuations.
        """
        counts = np.empty_like(values)
        for s in range(values.shape[1]):
            value = np.repeat(values[:, s], rollouts)
            for later in range(s + 1, values.shape[1]):
                value = self.step(value, np.repeat(moves[:, later], rollouts), draw)
            counts[:, s] = (value.reshape(-1, rollouts) == answer[:, None]).sum(1)
        return counts
