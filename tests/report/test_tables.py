import json

import numpy as np
import pytest
from run_folders import REPORT, accuracy, cells, write_run

from metaopt.report.collect import collect
from metaopt.report.command import main
from metaopt.report.figures import Curve
from metaopt.report.ranges import UNBOUNDED
from metaopt.report.settings import settings_for
from metaopt.report.stats import bootstrap_interval, iqm, paired, t_interval
from metaopt.report.sweep_figures import Band


def test_intervals_over_splits_of_one_data_set_are_wider(tmp_path, capsys):
    for seed in range(4):
        for row in ("plain", "better"):
            write_run(tmp_path / f"{row}-{seed}", seed, row, report=REPORT, resplit=0.5)
    assert main([str(tmp_path)]) == 0
    text = (tmp_path / "report" / "table.md").read_text()
    half = t_interval([100 * accuracy("plain", seed) for seed in range(4)]).half * 3**0.5
    assert cells(text, "plain")[2].endswith(f"± {half:.1f}")
    assert "splits of one data set by Nadeau and Bengio's factor sqrt(1 + 0.5 n)" in text
    assert "tests that take the splits to be independent are not shown" in text
    assert "| better on | p (t) |\n" in text
    assert main([str(tmp_path), "--interval", "bootstrap"]) == 2
    assert "are splits of one data set; use --interval t" in capsys.readouterr().err


def test_the_band_of_learning_curves_over_splits_is_as_wide_as_the_interval():
    curves = [Curve(np.array([1.0]), np.array([1.0]), np.array([v])) for v in (0.1, 0.3, 0.4)]
    narrow, wide = (Band(curves, 1.0, 0.95, resplit, UNBOUNDED) for resplit in (0.0, 0.5))
    assert wide.high[0] == pytest.approx(t_interval([0.1, 0.3, 0.4], resplit=0.5).high)
    assert wide.high - wide.low == pytest.approx((narrow.high - narrow.low) * 2.5**0.5)


def test_p_values_are_corrected_for_the_number_of_comparisons(sweep):
    main([str(sweep), "--metrics", "eval/accuracy", "eval/loss"])
    text = (sweep / "report" / "table.md").read_text()
    a, b = ([accuracy(row, seed) for seed in range(4)] for row in ("better", "plain"))
    raw = paired(a, b)
    assert raw.p_t < 0.0005
    # The loss is 1 - accuracy: two equal p values, which corrected become twice as large.
    corrected = ["< 0.001", *(f"{2 * p:.3f}" for p in (raw.p_wilcoxon, raw.p_sign))]
    assert cells(text, "better | plain")[-3:] == corrected
    assert "corrected for the number of rows by Holm's method" in text


def test_costs_are_labelled_in_words(tmp_path):
    write_run(tmp_path / "a", 0, "a", budget={"hvps": 7.0, "inner_steps": 3000.0})
    main([str(tmp_path)])
    text = (tmp_path / "report" / "table.md").read_text()
    assert "| method | outer steps | inner steps | products | seconds |" in text
    assert "| a | 10 | 3,000 | 7 | 2.0 |" in text


def test_interquartile_means_are_a_column_of_their_own(sweep, tmp_path, capsys):
    assert main([str(sweep), "--columns", "iqm", "--out", str(tmp_path / "out")]) == 0
    text = (tmp_path / "out" / "table.md").read_text()
    assert "| method | n | accuracy, % | accuracy, %, IQM | eval/loss | eval/loss, IQM |" in text
    expected = bootstrap_interval([100 * accuracy("plain", seed) for seed in range(4)], iqm)
    assert cells(text, "plain")[3] == "{:.1f} [{:.1f}, {:.1f}]".format(*expected)
    assert "IQM is the interquartile mean over seeds with its 95 % percentile bootstrap" in text
    for path in sweep.glob("*/result.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"resplit": 0.5}))
    capsys.readouterr()
    assert main([str(sweep), "--columns", "iqm"]) == 2
    assert "--columns iqm: takes seeds to be independent" in capsys.readouterr().err


def test_replicates_of_a_run_count_as_seeds(tmp_path):
    values = {row: [float(accuracy(row, i)) for i in range(4)] for row in ("plain", "better")}
    for row, actual in values.items():
        replicates = {"eval/accuracy": actual, "eval/loss": [0.1, 0.2, None, 0.4]}
        write_run(tmp_path / row, 0, row, report=REPORT, replicates=replicates, stopped="time")
    actual = collect(tmp_path)
    assert [c.seed for c in actual.of("plain")] == [0, 1, 2, 3]
    assert [c.metrics["eval/accuracy"] for c in actual.of("plain")] == values["plain"]
    assert [("outer/loss" in c.metrics) for c in actual.of("plain")] == [True, False, False, False]
    assert len(actual.first_replicates) == 2
    assert main([str(tmp_path), "--metrics", "eval/accuracy", "eval/loss", "outer/loss"]) == 0
    text = (tmp_path / "report" / "table.md").read_text()
    expected = t_interval([100 * v for v in values["plain"]])
    name, n, shown, loss, once = cells(text, "plain")
    assert (name, n, once) == ("plain", "4", "0.100 (n = 1)")
    assert shown == f"{expected.estimate:.1f} ± {expected.half:.1f}"
    assert loss.endswith("(n = 3)")
    difference = next(line for line in text.splitlines() if "| 4 of 4 |" in line)
    assert difference.startswith("| better | plain | accuracy, % |")
    assert "Seeds: 0-3 for every method." in text
    assert "Replicates: a run trains several seeds as one batch" in text
    assert text.count("stopped early") == 2
    assert "plain: eval/loss is not finite in 1 of 4 replicates and is left out" in text
    assert "Commit: abc" in text


def test_runs_that_a_limit_ended_all_are_finished_and_counted(tmp_path):
    for seed, steps in enumerate((4, 7)):
        limit = {"stopped": {"by": "limit", "text": "the limit on model calls is reached"}}
        write_run(tmp_path / f"plain-{seed}", seed, "plain", outer_steps=steps, **limit)
        some = limit if seed else {}
        write_run(tmp_path / f"better-{seed}", seed, "better", outer_steps=steps, **some)
    assert main([str(tmp_path)]) == 0
    text = (tmp_path / "report" / "table.md").read_text()
    assert "A limit of the budget ended 2 of 2 runs of plain, after 4 to 7 outer steps." in text
    assert text.count("stopped early") == 1
    assert "better-1: stopped early, the limit on model calls is reached" in text


def test_runs_that_ended_by_early_stopping_are_finished_and_counted(tmp_path):
    for seed, steps in enumerate((4, 7, 10)):
        early = {"stopped": "early stopping: eval/loss was not better"} if steps < 10 else {}
        write_run(tmp_path / f"plain-{seed}", seed, "plain", outer_steps=steps, **early)
    assert main([str(tmp_path)]) == 0
    text = (tmp_path / "report" / "table.md").read_text()
    assert cells(text, "plain")[1] == "3"
    assert "Early stopping ended 2 of 3 runs of plain, after 4 to 7 outer steps." in text
    assert "stopped early" not in text
    steps = (tmp_path / "report" / "table.csv").read_text()
    assert all(f",{count}," in steps for count in (4, 7, 10))


def test_a_metric_that_only_later_runs_measure_is_a_column_already(tmp_path):
    metrics = ["eval/accuracy", "eval/teacher_accuracy"]
    write_run(tmp_path / "a", 0, "plain", report={**REPORT, "metrics": metrics})
    assert main([str(tmp_path)]) == 0
    text = (tmp_path / "report" / "table.md").read_text()
    assert cells(text, "plain")[-1] == "–"
    assert "metric eval/teacher_accuracy: measured by no finished run" in text


@pytest.mark.slow
def test_further_columns_are_wins_losses_improvement_and_budget(sweep):
    assert main([str(sweep), "--columns", "losses", "improvement", "budget"]) == 0
    text = (sweep / "report" / "table.md").read_text()
    assert cells(text, "better")[-3:] == ["10", "100", "2.0"]
    rows = [line for line in text.splitlines() if line.startswith("| better | plain |")]
    for row in rows:  # a higher accuracy and a lower loss are better
        assert " | 4 of 4 | 0 of 4 | 1.00 [1.00, 1.00] | " in row
    assert len(rows) == 2
    assert "P(better) is the probability that a run" in text


def test_columns_that_are_unknown_or_compare_with_nothing_are_refused(tmp_path, capsys):
    write_run(tmp_path / "a", 0, "plain")
    assert main([str(tmp_path), "--columns", "iqr"]) == 2
    assert "Unknown column: iqr. There are:\n  iqm\n  losses" in capsys.readouterr().err
    assert main([str(tmp_path), "--columns", "improvement"]) == 2
    assert "name one with --baseline. There are:\n  plain" in capsys.readouterr().err


def test_metrics_of_single_things_are_no_columns_unless_asked_for(tmp_path):
    metrics = {"eval/loss": 1.0, "eval/weight/a": 1.0, "eval/weight/b": 1.0}
    runs = collect(write_run(tmp_path / "a", 0, "plain", metrics=metrics))
    assert settings_for(runs, None, None).metrics == ["eval/loss"]
    assert settings_for(runs, ["eval/weight/b"], None).metrics == ["eval/weight/b"]
    runs = collect(write_run(tmp_path / "b", 0, "plain", metrics={"eval/weight/a": 1.0}))
    assert settings_for(runs, None, None).metrics == ["eval/weight/a"]


def test_numbers_that_have_diverged_are_in_scientific_notation(sweep):
    show = settings_for(collect(sweep), None, None).show
    numbers = [show("eval/loss", x) for x in (3.16762e26, -999_999.0, 0.25)]
    assert numbers == ["3.168e+26", "-999999.000", "0.250"]
    assert show("eval/loss", 1e6, sign=True) == "+1.000e+06"
