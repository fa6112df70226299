"""The report of a search: its trials in order, how many there were, and which is the best."""

import json

import pytest
from run_folders import write_run

from metaopt.report.collect import JOURNAL
from metaopt.report.command import main as report
from metaopt.report.study import SUMMARY

FOUND = {
    "objective": "eval/accuracy", "direction": "maximize", "trials": 5, "finished": 3, "pruned": 1,
    "failed": 1, "pruned_runs": ["lr=0.3"],
    "best": {"trial": 4, "value": 0.91, "run": "lr=0.2", "command": "metaopt problem=ridge lr=0.2"},
}  # fmt: skip


def search(folder, found):
    """Write three finished trials, of which "better" is the best, a pruned one, a failed one."""
    for name, row in {"lr=0.1": "plain", "lr=0.2": "better", "lr=0.4": "poor"}.items():
        write_run(folder / name, 0, row)
    for name in ("lr=0.3", "lr=0.5"):
        (folder / name).mkdir()
        (folder / name / "config.yaml").write_text("name: demo\n")
    (folder / SUMMARY).parent.mkdir()
    (folder / SUMMARY).write_text(json.dumps(found))


def lines_with(text, *names):
    return [name for line in text.splitlines() for name in names if line.split()[:1] == [name]]


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_trials_are_in_the_order_of_the_objective(tmp_path, capsys, direction):
    search(tmp_path, {**FOUND, "direction": direction})
    assert report([str(tmp_path), "--metrics", "eval/accuracy"]) == 0
    printed = capsys.readouterr().out
    order = ["better", "plain", "poor"]
    assert lines_with(printed, *order)[:3] == order[:: 1 if direction == "maximize" else -1]
    assert "Search: 5 trials, 3 finished, 1 pruned, 1 failed; " + direction in printed
    assert "Best: trial 4, eval/accuracy 0.91, in lr=0.2. It is the best of 3" in printed
    assert "Its config: metaopt problem=ridge lr=0.2" in printed
    assert "lr=0.3: not finished" not in printed  # pruned, and lacks nothing
    assert "lr=0.5: not finished" in printed


def test_a_trial_without_a_finite_objective_does_not_break_the_order(tmp_path, capsys):
    search(tmp_path, FOUND)
    for name, value in {"lr=0.1": 3.0, "lr=0.2": None, "lr=0.4": 1.0}.items():
        path = tmp_path / name / "result.json"
        result = json.loads(path.read_text())
        result["metrics"]["eval/loss"] = value
        result["budget"] = {} if value is None else {"gradients": value}
        path.write_text(json.dumps(result))
    for objective in ("eval/loss", "budget/gradients"):
        found = {**FOUND, "objective": objective, "direction": "minimize"}
        (tmp_path / SUMMARY).write_text(json.dumps(found))
        assert report([str(tmp_path), "--metrics", "eval/accuracy"]) == 0
        printed = capsys.readouterr().out
        order = ["poor", "plain", "better"]
        assert lines_with(printed, *order)[:3] == order


def test_a_search_next_to_other_runs_has_a_report_of_its_own(tmp_path, capsys):
    search(tmp_path / "demo/tune", FOUND)
    (tmp_path / "demo/tune" / JOURNAL).parent.mkdir()
    (tmp_path / "demo/tune" / JOURNAL).touch()
    assert report([str(tmp_path / "demo")]) == 0  # there is nothing else
    write_run(tmp_path / "demo/plain", 0, "unsearched", report={"title": "another table"})
    capsys.readouterr()
    assert report([str(tmp_path / "demo")]) == 0
    printed = capsys.readouterr().out
    assert lines_with(printed, "unsearched", "better")[:1] == ["unsearched"]
    assert "better" not in printed
    assert f"left out; it has a report of its own: metaopt-report {tmp_path}/demo/tune" in printed


@pytest.mark.parametrize("found", [{"objective": "eval/accuracy"}, {**FOUND, "best": 3}])
def test_a_damaged_summary_is_named_with_what_to_do(tmp_path, capsys, found):
    search(tmp_path, found)
    assert report([str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "summary.json" in error
    assert "Run the command of the search again" in error
