import math

import numpy as np
import pytest
from run_folders import REPORT, write_run

from metaopt.report.collect import ReportError, collect
from metaopt.report.figures import Curve
from metaopt.report.ranges import UNBOUNDED, metric_range
from metaopt.report.settings import Settings, settings_for
from metaopt.report.sweep_figures import Band
from metaopt.report.tables import Summary


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("eval/hack_rate", [0.2], (0.0, 1.0)),
        ("eval/kl", [0.0, 4.5], (0.0, math.inf)),
        ("eval/kl", [-0.1], UNBOUNDED),
        ("eval/training_calls", [60000.0], (0.0, math.inf)),
        ("eval/ndcg_8", [0.4], (0, 1)),
        ("eval/redundancy", [0.9], (0, 1)),
        ("eval/first_error_f1", [0.0, 0.9], (0, 1)),
        ("eval/first_error_f1", [0.5, 61.0], (0, 100)),
        ("eval/uniform/step_auroc", [0.6, math.nan], (0, 1)),
        ("eval/pass_at_64", [98.0], (0, 100)),
        ("eval/test_accuracy", [], (0, 1)),
        ("eval/accuracy_gain", [0.1], UNBOUNDED),
        ("eval/test_loss", [0.1], UNBOUNDED),
        ("eval/auc", [120.0], UNBOUNDED),
        ("eval/success", [-0.5], UNBOUNDED),
        ("eval/success", [150.0], UNBOUNDED),
        ("eval/best_of_16", [0.4], UNBOUNDED),
    ],
)
def test_the_range_follows_from_the_name_and_the_values(name, values, expected):
    assert metric_range(name, values) == expected


def test_a_band_ends_where_its_metric_does():
    steps = np.array([1.0, 2.0])
    curves = [Curve(steps, steps, np.array([0.0, x])) for x in (0.9, 1.0, 1.0)]
    band = Band(curves, 1.0, 0.95, 0.0, (0.0, 1.0))
    free = Band(curves, 1.0, 0.95, 0.0, UNBOUNDED)
    assert free.high[1] > 1.0 == band.high[1]
    assert band.low[1] == free.low[1] > 0


def test_on_a_logarithmic_axis_a_band_is_positive_and_nearly_the_interval():
    steps = np.array([1.0, 2.0])
    curves = [Curve(steps, steps, np.array([x, 100 + x])) for x in (0.1, 5.0, 0.2)]
    band = Band(curves, 1.0, 0.95, 0.0, UNBOUNDED)
    assert band.low[0] < 0 < band.log_low[0] < band.mean.value[0]
    assert band.low[1] < band.log_low[1] < band.low[1] + 0.5


def test_a_band_has_the_steps_that_all_seeds_have():
    early = Curve(np.array([1.0, 2.0]), np.array([5.0, 10.0]), np.array([1.0, 3.0]))
    late = Curve(np.array([2.0, 3.0]), np.array([10.0, 15.0]), np.array([5.0, 9.0]))
    band = Band([early, late], 2.0, 0.95, 0.0, UNBOUNDED)
    assert [part.tolist() for part in band.mean] == [[2], [10], [8]]
    apart = Band([early, late._replace(outer=np.array([4.0, 5.0]))], 1.0, 0.95, 0.0, UNBOUNDED)
    assert apart.mean.outer.tolist() == [1, 2, 4, 5]


def summary(folder, **report):
    for seed in range(2):
        write_run(folder / str(seed), seed, "plain", report={**REPORT, **report})
    runs = collect(folder)
    return Summary(runs, settings_for(runs, None, None))


def test_a_range_is_scaled_as_the_numbers_are(tmp_path):
    assert summary(tmp_path).within("eval/accuracy") == (0, 100)
    assert summary(tmp_path / "a").within("eval/loss") == UNBOUNDED


def test_a_report_may_state_a_range(tmp_path):
    stated = {"eval/l*": [0, 2], "eval/accuracy": [0.5, 1]}
    made = summary(tmp_path, ranges=stated)
    assert (made.within("eval/loss"), made.within("eval/accuracy")) == ((0, 2), (50, 100))
    with pytest.raises(ReportError, match=r"lowest and its highest value, such as \[0, 100\]"):
        summary(tmp_path / "a", ranges={"eval/loss": [2, 0]})


@pytest.mark.parametrize(
    ("name", "lower"),
    [
        ("eval/test_loss", True), ("eval/uniform/ece", True), ("eval/calibrated_brier", True),
        ("eval/first_error_f1", False), ("eval/brier_skill", False), ("eval/error_recall", False),
        ("eval/accuracy_10", False), ("eval/success", False), ("eval/return_error", True),
        ("eval/piece", False),
    ],
)  # fmt: skip
def test_which_way_is_better_follows_from_the_end_of_a_name(name, lower):
    assert Settings().lower(name) is lower
    assert Settings(lower_is_better=[name]).lower(name)
