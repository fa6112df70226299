"""Coverage and redundancy by hand, signs, sums, and rubrics against planted features."""

import itertools

import pytest

from metaopt.metrics.traits import TraitCounts, count_traits, planted_counts, total


def test_two_aspects_and_two_traits_by_hand():
    """Aspects + and -, traits + and +: each way of matching them."""
    aspects, traits = [1, -1], [1, 1]
    cases = {
        (): (0.0, 1.0),
        ((0, 0),): (0.5, 0.5),
        ((0, 0), (0, 1)): (0.5, 0.0),
        ((1, 1),): (0.0, 1.0),  # another sign
        ((0, 0), (1, 1)): (0.5, 0.5),
    }
    for matches, (coverage, redundancy) in cases.items():
        counts = count_traits(aspects, traits, matches)
        assert (counts.coverage, counts.redundancy) == (coverage, redundancy), matches


@pytest.mark.parametrize("signs", list(itertools.product((1, -1), repeat=4)))
def test_only_equal_signs_match(signs):
    """All pairs are named, so an aspect is covered where any trait has its sign, and vice versa."""
    aspects, traits = signs[:2], signs[2:]
    counts = count_traits(aspects, traits, itertools.product(range(2), range(2)))
    assert counts.matched_aspects == sum(a in traits for a in aspects)
    assert counts.matched_traits == sum(t in aspects for t in traits)


def test_instances_count_by_their_aspects_and_traits():
    counts = total([TraitCounts(1, 1, 4, 1), TraitCounts(3, 0, 0, 0)])
    assert counts == TraitCounts(4, 1, 4, 1)
    assert (counts.coverage, counts.redundancy) == (0.25, 0.75)


def test_nothing_is_neither_covered_nor_redundant():
    assert (TraitCounts().coverage, TraitCounts().redundancy) == (0, 0)
    assert total([]) == TraitCounts()


@pytest.mark.parametrize(
    ("aspects", "traits", "matches", "words"),
    [
        ([0], [1], [], r"aspects must be \+1 or -1 each; got 0"),
        ([1], [2], [], r"traits must be \+1 or -1 each; got 2"),
        ([1], [1], [(0, 1)], r"one of 1 traits .* got \(0, 1\)"),
        ([1], [1], [(-1, 0)], r"one of 1 aspects .* got \(-1, 0\)"),
    ],
)
def test_bad_input_is_refused(aspects, traits, matches, words):
    with pytest.raises(ValueError, match=words):
        count_traits(aspects, traits, matches)


def test_a_rubric_is_measured_against_planted_features():
    planted = {"clarity": 1.0, "depth": 0.8, "padding": -2.0, "humour": 0.0}
    rubric = {"clarity": 5.0, "padding": 1.0, "humour": 2.0, "depth": 0.0}
    counts = planted_counts(planted, rubric)
    # clarity has the right sign; padding the wrong one, humour is planted nowhere, depth weighs 0
    assert counts == TraitCounts(3, 1, 3, 1)
    assert planted_counts(planted, planted) == TraitCounts(3, 3, 3, 3)
    assert planted_counts(planted, rubric, least=0.3) == TraitCounts(3, 1, 2, 1)
    assert planted_counts(planted, {}) == TraitCounts(3, 0, 0, 0)
