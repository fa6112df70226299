"""Adaptive rollout length: tables, figures and metrics of the tests that are over."""

import pytest
import torch
from small_runs import LIGHT, make

from metaopt.engine import Engine, tree
from metaopt.estimators import Score
from metaopt.optimizers import Constant, Schedule, recorded
from metaopt.problems.rollout_length.options import Groups
from metaopt.problems.rollout_length.report import listing, summary, write_tables


@pytest.fixture(scope="module")
def finished():
    """A run of two rows and two tests, and its snapshots."""
    problem = make(LIGHT, groups=["a", "b"], tests=["default", "light"], error_episodes=0)
    engine = Engine(problem, Score(1), Schedule(Constant(2)), outer_steps=problem.outer_steps)
    snapshots = [
        (step, tree.clone(problem.report.snapshot(None, engine.inner))) for step, _ in engine
    ]
    return problem, engine.inner, snapshots


class TestReports:
    def results(self):
        scores = torch.tensor([[1.0, 3, 10], [1, 5, 14], [2, 2, 30], [2, 2, 30]])
        lengths = torch.tensor([[0.0, 4], [0, 8], [2, 2], [2, 2]])
        updates = torch.tensor([5.0, 5, 9, 9])
        return {"default": {"scores": scores, "lengths": lengths, "updates": updates}}

    def test_table(self):
        text = summary(self.results(), Groups(4, ["a", "b"], "synthetic"), 50)
        assert "| a | 0 | 3 | 6 | 12.0 ± 2.0 | 2.5 ± 0.5 | 2 | 5 | 100 |" in text
        assert "| b | 2 | 2 | 2 | 30.0 ± 0.0 | 2.0 ± 0.0 | 2 | 9 | 100 |" in text

    def test_written_schedule_can_be_replayed(self, tmp_path):
        paths = write_tables(self.results(), Groups(4, None, "synthetic"), 50, tmp_path)
        assert [p.name for p in paths] == ["schedules.md", "schedules.csv", "schedule.csv"]
        replay = recorded(paths[2])
        assert [replay(x) for x in (0.0, 1.0)] == [1, 4]
        lines = paths[1].read_text().splitlines()
        assert lines[2].split(",") == ["default", "", "1", "100", "4", "2.82843", "21", "5.25991"]

    def test_figures_of_a_run(self, finished, tmp_path):
        problem, _, snapshots = finished
        assert problem.report.figures(snapshots[:3], tmp_path / "early") == []
        paths = problem.report.figures(snapshots, tmp_path)
        assert {p.suffix for p in paths} == {".md", ".csv", ".png"}
        assert all(p.stat().st_size > 100 for p in paths)
        assert "return (light)" in paths[0].read_text()

    def test_listing(self):
        """The columns of the table that fit a terminal, as wide as their widest cells."""
        lines = listing(self.results(), Groups(4, ["a", "long name"], "synthetic"), 50).splitlines()
        assert lines[0] == "schedule   first K  mean K  last K  return (default)  area (default)"
        assert lines[1] == "a                0       3       6        12.0 ± 2.0       2.5 ± 0.5"
        assert lines[2] == "long name        2       2       2        30.0 ± 0.0       2.0 ± 0.0"
        assert "over 2 runs a schedule" in lines[3]

    def test_what_a_run_delivers(self, finished, tmp_path):
        """The table and the path of the figure, or why there is none."""
        problem, inner, snapshots = finished
        early = problem.report.deliver(2, inner, snapshots[:4], tmp_path)
        assert early == (
            f"No test was finished in {snapshots[3][0]} outer steps, so there are no returns to "
            f"compare: one takes outer_steps=10 (debug=tiny stops before)."
        )
        half = problem.report.deliver(2, inner, snapshots[:5], tmp_path)
        assert "return (default)" in half
        assert "light" not in half
        *table, figure = problem.report.deliver(2, inner, snapshots, tmp_path).splitlines()
        assert figure == f"figure: {tmp_path / 'figures' / 'schedules.png'}"
        assert [line.split()[0] for line in table] == ["schedule", "a", "b", "mean"]
        for name, line in zip("ab", table[1:3], strict=True):
            final = inner.records.scores[:, :, -1].view(2, 2, 2).mean(2)
            returns = [f"{float(x):.1f} ±" for x in final[:, "ab".index(name)]]
            assert line.index(returns[0]) < line.rindex(returns[1])
            assert line.split()[1:4] == ["2", "2", "2"]

    def test_metrics_of_several_rows_are_named_so(self, finished):
        """What averages two rows must not look like the return of one method."""
        problem, inner, _ = finished
        results = problem.metrics(2, inner)
        assert set(results) == {
            f"all_groups_{kind}{suffix}{se}"
            for kind in ("return", "auc") for suffix in ("", "_light") for se in ("", "_se")
        }  # fmt: skip
        assert results["all_groups_return"] == pytest.approx(
            float(inner.records.scores[0, :, -1].mean())
        )
