import math

import numpy as np
import pytest
from scipy import stats as reference

from metaopt.report import stats

DRAW = np.random.default_rng(0)
A, B = DRAW.normal(1.0, 0.5, 12), DRAW.normal(0.7, 0.5, 12)


@pytest.mark.parametrize("level", [0.5, 0.95, 0.99])
def test_t_interval_is_scipys(level):
    actual = stats.t_interval(A, level)
    expected = reference.ttest_1samp(A, 0).confidence_interval(level)
    assert actual.estimate == pytest.approx(A.mean())
    assert (actual.low, actual.high) == pytest.approx((expected.low, expected.high))
    assert actual.half == pytest.approx(actual.high - actual.estimate)


def test_t_interval_covers_as_often_as_it_says():
    draw = np.random.default_rng(1)
    intervals = [stats.t_interval(draw.normal(3.0, 2.0, 5), 0.9) for _ in range(2000)]
    assert np.mean([i.low <= 3 <= i.high for i in intervals]) == pytest.approx(0.9, abs=0.02)


def test_bootstrap_interval_agrees_with_scipys_percentile_bootstrap():
    actual = stats.bootstrap_interval(A, np.median)
    expected = reference.bootstrap(
        (A,), np.median, n_resamples=20_000, method="percentile", rng=np.random.default_rng(3)
    ).confidence_interval
    assert actual.estimate == np.median(A)
    assert (actual.low, actual.high) == pytest.approx((expected.low, expected.high), abs=0.03)
    assert actual == stats.bootstrap_interval(A, np.median)


def test_the_probability_of_improvement_is_that_of_mann_and_whitney():
    a, b = [1.0, 2.0, 2.0, 5.0], [0.0, 2.0, 3.0]
    actual = stats.probability_of_improvement(a, b)
    assert actual.estimate == pytest.approx((1 + 2 * 1.5 + 3) / 12)
    assert actual.estimate == pytest.approx(reference.mannwhitneyu(a, b).statistic / 12)
    assert actual.low < actual.estimate < actual.high
    assert stats.probability_of_improvement(b, a).estimate == pytest.approx(1 - actual.estimate)
    assert stats.probability_of_improvement([1.0], [0.0])[:1] == (1.0,)


def test_the_interval_of_an_improvement_is_that_of_resampled_runs():
    draw = np.random.default_rng(3)
    a, b = draw.normal(0.4, 1, 9), draw.normal(0, 1, 7)
    x, y = a[draw.integers(9, size=(20_000, 9))], b[draw.integers(7, size=(20_000, 7))]
    resampled = (x[:, :, None] > y[:, None, :]).mean(axis=(1, 2))
    actual = stats.probability_of_improvement(a, b, level=0.9)
    np.testing.assert_allclose(actual[1:], np.quantile(resampled, [0.05, 0.95]), atol=0.02)


def test_iqm_is_the_mean_of_the_middle_half():
    assert stats.iqm([0, 1, 2, 3, 4, 5, 6, 700]) == pytest.approx(np.mean([2, 3, 4, 5]))
    scores = DRAW.normal(size=(7, 3))
    assert stats.iqm(scores, axis=1) == pytest.approx(reference.trim_mean(scores, 0.25, axis=1))


def test_the_interval_of_an_iqm_ignores_one_outlier():
    values = [*A, 1e6]
    actual = stats.bootstrap_interval(values, stats.iqm, level=0.5)
    assert A.min() < actual.low < actual.estimate < actual.high < A.max()


def test_values_of_random_splits_are_no_independent_sample():
    """Means of n halves of 200 numbers, held against the mean that these were drawn from."""
    draw, plain, widened = np.random.default_rng(5), 0, 0
    for _ in range(200):
        numbers = draw.normal(size=200)
        values = [draw.permutation(numbers)[:100].mean() for _ in range(12)]
        plain += stats.t_interval(values).low < 0 < stats.t_interval(values).high
        wide = stats.t_interval(values, resplit=1.0)
        widened += wide.low < 0 < wide.high
        assert wide.half == pytest.approx(stats.t_interval(values).half * 13**0.5)
    assert plain < 0.7 * 200
    assert widened > 0.93 * 200
    assert stats.paired(A, B, resplit=0.5).p_t > stats.paired(A, B).p_t


def test_paired_is_scipys():
    actual = stats.paired(A, B)
    t = reference.ttest_rel(A, B)
    assert actual.difference.estimate == pytest.approx(np.mean(A - B))
    assert actual.difference[1:] == pytest.approx(tuple(t.confidence_interval()))
    assert actual.p_t == pytest.approx(t.pvalue)
    assert actual.p_wilcoxon == pytest.approx(reference.wilcoxon(A, B).pvalue)
    assert (actual.wins, actual.losses, actual.n) == ((A > B).sum(), (A < B).sum(), 12)
    assert actual.p_sign == pytest.approx(reference.binomtest(actual.wins, 12).pvalue)


def test_paired_of_equal_values_claims_nothing():
    actual = stats.paired([1.0, 2.0, 3.0], [1.0, 2.0, 3.0])
    assert (actual.wins, actual.losses, actual.p_sign, actual.p_wilcoxon) == (0, 0, 1.0, 1.0)
    assert math.isnan(actual.p_t)


def test_one_seed_has_no_interval():
    for actual in (stats.t_interval([2.0]), stats.bootstrap_interval([2.0])):
        assert actual.estimate == 2.0
        assert math.isnan(actual.low)
        assert math.isnan(actual.high)
    assert math.isnan(stats.paired([2.0], [1.0]).p_t)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: stats.t_interval([]), "non-empty"),
        (lambda: stats.t_interval([[1.0, 2.0]]), r"shape \(1, 2\)"),
        (lambda: stats.t_interval([1.0, 2.0], level=95), "between 0 and 1"),
        (lambda: stats.paired([1.0], [1.0, 2.0]), "1 and 2"),
    ],
)
def test_mistakes_are_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_t_intervals_are_those_of_the_columns_without_nans():
    table = DRAW.normal(size=(6, 4))
    table[2:, 1], table[1:, 2], table[:, 3] = math.nan, math.nan, math.nan
    actual = np.array(stats.t_intervals(table, 0.9)).T
    for column, row in zip(table.T[:3], actual, strict=False):
        known = column[np.isfinite(column)]
        assert tuple(row) == pytest.approx(tuple(stats.t_interval(known, 0.9)), nan_ok=True)
    assert np.isnan(actual[3]).all()


def test_paired_differences_equal_but_for_round_off_have_no_p():
    a = np.array([0.1, 0.2, 0.3])
    assert math.isnan(stats.paired(a + 0.7, a).p_t)


def test_holms_correction():
    """Against its definition, and the smallest number of true hypotheses it must hold for."""
    assert stats.holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    p = DRAW.uniform(size=9) ** 3
    ordered = sorted(p)
    expected = [
        max(min(1.0, (9 - j) * q) for j, q in enumerate(ordered[: ordered.index(x) + 1])) for x in p
    ]
    assert stats.holm(p) == pytest.approx(expected)
    assert stats.holm([np.nan, 0.2, np.nan]) == pytest.approx([np.nan, 0.2, np.nan], nan_ok=True)
    assert stats.holm([]).shape == (0,)
    # Under the null hypothesis, of 20 comparisons in a table one at 5 % in 5 % of the tables.
    rejected = (
        np.array([stats.holm(row).min() for row in DRAW.uniform(size=(2000, 20))]) < 0.05
    ).mean()
    assert 0.03 < rejected < 0.07
