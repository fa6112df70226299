"""`metaopt-check --retrain`: scores of gradients and of a run's learned weights."""

from __future__ import annotations

import gc
import json
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from metaopt.cli import check, main, retrain_runs
from metaopt.report.collect import ReportError, collect
from metaopt.runs.checks import write_checks
from metaopt.runs.python import load

SMALL = [
    "problem=domain_reweighting/digits", "problem.task.count=60", "problem.task.hidden=4",
    "problem.batch=20",
]  # fmt: skip
RETRAIN = ["--retrain", "20", "--leave", "0.05", "--steps", "3"]

OWN = """
import torch
from metaopt import SGD, GradientProblem


class Own(GradientProblem):
    inner_optimizer = SGD(lr=0.2)
    warm_start = False

    def __init__(self):
        draw = torch.Generator().manual_seed(0)
        self.x = torch.randn(40, 3, generator=draw)
        self.y = self.x.sum(1) + torch.randn(40, generator=draw)

    def init_outer(self, generator):
        return {"log_penalty": torch.zeros(())}

    def init_params(self, outer, generator):
        return {"weight": torch.zeros(3)}

    def inner_batch(self, draw):
        return torch.randint(40, (10,), generator=draw.generator)

    def outer_batch(self, draw):
        return torch.eye(3)

    def inner_loss(self, outer, inner, batch):
        return self.example_losses(outer, inner, batch).mean()

    def outer_loss(self, outer, inner, batch):
        return ((batch @ inner["weight"] - 1) ** 2).mean()

    @property
    def example_count(self):
        return 40

    def examples_of(self, batch):
        return batch

    def batch_of(self, examples):
        return examples

    def example_losses(self, outer, inner, batch):
        return (self.x[batch] @ inner["weight"] - self.y[batch]) ** 2
"""


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Return a function that gives the exit code, the output and the errors of a command."""

    def run(*arguments: str, of: Callable[[], object] = check) -> Any:
        monkeypatch.setattr(sys, "argv", ["metaopt-check", *arguments])
        with pytest.raises(SystemExit) as stop:
            of()
        return stop.value.code, *capsys.readouterr()

    return run


def test_weights_without_a_number_of_retrainings_are_refused(command: Any) -> None:
    code, out, errors = command("--weights", "runs/a")
    assert (code, out) == (1, "")
    assert "--weights needs a number of retrainings, 20 at least: --retrain 100." in errors


@pytest.mark.slow
def test_gradient_and_learned_weights_are_scored(command: Any, tmp_path: Path) -> None:
    csv, numbers = tmp_path / "lds.csv", tmp_path / "lds.json"
    _, out, _ = command(*SMALL, *RETRAIN, f"--csv={csv}", f"json={numbers}")
    assert out.startswith("20 disjoint subsets of 3 of 60 examples (5 %) left out: 34 trainings")
    lines = csv.read_text().splitlines()
    assert lines[0].startswith("subset,change,predicted by row gradients")
    assert len(lines) == 21
    score = json.loads(numbers.read_text())["scores"]["row gradients"]
    assert -1 <= score["low"] <= score["lds"] <= score["high"] <= 1
    folder = tmp_path / "run"
    code, _, errors = command(
        *SMALL, "outer_steps=3", "figures=false", f"hydra.run.dir={folder}", of=main
    )
    assert code == 0, errors
    _, out, errors = command("--weights", str(folder), *RETRAIN)
    assert "learned weights" in out, errors


@pytest.mark.slow
def test_runs_of_a_sweep_share_retrainings_and_hold_their_scores_for_reports(
    command: Any, tmp_path: Path
) -> None:
    sweep, numbers = tmp_path / "sweep", tmp_path / "lds.json"
    code, _, errors = command(
        "-m", *SMALL, "outer_steps=3", "figures=false", "seed=0,1", f"hydra.sweep.dir={sweep}",
        "outer_lr=0.1,0.3", of=main,
    )  # fmt: skip
    assert code == 0, errors
    _, out, errors = command(
        "--weights", str(sweep), *RETRAIN, "--no-gradient", "--save", f"--json={numbers}"
    )
    assert out.count("21 trainings of 3 inner steps") == 2, errors
    assert "smoothness" not in out
    by_seed = json.loads(numbers.read_text())
    assert [group["seed"] for group in by_seed] == [0, 1]
    assert len(by_seed[0]["scores"]) == 2
    cells = collect(sweep).cells
    assert len(cells) == 4
    for cell in cells:
        score = by_seed[cell.seed]["scores"]
        name = next(key for key in score if cell.folder.name.split(",seed")[0] in key)
        assert cell.metrics["check/lds"] == score[name]["lds"]
    (alone,) = [c for c in cells if c.seed == 0 and "outer_lr=0.1" in c.folder.name]
    _, out, _ = command("--weights", str(alone.folder), *RETRAIN, f"--json={numbers}")
    together = by_seed[0]["scores"]
    score = json.loads(numbers.read_text())["scores"]["learned weights"]["lds"]
    assert score == pytest.approx(next(v["lds"] for k, v in together.items() if "0.1" in k))


@pytest.mark.slow
def test_runs_are_told_apart_however_they_are_named(
    command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder, label in (("a", "b"), ("b", "null"), ("c", "alone")):
        given = (*SMALL, "outer_steps=3", "figures=false", f"label={label}")
        code, _, errors = command(*given, f"hydra.run.dir={folder}", of=main)
        assert code == 0, errors
    problems: list[weakref.ref[Any]] = []

    def loaded(folder: Path) -> Any:
        gc.collect()
        assert not any(problem() for problem in problems), "one is in memory at a time"
        run = load(folder)
        problems.append(weakref.ref(run.problem))
        return run

    monkeypatch.setattr(retrain_runs, "load", loaded)
    paths = ["a", "a/", f"{tmp_path}/a", f"{tmp_path}/b", "c"]  # the first three are one run
    _, out, errors = command("--weights", *paths, *RETRAIN, "--no-gradient", "--json=lds.json")
    assert out.count("21 trainings of 3 inner steps") == 1, errors
    scores = json.loads(Path("lds.json").read_text())["scores"]
    assert {"a", "b", "alone"} <= scores.keys()
    assert len(problems) == 4  # that of the retrainings is made again


@pytest.mark.slow
def test_a_score_of_another_result_is_not_shown(command: Any, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    command(*SMALL, "outer_steps=3", "figures=false", f"hydra.run.dir={folder}", of=main)
    write_checks(folder, {"lds": 0.5}, {"leave": 0.05})
    assert collect(folder).cells[0].metrics["check/lds"] == 0.5
    path = folder / "checks.json"
    path.write_text(path.read_text().replace('"result": "', '"result": "0'))
    with pytest.raises(ReportError, match="another result"):
        collect(folder)
    write_checks(folder, {"lds": 0.5}, {"leave": 0.05})
    code, _, errors = command(f"resume={folder}", "outer_steps=4", of=main)
    assert code == 0, errors
    assert not path.exists()
    assert "check/lds" not in collect(folder).cells[0].metrics


@pytest.mark.slow
def test_a_problem_of_the_users_own_is_scored(
    command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_examples.py").write_text(OWN)
    (tmp_path / "conf" / "problem").mkdir(parents=True)
    (tmp_path / "conf" / "problem" / "own.yaml").write_text(
        "# @package _global_\n# mine\nname: own\nproblem:\n  _target_: own_examples.Own\n"
    )
    code, out, errors = command(
        "--config-dir", "conf", "problem=own", "inner_steps=8", "--retrain", "40"
    )
    assert code == 1
    assert "leave=0.01 of 40 training examples is 0.4 of them" in errors
    code, out, errors = command(
        "--config-dir=conf", "problem=own", "inner_steps=8", "--retrain=40", "--leave=0.025"
    )
    assert code == 0, errors
    assert "40 disjoint subsets of 1 of 40" in out
    assert "row gradients predict retraining" in out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([*SMALL, "--retrain", "19"], "take at least 20"),
        ([*SMALL, "--retrain", "20", "--leaf", "1"], "there is no option --leaf"),
        ([*SMALL, "--retrain"], "expected one argument"),
        ([*SMALL, "--retrain", "20", "--csv", "nowhere/lds.csv"], "folder that is not there"),
        (["problem=ridge", "--retrain", "20"], "does not say what its training examples are"),
        (["problem=ridge", "--retrain", "20", "--weights", "x"], "takes the problem of the run"),
        ([*SMALL, "--retrain", "20", "--save"], "name them by --weights"),
        ([*SMALL, "--retrain", "20", "--no-gradient"], "name them by --weights"),
        (["--retrain", "20", "--weights", "nowhere"], "nowhere"),
        (
            ["--retrain", "20"],
            "--retrain 20 needs the problem whose training examples are left out",
        ),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
@pytest.mark.slow
def test_mistakes_get_a_sentence(command: Any, arguments: list[str], says: str) -> None:
    code, _, errors = command(*arguments)
    assert code == 1
    assert says in errors
    assert "Traceback" not in errors
