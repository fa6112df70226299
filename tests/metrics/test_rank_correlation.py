"""Spearman's correlation and its interval against scipy, and the agreement of pairs."""

from __future__ import annotations

import numpy as np
import pytest

from metaopt.metrics.binary import auroc
from metaopt.metrics.rank_correlation import (
    _correlations,
    pairwise_agreement,
    spearman,
    spearman_interval,
)


def pairs(m, ties):
    draw = np.random.default_rng(m)
    a = draw.normal(size=m)
    b = a + draw.normal(size=m)
    return (a.round(), b.round()) if ties else (a, b)


@pytest.mark.parametrize("ties", [False, True])
def test_it_is_that_of_scipy(ties):
    stats = pytest.importorskip("scipy.stats")
    a, b = pairs(40, ties)
    assert spearman(a, b) == pytest.approx(stats.spearmanr(a, b).statistic, abs=1e-12)
    times = np.random.default_rng(0).multinomial(40, np.full(40, 1 / 40), size=5)
    for rho, row in zip(_correlations(a, b, times.astype(float)), times, strict=True):
        again = stats.spearmanr(np.repeat(a, row), np.repeat(b, row)).statistic
        assert rho == pytest.approx(again, abs=1e-12)


@pytest.mark.slow
def test_the_interval_is_that_of_scipys_bootstrap():
    stats = pytest.importorskip("scipy.stats")
    a, b = pairs(60, ties=False)
    low, high = spearman_interval(a, b, resamples=4000)
    other = stats.bootstrap(
        (a, b), lambda x, y: stats.spearmanr(x, y).statistic, paired=True, vectorized=False,
        method="percentile", n_resamples=4000, random_state=1,
    ).confidence_interval  # fmt: skip
    assert low == pytest.approx(other.low, abs=0.02)
    assert high == pytest.approx(other.high, abs=0.02)


def test_a_list_of_one_value_has_no_correlation():
    assert np.isnan(spearman([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]))
    with pytest.raises(ValueError, match="finite"):
        spearman([1.0, float("nan")], [1.0, 2.0])
    with pytest.raises(ValueError, match="same length"):
        spearman([1.0], [1.0])


def test_agreement_of_pairs_is_counted_and_is_the_auroc_of_two_classes():
    scores, truth = [3, 1, 1, 0], [9.0, 2.0, 5.0, 5.0]
    # pairs by truth: 0 > 1, 0 > 2, 0 > 3, 2 > 1 (a tie of scores), 3 > 1 (the other way)
    assert pairwise_agreement(scores, truth) == pytest.approx((3 + 0.5) / 5)
    a, b = pairs(60, ties=True)
    classes = (b > 0).astype(int)
    assert pairwise_agreement(a, classes) == pytest.approx(auroc(a, classes))
    assert pairwise_agreement(a, np.ones(60)) is None
    assert pairwise_agreement([], []) is None
    for bad in ([1.0, np.nan], [1.0]):
        with pytest.raises(ValueError, match="two lists of the same length of finite numbers"):
            pairwise_agreement(bad, [1.0, 2.0])
