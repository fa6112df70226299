"""Numbers of a judge: against scikit-learn and scipy, in closed form, and in simulations."""

import json

import numpy as np
import pytest
from scipy import stats
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


def test_auroc_with_ties_is_scikit_learns(rows):
    scores, outcomes, _ = rows
    assert calibration.auroc(scores, outcomes) == pytest.approx(
        metrics.roc_auc_score(outcomes, scores)
    )
    coarse = np.round(scores / 4)
    assert calibration.auroc(coarse, outcomes) == pytest.approx(
        metrics.roc_auc_score(outcomes, coarse)
    )


def test_auroc_of_one_class_is_none_and_of_equal_scores_a_half():
    assert calibration.auroc([1.0, 2.0], [1, 1]) is None
    assert calibration.auroc([], []) is None
    assert calibration.auroc([3.0, 3.0, 3.0], [1, 0, 0]) == 0.5


def test_rows_without_a_score_are_left_out():
    assert calibration.auroc([1.0, None, 2.0, np.nan], [0, 1, 1, 0]) == 1.0
    assert calibration.brier([0.5, None], [1, 0]) == 0.25


def test_brier_and_skill_are_scikit_learns(rows):
    outcomes = rows[1]
    p = np.random.default_rng(1).random(ROWS)
    expected = metrics.brier_score_loss(outcomes, p)
    reference = metrics.brier_score_loss(outcomes, np.full(ROWS, outcomes.mean()))
    assert calibration.brier(p, outcomes) == pytest.approx(expected)
    assert calibration.brier_skill(p, outcomes) == pytest.approx(1 - expected / reference)
    assert calibration.brier_skill(p, np.ones(ROWS)) is None


def test_kappa_and_confusion_are_scikit_learns(rows, judge):
    scores, outcomes, _ = rows
    decided = judge.decide(scores)
    assert calibration.confusion(decided, outcomes) == tuple(
        metrics.confusion_matrix(outcomes, decided).ravel()
    )
    assert calibration.kappa(decided, outcomes) == pytest.approx(
        metrics.cohen_kappa_score(outcomes, decided)
    )
    assert calibration.kappa([1, 1], [1, 1]) is None


def test_calibration_error_in_closed_form():
    outcomes = np.tile([0, 0, 0, 1], 25)
    assert calibration.expected_calibration_error(np.full(100, 0.25), outcomes) == pytest.approx(0)
    assert calibration.expected_calibration_error(np.full(100, 0.6), outcomes) == pytest.approx(
        0.35
    )
    halves = np.repeat([0.1, 0.9], 50)
    none = np.zeros(100)
    assert calibration.expected_calibration_error(halves, none) == pytest.approx(0.5)


def test_bins_have_equal_mass_and_keep_ties_together():
    draw = np.random.default_rng(2)
    p = draw.random(1000)
    distinct = calibration.reliability(p, p > 0.5)
    np.testing.assert_array_equal(distinct.rows, 100)
    np.testing.assert_allclose(distinct.probability, np.sort(p).reshape(10, 100).mean(1))
    tied = calibration.reliability([0.1] * 10 + [0.2] * 70 + [0.9] * 20, [0] * 80 + [1] * 20)
    np.testing.assert_array_equal(tied.rows, [10, 70, 20])
    np.testing.assert_array_equal(tied.observed, [0, 0, 1])


def test_with_many_bins_each_probability_has_its_own(rows, judge):
    p, outcomes = judge.probability(rows[0]), rows[1]
    ours = calibration.reliability(p, outcomes, bins=10_000)
    for level, rate in zip(ours.probability, ours.observed, strict=True):
        assert rate == pytest.approx(outcomes[np.isclose(p, level)].mean())
    assert ours.rows.sum() == ROWS


def test_wilsons_interval_is_scipys():
    found = calibration.reliability([0.3] * 40, [1] * 13 + [0] * 27)
    expected = stats.binomtest(13, 40).proportion_ci(method="wilson")
    assert (found.low[0], found.high[0]) == pytest.approx((expected.low, expected.high))


@pytest.mark.parametrize("criterion", ["youden", "kappa"])
@pytest.mark.parametrize("base", [0.05, 0.5])
def test_threshold_is_the_best_of_all(criterion, base):
    scores, outcomes, _ = draw_rows(3, base=base)

    def quality(threshold):
        decided = scores >= threshold
        if criterion == "kappa":
            return metrics.cohen_kappa_score(outcomes, decided)
        return metrics.balanced_accuracy_score(outcomes, decided)

    found = calibration.best_threshold(scores, outcomes, criterion)
    assert quality(found) == pytest.approx(max(quality(t) for t in np.arange(1, 10.5, 0.5)))
    assert not np.isclose(scores, found).any()


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
    unbounded = CalibratedJudge.fit("steps", [-1.0, 0.5, 2.0], [0, 1, 1], criterion="kappa")
    assert CalibratedJudge.from_dict(json.loads(json.dumps(unbounded.to_dict()))) == unbounded


def test_no_score_is_no_probability_and_no_decision(judge):
    for found in (judge.probability([None, 5.0]), judge.decide([None, 5.0])):
        assert np.isnan(found[0])
        assert np.isfinite(found[1])


def test_rogan_gladen_inverts_the_apparent_rate():
    for prevalence in (0.0, 0.04, 0.5, 1.0):
        apparent = 0.8 * prevalence + (1 - 0.7) * (1 - prevalence)
        assert calibration.rogan_gladen(apparent, 0.8, 0.7) == pytest.approx(prevalence)
    assert calibration.rogan_gladen(0.1, 0.8, 0.7) == 0.0
    assert calibration.rogan_gladen(0.9, 0.8, 0.7) == 1.0
    assert calibration.rogan_gladen(0.4, 0.6, 0.4) is None
    assert calibration.rogan_gladen(0.4, 0.3, 0.4) is None


def test_measured_numbers_are_those_of_the_single_functions(judge):
    scores, outcomes, queries = draw_rows(5)
    scores[::50] = np.nan
    has = np.isfinite(scores)
    found = calibration.measure(judge, scores, outcomes, queries, resamples=50)
    p, decided = judge.probability(scores)[has], judge.decide(scores)[has]
    matrix = metrics.confusion_matrix(outcomes[has], decided)
    assert found["auroc"] == pytest.approx(metrics.roc_auc_score(outcomes[has], scores[has]))
    assert found["brier"] == pytest.approx(metrics.brier_score_loss(outcomes[has], p))
    assert found["kappa"] == pytest.approx(metrics.cohen_kappa_score(outcomes[has], decided))
    assert [found[name] for name in ("tn", "fp", "fn", "tp")] == matrix.ravel().tolist()
    assert found["sensitivity"] == pytest.approx(metrics.recall_score(outcomes[has], decided))
    assert found["specificity"] == pytest.approx(matrix[0, 0] / matrix[0].sum())
    assert (found["n"], found["scored"], found["queries"]) == (ROWS, has.sum(), ROWS / 4)
    assert found["coverage"] == pytest.approx(0.98)
    assert found["base_rate"] == pytest.approx(outcomes.mean())
    assert found["scored_base_rate"] == pytest.approx(outcomes[has].mean())
    for name in calibration.BOUNDED:
        assert found[f"{name}_low"] <= found[name] <= found[f"{name}_high"]
    assert found == calibration.measure(judge, scores, outcomes, queries, resamples=50)
    assert found == json.loads(json.dumps(found))


def test_measure_without_a_single_score_says_so(judge):
    found = calibration.measure(judge, [None, None], [0, 1], ["a", "b"])
    assert (found["coverage"], found["scored"], found["base_rate"]) == (0.0, 0, 0.5)
    assert all(found[k] is None for k in ("auroc", "brier", "ece", "kappa", "corrected_rate"))


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
        found = calibration.measure(judge, *draw_rows(100 + seed), seed=seed, resamples=300)
        for name, value in truth.items():
            covered[name] += found[f"{name}_low"] <= value <= found[f"{name}_high"]
    assert all(0.89 <= n / 150 <= 0.995 for n in covered.values()), covered


def test_the_corrected_rate_recovers_what_the_judge_distorts(judge):
    found = calibration.measure(judge, *draw_rows(7, 40_000), resamples=1)
    assert abs(found["apparent_rate"] - 0.3) > 0.02
    assert found["corrected_rate"] == pytest.approx(0.3, abs=0.02)
    assert found["checked_rate"] == pytest.approx(0.3, abs=0.01)


@pytest.mark.slow
def test_copies_within_a_query_do_not_narrow_the_interval(judge, rows):
    scores, outcomes, _ = rows
    each = np.arange(ROWS)
    copies = [np.repeat(column, 4) for column in (scores, outcomes, each)]

    def width(scores, outcomes, queries):
        found = calibration.measure(judge, scores, outcomes, queries)
        return found["auroc_high"] - found["auroc_low"]

    honest = width(scores, outcomes, each)
    assert width(*copies) == pytest.approx(honest, rel=0.02)
    assert width(copies[0], copies[1], np.arange(4 * ROWS)) == pytest.approx(honest / 2, rel=0.1)


def test_clustered_interval_of_a_mean_is_the_t_interval_of_cluster_means():
    values = np.random.default_rng(8).normal(size=200)
    found = calibration.clustered_intervals(
        lambda w: {"mean": w @ np.repeat(values, 3) / w.sum(1)}, np.repeat(np.arange(200), 3)
    )
    half = stats.sem(values) * stats.norm.ppf(0.975)
    assert found["mean"] == pytest.approx((values.mean() - half, values.mean() + half), abs=0.02)


def test_blocks_of_resamples_change_nothing(monkeypatch):
    queries = np.repeat(np.arange(50), 2)
    whole = np.concatenate(list(calibration.resampling.cluster_weights(queries, 30)))
    monkeypatch.setattr(calibration.resampling, "BLOCK", 700)
    parts = list(calibration.resampling.cluster_weights(queries, 30))
    assert len(parts) == 5
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    np.testing.assert_array_equal(whole.sum(1), 100)
    np.testing.assert_array_equal(whole[:, ::2], whole[:, 1::2])


def test_undefined_resamples_count_against_both_ends():
    rare = calibration.clustered_intervals(
        lambda w: {"rate": np.where(w[:, 0] > 0, w[:, 0], np.nan)}, np.arange(40)
    )
    assert rare["rate"] == (None, None)  # a row is missing from 36 % of the resamples
    assert calibration.clustered_intervals(lambda w: {"n": w.sum(1)}, [1, 1]) == {"n": (None, None)}


def test_compare_is_paired(judge):
    scores, outcomes, queries = draw_rows(9)
    blurred = np.clip(scores + np.random.default_rng(10).normal(size=ROWS), *RANGE)
    found = calibration.compare(judge, blurred, judge, scores, outcomes, queries)
    expected = metrics.roc_auc_score(outcomes, scores) - metrics.roc_auc_score(outcomes, blurred)
    assert found["auroc"] == pytest.approx(expected)
    assert 0 < found["auroc_low"] < found["auroc"] < found["auroc_high"]
    apart = [calibration.measure(judge, s, outcomes, queries) for s in (blurred, scores)]
    alone = [numbers["auroc_high"] - numbers["auroc_low"] for numbers in apart]
    assert found["auroc_high"] - found["auroc_low"] < 0.7 * np.hypot(*alone)
    same = calibration.compare(judge, scores, judge, scores, outcomes, queries)
    assert (same["auroc_low"], same["auroc"], same["auroc_high"]) == (0, 0, 0)


def test_compare_takes_the_rows_that_both_have_scored(judge):
    scores, outcomes, queries = draw_rows(11)
    first, second = scores.copy(), scores.copy()
    first[:20], second[-30:] = np.nan, np.nan
    found = calibration.compare(judge, first, judge, second, outcomes, queries, resamples=20)
    assert found["n"] == ROWS - 50
    assert found["auroc"] == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: calibration.auroc([1.0], [0.5]), "outcomes must be 0 or 1; got 0.5"),
        (lambda: calibration.auroc([1.0, 2.0], [1]), "one number a row"),
        (lambda: calibration.auroc([np.inf], [1]), "infinite"),
        (lambda: calibration.brier([1.2], [1]), r"in \[0, 1\]; got 1.2"),
        (lambda: calibration.reliability([0.2], [1], bins=0), "bins must be >= 1"),
        (lambda: calibration.rogan_gladen(1.5, 0.8, 0.8), "apparent is a share"),
        (lambda: calibration.best_threshold([1, 2], [0, 1], "f1"), "youden, kappa; got 'f1'"),
        (lambda: CalibratedJudge.fit("t", [1.0, 2.0], [0, 0]), "0 successes and 2 failures"),
        (lambda: CalibratedJudge.fit("t", [1.0, 12.0], [0, 1], RANGE), "parse failure"),
        (lambda: CalibratedJudge("t", 1.0, ((2.0, 0.5), (1.0, 0.6))), "knots must be"),
        (lambda: CalibratedJudge("t", 1.0, ((1.0, 0.5), (2.0, 1.6))), "knots must be"),
        (lambda: CalibratedJudge("t", np.nan, ((1.0, 0.5),)), "threshold must be"),
        (lambda: CalibratedJudge("t", 1.0, ((1.0, 0.5),), (3.0, 1.0)), "score_range must be"),
        (lambda: CalibratedJudge.from_dict({"template": "t"}), "a judge has the keys"),
        (lambda: list(calibration.resampling.cluster_weights([1], 0)), "resamples must be"),
        (lambda: calibration.clustered_intervals(lambda w: {}, [1, 2], level=95), "level must be"),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_queries_need_one_label_a_row(judge):
    with pytest.raises(ValueError, match="queries must be a list"):
        calibration.measure(judge, [1.0, 2.0], [0, 1], ["a"])
