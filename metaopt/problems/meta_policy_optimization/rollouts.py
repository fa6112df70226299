"""A uniform sample of the responses of many updates, built up as they come."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")


def resampled(
    sample: Sequence[T], items: Sequence[T], before: int, count: int, key: int
) -> list[T]:
    """Return a uniform sample, without replacement, of all items so far: the old and the new ones.

    It is the beginning of a shuffle of all of them, so that each beginning of it is a uniform
    sample, too.

    Example:
        >>> sample = resampled([], "abc", 0, 2, key=0)
        >>> sample = resampled(sample, "def", 3, 2, key=1)
        >>> len(sample)
        2

    Args:
        sample: of the items before.
        items: new ones.
        before: number of items before.
        count: size of the sample, of all items where they are fewer.
        key: of the draws.

    References: Vitter, Random Sampling with a Reservoir, ACM Transactions on Mathematical Software,
    1985, algorithm R; in front of it, Fisher and Yates' shuffle, inside out.
    """
    draw, sample = np.random.default_rng(key), list(sample)
    for number, item in enumerate(items, before):
        place = int(draw.integers(number + 1))
        if len(sample) < count:
            sample.append(item)
            sample[-1] = sample[place]
        if place < len(sample):
            sample[place] = item
    return sample
