"""Figures of binary outcomes: against scikit-learn and scipy, and in closed form."""

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics

from metaopt.metrics import binary


@pytest.fixture(scope="module")
def examples():
    """Scores from 1 to 10 in steps of 0.5, with outcomes."""
    draw = np.random.default_rng(0)
    outcomes = (draw.random(600) < 0.3).astype(int)
    noise = draw.normal(scale=1.4, size=600)
    return np.clip(np.round(2 * (4 + 2 * outcomes + noise)) / 2, 1, 10), outcomes


def test_auroc_with_ties_is_scikit_learns(examples):
    scores, outcomes = examples
    assert binary.auroc(scores, outcomes) == pytest.approx(metrics.roc_auc_score(outcomes, scores))
    coarse = np.round(scores / 4)
    assert binary.auroc(coarse, outcomes) == pytest.approx(metrics.roc_auc_score(outcomes, coarse))


def test_auroc_of_one_class_is_none_and_of_equal_scores_a_half():
    assert binary.auroc([1.0, 2.0], [1, 1]) is None
    assert binary.auroc([], []) is None
    assert binary.auroc([3.0, 3.0, 3.0], [1, 0, 0]) == 0.5


def test_rows_without_a_score_are_left_out():
    assert binary.auroc([1.0, None, 2.0, np.nan], [0, 1, 1, 0]) == 1.0
    assert binary.brier([0.5, None], [1, 0]) == 0.25


def test_brier_and_skill_are_scikit_learns(examples):
    outcomes = examples[1]
    p = np.random.default_rng(1).random(len(outcomes))
    expected = metrics.brier_score_loss(outcomes, p)
    reference = metrics.brier_score_loss(outcomes, np.full(len(outcomes), outcomes.mean()))
    assert binary.brier(p, outcomes) == pytest.approx(expected)
    (skill,) = binary.weighted_brier_skill(np.ones((1, len(p))), p, outcomes)
    assert skill == pytest.approx(1 - expected / reference)
    assert np.isnan(binary.weighted_brier_skill(np.ones((1, 2)), np.ones(2), np.ones(2)))


def test_kappa_and_confusion_are_scikit_learns(examples):
    scores, outcomes = examples
    decided = (scores >= 5.0).astype(float)
    cells = binary.counts(np.ones((1, len(outcomes))), decided, outcomes)
    np.testing.assert_array_equal(cells, metrics.confusion_matrix(outcomes, decided).reshape(4, 1))
    assert binary.kappa(decided, outcomes) == pytest.approx(
        metrics.cohen_kappa_score(outcomes, decided)
    )
    assert binary.kappa([1, 1], [1, 1]) is None


def test_calibration_error_in_closed_form():
    outcomes = np.tile([0, 0, 0, 1], 25)
    assert binary.expected_calibration_error(np.full(100, 0.25), outcomes) == pytest.approx(0)
    assert binary.expected_calibration_error(np.full(100, 0.6), outcomes) == pytest.approx(0.35)
    halves = np.repeat([0.1, 0.9], 50)
    none = np.zeros(100)
    assert binary.expected_calibration_error(halves, none) == pytest.approx(0.5)


def test_bins_have_equal_mass_and_keep_ties_together():
    draw = np.random.default_rng(2)
    p = draw.random(1000)
    distinct = binary.reliability(p, p > 0.5)
    np.testing.assert_array_equal(distinct.size, 100)
    np.testing.assert_allclose(distinct.probability, np.sort(p).reshape(10, 100).mean(1))
    tied = binary.reliability([0.1] * 10 + [0.2] * 70 + [0.9] * 20, [0] * 80 + [1] * 20)
    np.testing.assert_array_equal(tied.size, [10, 70, 20])
    np.testing.assert_array_equal(tied.observed, [0, 0, 1])


def test_with_many_bins_each_probability_has_its_own(examples):
    p, outcomes = examples[0] / 10, examples[1]
    ours = binary.reliability(p, outcomes, bins=10_000)
    for level, rate in zip(ours.probability, ours.observed, strict=True):
        assert rate == pytest.approx(outcomes[np.isclose(p, level)].mean())
    assert ours.size.sum() == len(p)


def test_wilsons_interval_is_scipys():
    result = binary.reliability([0.3] * 40, [1] * 13 + [0] * 27)
    expected = stats.binomtest(13, 40).proportion_ci(method="wilson")
    assert (result.low[0], result.high[0]) == pytest.approx((expected.low, expected.high))
    assert binary.wilson(13 / 40, 40) == pytest.approx((expected.low, expected.high))
    low, high = binary.wilson([0.0, 1.0], [7, 7])
    assert low[0] == 0
    assert high[1] == 1


def test_rogan_gladen_inverts_the_apparent_rate():
    prevalence = np.array([0.0, 0.04, 0.5, 1.0])
    errors = np.full(4, 0.8), np.full(4, 0.7)
    apparent = 0.8 * prevalence + (1 - 0.7) * (1 - prevalence)
    np.testing.assert_allclose(binary.rogan_gladen(apparent, *errors), prevalence, atol=1e-12)
    clipped = binary.rogan_gladen(np.array([0.1, 0.9]), np.full(2, 0.8), np.full(2, 0.7))
    np.testing.assert_array_equal(clipped, [0, 1])
    useless = binary.rogan_gladen(np.full(2, 0.4), np.array([0.6, 0.3]), np.full(2, 0.4))
    assert np.isnan(useless).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: binary.auroc([1.0], [0.5]), "outcomes must be 0 or 1; got 0.5"),
        (lambda: binary.auroc([1.0, 2.0], [1]), "one number per example"),
        (lambda: binary.auroc([np.inf], [1]), "infinite"),
        (lambda: binary.auroc([[1.0]], [[1]]), r"a list .* the shape \(1, 1\)"),
        (lambda: binary.brier([1.2], [1]), r"in \[0, 1\]; got 1.2"),
        (lambda: binary.kappa([0.3], [1]), "decisions must be 0 or 1; got 0.3"),
        (lambda: binary.reliability([0.2], [1], bins=0), "bins must be >= 1"),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
