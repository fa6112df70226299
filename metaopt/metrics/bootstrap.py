"""Bootstrap intervals of weighted figures, by resampling whole queries.

Examples of one query resemble each other, so a resample draws queries. It is a row of a table of
weights, (resamples, examples), that says how often each example was drawn; every figure of
`metaopt.metrics.binary` is a function of such a table.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

import numpy as np
from numpy.typing import ArrayLike

from metaopt.metrics.binary import Array

Ends = tuple[float | None, float | None]

LEVEL = 0.95
"""Coverage of the intervals."""

MIN_QUERIES = 6
"""Fewest queries with an interval.

No two-sided interval free of assumptions reaches 95 % on fewer: n values are all on one side of
their median with probability 2^(1-n), which is 6 % at n = 5. A resample of so few is often a single
query, and the ends would be what the extreme queries have by chance.
"""

BLOCK = 2_000_000
"""Weights held at once."""


def cluster_weights(queries: ArrayLike, resamples: int = 2_000, seed: int = 0) -> Iterator[Array]:
    """Yield tables (resamples of a block, examples) of how often each example was drawn.

    A resample draws as many queries as there are, with replacement, with all their examples.
    """
    if resamples < 1:
        raise ValueError(f"resamples must be >= 1; got {resamples}.")
    _, query = np.unique(np.asarray(queries), return_inverse=True)
    groups = int(query.max()) + 1
    draw = np.random.default_rng(seed)
    block = max(1, BLOCK // len(query))  # in blocks, as all weights may not fit in memory
    for start in range(0, resamples, block):
        size = min(block, resamples - start)
        times = draw.multinomial(groups, np.full(groups, 1 / groups), size=size)
        yield times[:, query].astype(float)  # all examples of a query as often as the query


def clustered_intervals(
    statistics: Callable[[Array], Mapping[str, Array]],
    queries: ArrayLike,
    resamples: int = 2_000,
    seed: int = 0,
) -> dict[str, Ends]:
    """Return 95 % percentile bootstrap intervals that resample queries.

    A resample in which a number is not defined (NaN) counts against both ends; an end is `None`
    where that leaves no finite one, and where there are fewer than `MIN_QUERIES` queries.

    Args:
        statistics: from weights (resamples, examples) to named numbers (resamples,).
        queries: one label per example; equal labels are drawn together.
        resamples: number of resamples.
        seed: the same intervals every time.
    """
    labels = np.asarray(queries)
    if len(np.unique(labels)) < MIN_QUERIES:
        return dict.fromkeys(statistics(np.ones((1, len(labels)))), (None, None))
    blocks = [statistics(weights) for weights in cluster_weights(labels, resamples, seed)]
    return {name: _ends(np.concatenate([b[name] for b in blocks])) for name in blocks[0]}


def _ends(values: Array) -> Ends:
    tail = math.floor((1 - LEVEL) / 2 * (len(values) - 1))
    # NaN as the lowest at one end and as the highest at the other: it widens the interval.
    low = np.sort(np.where(np.isnan(values), -np.inf, values))[tail]
    high = np.sort(np.where(np.isnan(values), np.inf, values))[len(values) - 1 - tail]
    return (
        float(low) if np.isfinite(low) else None,
        float(high) if np.isfinite(high) else None,
    )
