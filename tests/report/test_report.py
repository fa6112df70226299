import csv
import json

import pytest
import yaml
from run_folders import REPORT, accuracy, cells, write_run

from metaopt.report.collect import collect
from metaopt.report.command import main
from metaopt.report.stats import paired, t_interval


def test_the_table_holds_means_and_intervals_in_the_stated_order(sweep, capsys):
    assert main([str(sweep)]) == 0
    text = (sweep / "report" / "table.md").read_text()
    expected = t_interval([100 * accuracy("better", seed) for seed in range(4)])
    shown = f"{expected.estimate:.1f} ± {expected.half:.1f}"
    assert cells(text, "better")[:3] == ["better", "4", shown]
    assert text.index("| plain |") < text.index("| better |")
    assert "| method | n | accuracy, % | eval/loss |" in text
    printed = capsys.readouterr().out
    assert shown in printed
    pictures = "table.png", "curves/eval_accuracy.png", "curves/outer_loss.png"
    for name in ("table.md", "table.tex", "table.csv", *pictures, "index.html"):
        assert (sweep / "report" / name).stat().st_size > 0
        assert str(sweep / "report" / name) in printed


def test_the_footer_says_what_ran(sweep):
    main([str(sweep)])
    text = (sweep / "report" / "table.md").read_text()
    for line in (
        "Seeds: 0-3 for every method.",
        "95 % interval",
        "Hardware: cpu some",
        "Versions: torch 2.13",
        "Commit: abc",
        "Runs made by: metaopt experiment=some/table",
        f"Table made by: metaopt-report {sweep}",
        "| better | 10 | 100 | 2.0 |",
        "| paper | accuracy, % | 96.1 | A [recall] |",
    ):
        assert line in text


def test_the_footer_repeats_what_the_runs_were_given(tmp_path):
    shared = ["debug=tiny", "limits={gradients: 9}", "experiment=some/table", "label=x"]
    for seed in range(2):
        given = [f"method=a{seed}", f"estimator.steps={seed}", *shared]
        write_run(tmp_path / str(seed), seed, f"row {seed}", given, report=REPORT)
    main([str(tmp_path)])
    text = (tmp_path / "report" / "table.md").read_text()
    expected = "metaopt experiment=some/table debug=tiny 'limits={gradients: 9}'\n"
    assert f"Runs made by: {expected}" in text


def test_paired_differences_count_a_lower_loss_as_better(sweep):
    main([str(sweep)])
    text = (sweep / "report" / "table.md").read_text().split("## Paired")[1]
    rows = [line for line in text.splitlines() if line.startswith("| better | plain |")]
    values = [[100 * accuracy(row, seed) for seed in range(4)] for row in ("better", "plain")]
    actual = paired(*values)
    assert f"{actual.difference.estimate:+.1f} ± {actual.difference.half:.1f} | 4 of 4" in rows[0]
    assert f"{-actual.difference.estimate / 100:+.3f}" in rows[1]
    assert "4 of 4" in rows[1]


def test_the_csv_has_a_raw_line_for_each_cell(sweep):
    main([str(sweep)])
    with (sweep / "report" / "table.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [(line["method"], line["seed"]) for line in lines[:2]] == [
        ("plain", "0"),
        ("plain", "1"),
    ]
    assert len(lines) == 8
    assert float(lines[4]["eval/accuracy"]) == accuracy("better", 0)
    assert lines[0]["budget/gradients"] == "100.0"


def test_rows_are_the_overrides_that_differ(tmp_path):
    for steps in (2, 10):
        for seed in range(2):
            given = ["experiment=x/y", "+problem=ridge", f"estimator.steps={steps}"]
            write_run(tmp_path / f"steps={steps},{seed}", seed, overrides=given)
    assert collect(tmp_path).methods == ["estimator.steps=2", "estimator.steps=10"]


def test_a_row_with_a_seed_twice_is_split_by_what_differs(tmp_path):
    for labels in (2, 5):
        write_run(tmp_path / str(labels), 0, "plain", overrides=["problem=p", f"labels={labels}"])
    write_run(tmp_path / "other", 0, "other")
    assert collect(tmp_path).methods == ["plain (labels=2)", "plain (labels=5)", "other"]


def test_the_same_run_twice_is_refused(tmp_path, capsys):
    for name in ("a", "b"):
        write_run(tmp_path / name, 0, "plain")
    assert main([str(tmp_path)]) == 2
    assert "'plain' has 2 runs with seed 0" in capsys.readouterr().err


def test_a_report_has_the_runs_of_one_table(tmp_path, capsys):
    for noise in ("0.0", "0.2"):
        report = {**REPORT, "title": f"Noise {noise}"}
        for seed in range(2):
            write_run(tmp_path / f"noise_{noise}" / str(seed), seed, "plain", report=report)
    assert main([str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert f"{tmp_path} holds runs of 2 tables:" in said
    assert f"\n  {tmp_path / 'noise_0.2'}: 2 runs of demo, Noise 0.2\n" in said
    assert not (tmp_path / "report").exists()
    assert len(collect(tmp_path / "noise_0.2").cells) == 2


def test_the_report_of_a_run_leaves_out_those_in_its_folder(tmp_path):
    run = write_run(tmp_path / "run", 0, "plain")
    write_run(run / "deeper" / "other", 1, "plain")
    runs = collect(run)
    assert [cell.folder for cell in runs.cells] == [run]
    assert [path for path, _ in runs.incomplete] == [run / "deeper" / "other"]
    assert "another run than that of" in runs.incomplete[0][1]


def test_incomplete_cells_are_listed(sweep, capsys):
    (sweep / "plain-3" / "result.json").unlink()
    (sweep / "plain-3" / "error.log").write_text("Traceback\nNonFiniteError: outer loss is nan\n")
    (sweep / "plain-2" / "result.json").write_text('{"metrics": ')
    (sweep / "better-0" / "result.json").unlink()
    broken = json.loads((sweep / "better-1" / "result.json").read_text())
    broken["metrics"]["eval/accuracy"] = None
    (sweep / "better-1" / "result.json").write_text(json.dumps(broken | {"stopped": "gradients"}))
    assert main([str(sweep)]) == 0
    printed, text = capsys.readouterr().out, (sweep / "report" / "table.md").read_text()
    for line in (
        "plain-3: failed: NonFiniteError: outer loss is nan",
        "plain-2/result.json is damaged: it is not valid JSON",
        "better-0: not finished",
        "method plain: no finished run with seed 2-3",
        "method better: no finished run with seed 0",
        "better-1: eval/accuracy is not finite",
        "better-1: stopped early, the limit on gradients is reached",
    ):
        assert line in printed
        assert line in text
    assert cells(text, "better")[2].endswith("(n = 2)")


def test_a_baseline_that_has_not_run_yet_is_listed(tmp_path):
    write_run(tmp_path / "a", 0, "better", report=REPORT)
    assert main([str(tmp_path)]) == 0
    text = (tmp_path / "report" / "table.md").read_text()
    assert "method plain: no finished run" in text
    assert "## Paired" not in text


def test_each_row_may_have_its_own_baseline(sweep):
    write_run(sweep / "third", 0, "third")
    for path in sweep.glob("*/config.yaml"):
        config = yaml.safe_load(path.read_text())
        config["report"] = {**REPORT, "baseline": {"third": "better"}}
        path.write_text(yaml.safe_dump(config))
    assert main([str(sweep)]) == 0
    text = (sweep / "report" / "table.md").read_text().split("## Paired")[1]
    assert "| third | better |" in text
    assert "| better | plain |" not in text


def test_mixed_and_dirty_commits_are_told(sweep):
    write_run(sweep / "late", 4, "plain", commit="def-dirty")
    main([str(sweep)])
    text = (sweep / "report" / "table.md").read_text()
    assert "Commit, mixed: abc (8 runs); def-dirty (1 runs)" in text
    assert "Dirty: " in text


def test_runs_of_one_label_and_different_configs_are_told(sweep):
    def changed(folder, **keys):
        path = folder / "config.yaml"
        path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **keys}))

    given = ["outer_lr=0.1", "problem.data.seed=4", "figures=false"]
    changed(write_run(sweep / "a", 4, "plain", given), outer_lr=0.1, figures=False)
    for path in sorted(sweep.glob("plain-*")):
        changed(path, outer_lr=0.01, figures=True)
    changed(write_run(sweep / "b", 4, "better", ["outer_lr=0.01"]), outer_steps=20)
    assert main([str(sweep)]) == 0
    notes = (sweep / "report" / "table.md").read_text().partition("## Notes")[2]
    assert [line for line in notes.splitlines() if line.startswith("- Mixed: ")] == [
        "- Mixed: the runs of plain have different configs: outer_lr=0.01 (seeds 0-3); "
        "outer_lr=0.1 (seed 4).",
        "- Mixed: the runs of better have different configs: outer_steps=10 (seeds 0-3); "
        "outer_steps=20 (seed 4).",
    ]


@pytest.mark.parametrize("inner_steps", [(5, 5), (5, 9), (0, 0)])
def test_one_seed_and_two_rates_of_inner_steps_are_drawn(tmp_path, inner_steps):
    for row, steps in zip("ab", inner_steps, strict=True):
        write_run(tmp_path / row, 0, row, inner_steps=steps)
    assert main([str(tmp_path)]) == 0
    assert "there is one seed per method" in (tmp_path / "report" / "table.md").read_text()
    assert (tmp_path / "report" / "curves" / "outer_loss.png").exists()


def test_runs_without_a_log_still_have_a_table(tmp_path):
    (write_run(tmp_path / "a", 0, "a") / "metrics.jsonl").unlink()
    assert main([str(tmp_path)]) == 0
    assert not (tmp_path / "report" / "curves").exists()


def test_options_replace_the_experiments(sweep, tmp_path):
    out = tmp_path / "elsewhere"
    options = ["--metrics", "outer/loss", "--baseline", "better", "--interval", "bootstrap"]
    assert main([str(sweep), *options, "--level", "0.9", "--out", str(out)]) == 0
    text = (out / "table.md").read_text()
    assert "| method | n | outer/loss |" in text
    assert "| plain | better | outer/loss |" in text
    assert "0.100 [0.100, 0.100]" in text
    assert "90 % percentile bootstrap" in text


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            ["--metrics", "eval/acuracy"],
            "Unknown metric: eval/acuracy. There are:\n  eval/accuracy",
        ),
        (["--baseline", "plane"], "Unknown baseline: plane. There are:\n  better\n  plain"),
    ],
)
def test_unknown_names_are_answered_with_those_that_exist(sweep, capsys, options, words):
    assert main([str(sweep), *options]) == 2
    assert words in capsys.readouterr().err
    assert not (sweep / "report").exists()


def test_a_baseline_whose_runs_have_not_finished_is_told_which(sweep, capsys):
    for folder in sweep.glob("plain-*"):
        (folder / "result.json").unlink()
    assert main([str(sweep), "--baseline", "plain"]) == 2
    error = capsys.readouterr().err
    assert (
        "Unknown baseline: plain. There are:\n  better\nMethods are named by what differs" in error
    )
    assert "4 others are left out, such as\n  " in error
    assert "plain-0: not finished" in error


@pytest.mark.parametrize(
    ("report", "words"),
    [
        ({"metric": ["eval/loss"]}, "Unknown key of report: metric"),
        ({"reported": [{"method": "paper"}]}, "needs method, metric, value and source"),
    ],
)
def test_mistakes_in_an_experiments_report_are_named(tmp_path, capsys, report, words):
    write_run(tmp_path / "a", 0, "a", report=report)
    assert main([str(tmp_path)]) == 2
    assert words in capsys.readouterr().err


def test_a_missing_folder_and_one_without_finished_runs(tmp_path, capsys):
    assert main([str(tmp_path / "absent")]) == 2
    assert main([str(tmp_path)]) == 2
    (write_run(tmp_path / "a", 0) / "result.json").unlink()
    assert main([str(tmp_path)]) == 2
    errors = capsys.readouterr().err
    for words in ("There is no folder", "no folder in it has a config.yaml", "a: not finished"):
        assert words in errors


def test_a_level_outside_the_unit_interval_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        main([str(tmp_path), "--level", "95"])
    assert "between 0 and 1" in capsys.readouterr().err


def test_runs_with_replicates_share_no_seed(tmp_path):
    for seed in range(2):
        replicates = {"eval/accuracy": [0.1 * seed, 0.2, 0.3]}
        write_run(tmp_path / str(seed), seed, "plain", replicates=replicates)
    assert [c.seed for c in collect(tmp_path).of("plain")] == [0, 1, 2, 3, 4, 5]


def test_replicates_of_unequal_number_are_unreadable(tmp_path):
    write_run(tmp_path / "good", 0, "plain")
    write_run(tmp_path / "bad", 1, "plain", replicates={"a": [1.0], "b": [1.0, 2.0]})
    assert (
        "replicates is not a mapping of lists of numbers, as many"
        in collect(tmp_path).incomplete[0][1]
    )


def test_a_folder_that_cannot_be_written_is_named_with_the_option(sweep, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main([str(sweep), "--out", str(tmp_path / "file" / "report")]) == 2
    said = capsys.readouterr().err
    assert f"{tmp_path / 'file' / 'report'} cannot be written (Not a directory)" in said
    assert "--out FOLDER" in said


def test_a_single_run_lacks_no_seed_of_replicates_beside_it(tmp_path):
    replicates = {"eval/accuracy": [0.1, 0.2, 0.3]}
    write_run(tmp_path / "batch", 0, "batch", report=REPORT, replicates=replicates)
    write_run(tmp_path / "single", 0, "single", report=REPORT)
    assert main([str(tmp_path)]) == 0
    assert "no finished run with seed" not in (tmp_path / "report" / "table.md").read_text()
