"""Which seeds a run trains."""

from __future__ import annotations

from collections.abc import Sequence


def seeds_from(seed: int, seeds: int | Sequence[int] | None) -> tuple[int, ...] | None:
    """Return the seeds that are trained together: those given, or so many from `seed` on.

    Raises:
        ValueError: there is none, one twice, or one that is no whole number; a list and another
            `seed` than its first.
    """
    if seeds is None:
        return None
    each: Sequence[int] = ()
    if isinstance(seeds, Sequence) and not isinstance(seeds, str):
        each = seeds
    elif type(seeds) is int:
        each = range(seed, seed + seeds)
    if not each or not all(type(s) is int for s in each) or len(set(each)) < len(each):
        raise ValueError(
            f"seeds must be how many to train together, >= 1, or a list of different whole "
            f"numbers; got {seeds!r}."
        )
    if seed not in (0, each[0]):
        raise ValueError(
            f"seeds={list(each)} lists the seeds, so that seed={seed} has no effect; drop seed, or "
            f"give seeds as how many there are from seed on."
        )
    return tuple(each)


def seeds_in_words(seed: int, seeds: Sequence[int] | None) -> str:
    """Return "seed 3" of a run of one seed, and "seeds 7, 2" or "seeds 3..34" of several."""
    if not seeds:
        return f"seed {seed}"
    first, last = seeds[0], seeds[-1]
    if len(seeds) > 2 and list(seeds) == list(range(first, last + 1)):
        return f"seeds {first}..{last}"
    return f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"
