"""A calibrated judge and its figures: against scikit-learn, and in simulations."""

import json

import numpy as np
import pytest
from sklearn import metrics
from sklearn.isotonic import IsotonicRegression

from metaopt.metrics import calibration
from metaopt.metrics.calibration import CalibratedJudge

ROWS, RANGE = 600, (1.0, 10.0)


def draw_rows(seed, rows=ROWS, per_query=4, gap=2.0, base=0.3):
    """Scores from 1 to 10 in steps of 0.5; rows of a query share part of their noise."""
    draw = np.random.default_rng(seed)
    queries = np.repeat(np.arange(rows // per_query), per_query)
    outcomes = (draw.random(rows) < base).astype(int)
    noise = draw.normal(size=rows) + draw.normal(size=rows // per_query)[queries]
    return np.clip(np.round(2 * (4 + gap * outcomes + noise)) / 2, *RANGE), outcomes, queries


@pytest.fixture(scope="module")
def rows():
    return draw_rows(0)


@pytest.fixture(scope="module")
def judge(rows):
    return CalibratedJudge.fit("Score the answer.", rows[0], rows[1], RANGE)


@pytest.mark.parametrize("base", [0.05, 0.5])
def test_threshold_is_the_best_of_all(base):
    scores, outcomes, _ = draw_rows(3, base=base)

    def quality(threshold):
        return metrics.balanced_accuracy_score(outcomes, scores >= threshold)

    result = calibration.best_threshold(scores, outcomes)
    assert quality(result) == pytest.approx(max(quality(t) for t in np.arange(1, 10.5, 0.5)))
    assert not np.isclose(scores, result).any()


def test_youdens_threshold_is_the_top_of_scikit_learns_roc_curve(rows):
    scores, outcomes, _ = rows
    fpr, tpr, _ = metrics.roc_curve(outcomes, scores)
    decided = scores >= calibration.best_threshold(scores, outcomes)
    reached = decided[outcomes == 1].mean() - decided[outcomes == 0].mean()
    assert reached == pytest.approx((tpr - fpr).max())


def test_threshold_between_neighbouring_floats_parts_them():
    low, high = 1.0, np.nextafter(1.0, 2.0)
    threshold = calibration.best_threshold([low, high], [0, 1])
    assert low < threshold <= high


def test_a_judge_that_ranks_backwards_is_flat_and_corrects_nothing():
    judge = CalibratedJudge.fit("backwards", [1.0, 2.0, 3.0, 4.0], [1, 1, 0, 0])
    assert judge.threshold == 1.0
    np.testing.assert_allclose(judge.probability([0.0, 2.5, 9.0]), 0.5)
    numbers = calibration.measure(judge, [1.0, 2.0, 3.0, 4.0] * 5, [1, 0] * 10, range(20))
    assert numbers["corrected_rate"] is None
    assert numbers["corrected_rate_low"] is None


def test_knots_interpolate_as_scikit_learn_predicts(rows, judge):
    scores, outcomes, _ = rows
    reference = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(scores, outcomes)
    at = np.linspace(*RANGE, 181)
    np.testing.assert_allclose(judge.probability(at), reference.predict(at), atol=1e-12)
    free = CalibratedJudge("reward model", 0.0, judge.knots)
    np.testing.assert_allclose(free.probability([-50, 50]), reference.predict([-50, 50]))


def test_judge_survives_json(judge):
    again = CalibratedJudge.from_dict(json.loads(json.dumps(judge.to_dict())))
    assert again == judge
    unbounded = CalibratedJudge.fit("steps", [-1.0, 0.5, 2.0], [0, 1, 1])
    assert CalibratedJudge.from_dict(json.loads(json.dumps(unbounded.to_dict()))) == unbounded


def test_no_score_is_no_probability_and_no_decision(judge):
    for result in (judge.probability([None, 5.0]), judge.decide([None, 5.0])):
        assert np.isnan(result[0])
        assert np.isfinite(result[1])


def test_measured_numbers_are_those_of_the_single_functions(judge):
    scores, outcomes, queries = draw_rows(5)
    scores[::50] = np.nan
    has = np.isfinite(scores)
    result = calibration.measure(judge, scores, outcomes, queries, resamples=50)
    p, decided = judge.probability(scores)[has], judge.decide(scores)[has]
    matrix = metrics.confusion_matrix(outcomes[has], decided)
    assert result["auroc"] == pytest.approx(metrics.roc_auc_score(outcomes[has], scores[has]))
    assert result["brier"] == pytest.approx(metrics.brier_score_loss(outcomes[has], p))
    assert result["kappa"] == pytest.approx(metrics.cohen_kappa_score(outcomes[has], decided))
    assert [result[name] for name in ("tn", "fp", "fn", "tp")] == matrix.ravel().tolist()
    assert result["sensitivity"] == pytest.approx(metrics.recall_score(outcomes[has], decided))
    assert result["specificity"] == pytest.approx(matrix[0, 0] / matrix[0].sum())
    assert (result["n"], result["scored"], result["queries"]) == (ROWS, has.sum(), ROWS / 4)
    assert result["coverage"] == pytest.approx(0.98)
    assert result["base_rate"] == pytest.approx(outcomes.mean())
    assert result["scored_base_rate"] == pytest.approx(outcomes[has].mean())
    bounded = {name.removesuffix("_low") for name in result if name.endswith("_low")}
    assert bounded == {
        "base_rate", "auroc", "brier", "brier_skill", "kappa", "sensitivity", "specificity",
        "apparent_rate", "corrected_rate", "checked_rate",
    }  # fmt: skip
    for name in bounded:
        assert result[f"{name}_low"] <= result[name] <= result[f"{name}_high"]
    assert result == calibration.measure(judge, scores, outcomes, queries, resamples=50)
    assert result == json.loads(json.dumps(result))


def test_measure_without_a_single_score_says_so(judge):
    result = calibration.measure(judge, [None, None], [0, 1], ["a", "b"])
    assert (result["coverage"], result["scored"], result["base_rate"]) == (0.0, 0, 0.5)
    assert all(result[k] is None for k in ("auroc", "brier", "ece", "kappa", "corrected_rate"))


@pytest.mark.slow
def test_intervals_cover_as_often_as_they_say(judge):
    """The truth is the number on 400,000 rows; 150 repeats have a standard error of 1.8 %."""
    scores, outcomes, _ = draw_rows(6, 400_000)
    truth = {
        "auroc": metrics.roc_auc_score(outcomes, scores),
        "brier": metrics.brier_score_loss(outcomes, judge.probability(scores)),
        "kappa": metrics.cohen_kappa_score(outcomes, judge.decide(scores)),
        "corrected_rate": 0.3,
    }
    covered = dict.fromkeys(truth, 0)
    for seed in range(150):
        result = calibration.measure(judge, *draw_rows(100 + seed), seed=seed, resamples=300)
        for name, value in truth.items():
            covered[name] += result[f"{name}_low"] <= value <= result[f"{name}_high"]
    assert all(0.89 <= n / 150 <= 0.995 for n in covered.values()), covered


def test_the_corrected_rate_recovers_what_the_judge_distorts(judge):
    result = calibration.measure(judge, *draw_rows(7, 40_000), resamples=1)
    assert abs(result["apparent_rate"] - 0.3) > 0.02
    assert result["corrected_rate"] == pytest.approx(0.3, abs=0.02)
    assert result["checked_rate"] == pytest.approx(0.3, abs=0.01)


@pytest.mark.slow
def test_copies_within_a_query_do_not_narrow_the_interval(judge, rows):
    scores, outcomes, _ = rows
    each = np.arange(ROWS)
    copies = [np.repeat(column, 4) for column in (scores, outcomes, each)]

    def width(scores, outcomes, queries):
        result = calibration.measure(judge, scores, outcomes, queries)
        return result["auroc_high"] - result["auroc_low"]

    honest = width(scores, outcomes, each)
    assert width(*copies) == pytest.approx(honest, rel=0.02)
    assert width(copies[0], copies[1], np.arange(4 * ROWS)) == pytest.approx(honest / 2, rel=0.1)


@pytest.mark.slow
def test_compare_is_paired(judge):
    scores, outcomes, queries = draw_rows(9)
    blurred = np.clip(scores + np.random.default_rng(10).normal(size=ROWS), *RANGE)
    result = calibration.compare(judge, blurred, judge, scores, outcomes, queries)
    expected = metrics.roc_auc_score(outcomes, scores) - metrics.roc_auc_score(outcomes, blurred)
    assert result["auroc"] == pytest.approx(expected)
    assert 0 < result["auroc_low"] < result["auroc"] < result["auroc_high"]
    apart = [calibration.measure(judge, s, outcomes, queries) for s in (blurred, scores)]
    alone = [numbers["auroc_high"] - numbers["auroc_low"] for numbers in apart]
    assert result["auroc_high"] - result["auroc_low"] < 0.7 * np.hypot(*alone)
    same = calibration.compare(judge, scores, judge, scores, outcomes, queries)
    assert (same["auroc_low"], same["auroc"], same["auroc_high"]) == (0, 0, 0)


def test_compare_takes_the_rows_that_both_have_scored(judge):
    scores, outcomes, queries = draw_rows(11)
    first, second = scores.copy(), scores.copy()
    first[:20], second[-30:] = np.nan, np.nan
    result = calibration.compare(judge, first, judge, second, outcomes, queries, resamples=20)
    assert result["n"] == ROWS - 50
    assert result["auroc"] == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: CalibratedJudge.fit("t", [1.0, 2.0], [0, 0]), "0 successes and 2 failures"),
        (lambda: CalibratedJudge.fit("t", [1.0, 12.0], [0, 1], RANGE), "parse failure"),
        (lambda: CalibratedJudge("t", 1.0, ((2.0, 0.5), (1.0, 0.6))), "knots must be"),
        (lambda: CalibratedJudge("t", 1.0, ((1.0, 0.5), (2.0, 1.6))), "knots must be"),
        (lambda: CalibratedJudge("t", np.nan, ((1.0, 0.5),)), "threshold must be"),
        (lambda: CalibratedJudge("t", 1.0, ((1.0, 0.5),), (3.0, 1.0)), "score_range must be"),
        (lambda: CalibratedJudge.from_dict({"template": "t"}), "a judge has the keys"),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_queries_need_one_label_a_row(judge):
    with pytest.raises(ValueError, match="queries must be a list"):
        calibration.measure(judge, [1.0, 2.0], [0, 1], ["a"])
