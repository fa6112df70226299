"""Best of n: the expected accuracy of the answer picked from n of C candidates, with intervals.

Each function returns one row per question and one column per n. A cell is the expectation over
all subsets of n of the C candidates, in closed form, so it is an unbiased estimate of what n fresh
candidates would give; the mean of a column is the accuracy, `interval` says how sure it is, and
the interval of the difference of two tables compares two scorers on the same questions.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from metaopt.metrics.binary import Array
from metaopt.metrics.bootstrap import Ends, clustered_intervals

MAX_CANDIDATES = 1_000
"""Most candidates of a question in a majority vote; more subsets overflow a float64."""


def best_of_n(scores: ArrayLike, correct: ArrayLike, sizes: Sequence[int] | None = None) -> Array:
    """Return the probability that the candidate with the highest score is right, (Q, N).

    With candidates in the order of falling scores, number i (from 0) is the best of a random
    subset with probability comb(C - 1 - i, n - 1) / comb(C, n). Equal scores share: each of them is
    as likely to be picked.

    Args:
        scores: (Q, C), higher is better; infinite is legal.
        correct: (Q, C), true or false.
        sizes: the n, each in 1..C; `None` is all of them.

    Raises:
        ValueError: shapes that differ, a score that is NaN, or a size out of range.

    Cost: a sort and Q C N multiplications.
    """
    score, right = np.asarray(scores, float), _table(correct)
    if score.shape != right.shape:
        raise ValueError(
            f"scores and correct must be of one shape; got {score.shape} and {right.shape}."
        )
    if np.isnan(score).any():
        bad = int(np.isnan(score).any(1).argmax())
        raise ValueError(f"scores must be numbers; question {bad} has a NaN.")
    count = right.shape[1]
    chosen = _sizes(sizes, count)
    order = np.argsort(-score, axis=1, kind="stable")
    score, right = (np.take_along_axis(x, order, 1) for x in (score, right))
    tied = [_shared(s, r) for s, r in zip(score, right, strict=True)]
    return np.array(tied).reshape(right.shape) @ _pick(count)[:, chosen - 1]


def pass_at_n(correct: ArrayLike, sizes: Sequence[int] | None = None) -> Array:
    """Return the probability that one of n candidates at least is right, (Q, N).

    1 - comb(C - c, n) / comb(C, n) with c right ones among the C (Chen et al., 2021).

    Args:
        correct: (Q, C), true or false.
        sizes: the n, each in 1..C; `None` is all of them.

    Raises:
        ValueError: `correct` is not a table of true and false, or a size is out of range.
    """
    right = _table(correct)
    count = right.shape[1]
    chosen = _sizes(sizes, count)
    drawn = np.arange(count)
    wrong = np.arange(count, -1, -1)[:, None]
    none: Array = np.cumprod(np.clip(wrong - drawn, 0, None) / (count - drawn), axis=1)
    some: Array = 1 - none[right.sum(1).astype(int)][:, chosen - 1]
    return some


def majority_vote(
    answers: Sequence[Sequence[str]], correct: ArrayLike, sizes: Sequence[int] | None = None
) -> Array:
    """Return the probability that the most frequent of n answers is right, (Q, N).

    Answers that are equally frequent share, each as likely to win.

    Args:
        answers: (Q, C), the final answers as texts; equal texts vote together, "" too.
        correct: (Q, C), true or false; candidates of one answer that differ count by their mean.
        sizes: the n, each in 1..C; `None` is all of them.

    Raises:
        ValueError: shapes that differ, a size out of range, or more than 1,000 candidates.

    Cost: C^2 to C^3 operations for each different list of counts; 0.1 to 1 s for 300 questions of
    64 candidates.
    """
    right = _table(correct)
    count = right.shape[1]
    if [len(row) for row in answers] != [count] * len(right):
        raise ValueError(f"answers must be {count} for each of {len(right)} questions, as correct.")
    if count > MAX_CANDIDATES:
        raise ValueError(f"a majority vote takes at most {MAX_CANDIDATES} candidates; got {count}.")
    chosen = _sizes(sizes, count)
    won = np.zeros((len(right), count))
    for i, row in enumerate(answers):
        _, group = np.unique(np.asarray(row, dtype=str), return_inverse=True)
        votes = np.bincount(group)
        shares = np.bincount(group, right[i]) / votes
        for j in np.flatnonzero(shares):
            others = tuple(sorted(np.delete(votes, j).tolist()))
            won[i] += shares[j] * _wins(int(votes[j]), others)
    return won[:, chosen - 1]


def interval(values: ArrayLike, resamples: int = 2_000, seed: int = 0) -> list[Ends]:
    """Return 95 % bootstrap intervals of the columns' means, by resampling questions.

    Args:
        values: (Q, N), a table of this module or the difference of two.
        resamples: number of resamples.
        seed: the same intervals every time.

    Raises:
        ValueError: an argument out of its range.
    """
    table = np.asarray(values, float)
    if table.ndim != 2 or not len(table):
        raise ValueError(f"values must be (questions, sizes); got the shape {table.shape}.")

    def means(weights: Array) -> dict[str, Array]:
        columns = weights @ table / weights.sum(1, keepdims=True)
        return {str(n): columns[:, n] for n in range(table.shape[1])}

    return list(clustered_intervals(means, np.arange(len(table)), resamples, seed).values())


def _table(correct: ArrayLike) -> Array:
    right = np.asarray(correct, float)
    if right.ndim != 2 or not right.size or not np.isin(right, (0, 1)).all():
        raise ValueError(
            f"correct must be a table of true and false, (questions, candidates); got the shape "
            f"{right.shape}."
        )
    return right


def _sizes(sizes: Sequence[int] | None, count: int) -> NDArray[np.int64]:
    chosen = np.arange(1, count + 1) if sizes is None else np.asarray(sizes)
    if chosen.ndim != 1 or (chosen < 1).any() or (chosen > count).any():
        raise ValueError(f"sizes must be 1 to {count}, the candidates; got {sizes}.")
    return chosen.astype(int)


def _pick(count: int) -> Array:
    """Return by rank and n the probability that a candidate is the best of a subset, (C, C)."""
    rank, size = np.arange(count)[:, None], np.arange(1, count + 1)
    ratios = np.clip(count - rank - size + 1, 0, None) / (count - rank)
    ratios[0] = size / count  # of rank 0, from which each further rank is a ratio
    return np.cumprod(ratios, axis=0)


def _shared(score: Array, right: Array) -> Array:
    """Return, where scores are equal, the mean of their correctness instead."""
    _, group = np.unique(score, return_inverse=True)
    means: Array = (np.bincount(group, right) / np.bincount(group))[group]
    return means


@lru_cache(maxsize=65_536)
def _wins(votes: int, others: tuple[int, ...]) -> Array:
    """Return for n = 1..C the probability that an answer with so many of C votes wins.

    For each t of its votes in the subset, every other answer has fewer (a term of a polynomial
    whose exponent counts votes) or as many (the same, times x). With r ties it wins with
    probability 1 / (r + 1), the integral of x^r over [0, 1], which Gauss's rule gives exactly.
    """
    from scipy.special import comb

    count = votes + sum(others)
    # Exact for polynomials in x up to the number of other answers.
    nodes, mass = np.polynomial.legendre.leggauss(len(others) // 2 + 1)
    x, mass = (nodes + 1) / 2, mass / 2
    drawn = np.arange(1, votes + 1)
    ways = np.zeros((votes, len(x), count + 1))
    ways[:, :, 0] = 1
    for other in others:
        before, ways = ways, np.zeros_like(ways)
        for s in range(min(other, votes) + 1):
            factor = np.where((drawn > s)[:, None], 1.0, (drawn == s)[:, None] * x)
            ways[:, :, s:] += comb(other, s) * factor[..., None] * before[:, :, : count + 1 - s]
    total = np.zeros(count + 1)
    for t, row in zip(drawn, mass @ ways, strict=True):
        total[t:] += comb(votes, t) * row[: count + 1 - t]
    won: Array = total[1:] / np.asarray(comb(count, np.arange(1, count + 1)))
    return won
