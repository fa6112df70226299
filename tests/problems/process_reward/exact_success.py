"""How often the arithmetic policy ends right, by enumeration: what its rollouts estimate."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from metaopt.problems.process_reward.data.arithmetic_policy import ArithmeticPolicy


def exact_success(policy: ArithmeticPolicy, first: int, moves: Sequence[int], answer: int) -> float:
    """Return the probability of the answer, summed over every sequence of results."""
    total = 0.0
    for path in itertools.product(range(5), repeat=len(moves)):
        ends = (first, *path)
        if ends[-1] == answer:
            total += np.prod(
                [policy.table[m, a, b] for m, a, b in zip(moves, ends, path, strict=False)]
            )
    return total
