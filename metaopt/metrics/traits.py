"""How far a set of metrics covers what was said, and how much of it nobody spoke about.

An aspect is a behaviour that feedback praises (+1) or criticises (-1); a trait is a metric whose
rating of the same instance is +1 or -1. An aspect can be matched to a trait of its own sign.
Zhu et al., AutoLibra, ICLR 2026, arXiv 2505.02820.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol, runtime_checkable


class TraitCounts(NamedTuple):
    """Aspects and traits of some instances, and how many of them are matched.

        coverage   = matched aspects / aspects
        redundancy = unmatched traits / traits

    Both are in [0, 1], and 0 where there is nothing to divide by: no aspect, no trait. Counts of
    several instances are added (`total`), so that an instance counts by its aspects.

    Example:
        >>> counts = count_traits([+1, -1], [+1, +1], [(0, 0), (1, 1)])
        >>> counts.coverage, counts.redundancy  # the second aspect has another sign
        (0.5, 0.5)

    Args:
        aspects: number of aspects.
        matched_aspects: those that a trait is matched to.
        traits: number of traits.
        matched_traits: those that an aspect is matched to.
    """

    aspects: int = 0
    matched_aspects: int = 0
    traits: int = 0
    matched_traits: int = 0

    @property
    def coverage(self) -> float:
        """Share of the aspects that are matched; higher is better."""
        return self.matched_aspects / self.aspects if self.aspects else 0.0

    @property
    def redundancy(self) -> float:
        """Share of the traits that are not matched; lower is better."""
        return 1 - self.matched_traits / self.traits if self.traits else 0.0


def same_sign(
    aspects: Sequence[int], traits: Sequence[int], matches: Iterable[tuple[int, int]]
) -> list[tuple[int, int]]:
    """Return the matches (index of an aspect, index of a trait) whose signs are equal.

    Raises:
        ValueError: a sign that is neither +1 nor -1, or an index that is not there.
    """
    for name, signs in (("aspects", aspects), ("traits", traits)):
        if wrong := [sign for sign in signs if sign not in (1, -1)]:
            raise ValueError(f"{name} must be +1 or -1 each; got {wrong[0]}.")
    pairs = []
    for aspect, trait in matches:
        if not (0 <= aspect < len(aspects) and 0 <= trait < len(traits)):
            raise ValueError(
                f"a match must name one of {len(aspects)} aspects and one of {len(traits)} traits "
                f"by its index from 0; got {(aspect, trait)}."
            )
        if aspects[aspect] == traits[trait]:
            pairs.append((aspect, trait))
    return pairs


def count_traits(
    aspects: Sequence[int], traits: Sequence[int], matches: Iterable[tuple[int, int]]
) -> TraitCounts:
    """Return the counts of one instance; a match of different signs is none.

    Args:
        aspects: sign of each aspect of its feedback, +1 or -1.
        traits: sign of each of its traits, +1 or -1.
        matches: (index of an aspect, index of a trait).

    Raises:
        ValueError: as `same_sign`.
    """
    pairs = same_sign(aspects, traits, matches)
    matched = [len({pair[side] for pair in pairs}) for side in (0, 1)]
    return TraitCounts(len(aspects), matched[0], len(traits), matched[1])


def total(counts: Iterable[TraitCounts]) -> TraitCounts:
    """Return the counts of all instances together."""
    return TraitCounts(*map(sum, zip(*counts, strict=True)))


@runtime_checkable
class PlantedFeatures(Protocol):
    """A world whose maker has planted what makes a response good or bad."""

    @property
    def planted(self) -> Mapping[str, float]:
        """What each feature adds to the true quality, by name; 0 of one that adds nothing."""
        ...


def planted_counts(
    planted: Mapping[str, float], items: Mapping[str, float], least: float = 0.0
) -> TraitCounts:
    """Return the counts of a weighted rubric against the features that a world has planted.

    A planted feature is an aspect and an item of the rubric a trait, each with the sign of its
    weight; they are matched by name. So coverage is the share of the planted features that the
    rubric weighs with the right sign, and redundancy the share of its items that weigh something
    else, or with the wrong sign. Weights of 0 are left out.

    Args:
        planted: weight of each feature in the truth.
        items: weight of each item of the rubric.
        least: items below this share of the largest weight are left out, in [0, 1], where a rubric
            weighs everything a little.

    Example:
        >>> planted_counts({"clarity": 1.0, "padding": -2.0}, {"clarity": 5.0, "humour": 3.0})
        TraitCounts(aspects=2, matched_aspects=1, traits=2, matched_traits=1)
    """
    aspects = {name: _sign(weight) for name, weight in planted.items() if weight}
    bound = least * max(map(abs, items.values()), default=0.0)
    traits = {n: _sign(weight) for n, weight in items.items() if weight and abs(weight) >= bound}
    places = {name: place for place, name in enumerate(traits)}
    matches = [(place, places[name]) for place, name in enumerate(aspects) if name in places]
    return count_traits(list(aspects.values()), list(traits.values()), matches)


def _sign(weight: float) -> int:
    return 1 if weight > 0 else -1
