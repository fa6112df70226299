"""The command `metaopt-check`: its table, the rows it writes, the mistakes it explains."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from metaopt.cli import check, checking
from metaopt.cli.checking import show
from metaopt.testing import Row

Command = Callable[..., Any]
NUMBERS = {"cosine": 1.0, "error": 0.0, "scaled_error": 0.0, "seconds": 1.5}


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Return a function that gives the exit code, the output and the errors of `metaopt-check`."""

    def run(*arguments: str) -> Any:
        monkeypatch.setattr(sys, "argv", ["metaopt-check", *arguments])
        with pytest.raises(SystemExit) as stop:
            check()
        return stop.value.code, *capsys.readouterr()

    return run


def test_the_command_prints_a_table_and_writes_its_rows(command: Command, tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    code, out, errors = command(
        "problem=quadratic", "estimator=implicit,score", "steps=5", "warm_steps=2",
        f"json={path}",
    )  # fmt: skip
    assert code == 0, errors
    assert "through 5 inner steps in float64" in out
    assert "Differences of the whole run, good to " in out
    assert "error, differences" in out
    assert "score: gives no gradient" in out
    lines = [line.split()[:2] for line in out.splitlines()]
    assert [line for line in lines if line[:1] == ["implicit"]] == [
        ["implicit", "cold"], ["implicit", "warm"]
    ]  # fmt: skip
    numbers = json.loads(path.read_text())
    rows = {row["estimator"]: row for row in numbers["rows"]}
    assert rows["implicit"]["difference_error"] > 0.1  # five steps are not a solution
    assert {"unroll, converged", "cg, converged", "neumann, converged"} <= rows.keys()
    assert 0 < rows["implicit"]["cosine"] <= 1
    assert "no gradient" in rows["score"]["refused"]
    assert numbers["smoothness"]["at_step"] == 1
    assert "float64 already" in numbers["precision"]
    assert out.splitlines()[-1].startswith("fine: retraining follows the hypergradient")


def test_the_table_counts_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    cost = {"gradients": 1, "hvps": 5000, "inner_steps": 3}
    row = Row("cg", False, "exact", closed_error=0.25, peak_bytes=2**21, cost=cost, **NUMBERS)
    show([row], "Some", 0)
    text = capsys.readouterr().out
    assert text.startswith("Some. Reference r: exact.")
    assert "error, closed form" in text
    for words in ("2.5e-01", "1,500.00", "2,048", "1 gradient, 5,000 products"):
        assert words in text


def test_a_column_without_values_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    show([Row("cg", False, "exact", **NUMBERS), Row("no", False, "exact", refused="!")], "Some", 0)
    text = capsys.readouterr().out
    assert "closed form" not in text
    assert "error, differences" not in text
    assert "no: !" in text


def test_a_reason_of_several_estimators_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    reasons = {
        "cg": "Implicit holds it.", "t1-t2": "FiniteDifference holds it.", "no": "A fault.",
        "soba": "AdamW decays.", "penalty": "AdamW decays.",
    }  # fmt: skip
    show([Row(name, False, "r", refused=reason) for name, reason in reasons.items()], "Some", 0)
    lines = capsys.readouterr().out.splitlines()
    assert lines[-3:] == [
        "cg, t1-t2: each holds it.",
        "no: A fault.",
        "soba, penalty: AdamW decays.",
    ]


@pytest.mark.slow
def test_a_step_that_is_too_long_ends_with_a_verdict_and_an_exit_code(command: Command) -> None:
    code, out, errors = command(
        "problem=ridge", "estimator=unroll", "steps=2", "warm_steps=0", "directions=0",
        "optimizer=sgd", "outer_lr=1.0e+4",
    )  # fmt: skip
    assert code == 1, errors
    assert "error: retraining does not follow the hypergradient over one outer step" in out
    assert "a smaller outer_lr" in out


@pytest.mark.slow
def test_bfloat16_that_is_too_coarse_fails_the_command(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])  # where `benchmarks` is imported from
    (tmp_path / "problem").mkdir()
    (tmp_path / "problem" / "sequences.yaml").write_text(
        "# @package _global_\nname: sequences\ninner_steps: 16\nouter_lr: 1.0e-3\nproblem:\n"
        "  _target_: benchmarks.smoothness.Sequences\n  inner_optimizer:\n"
        "    _target_: metaopt.SGD\n    lr: 2.0\n"
    )
    arguments = ("--config-dir", str(tmp_path), "problem=sequences", "estimator=unroll", "steps=0")
    settings = ("warm_steps=0", "directions=0", "seconds=120")
    code, out, errors = command(*arguments, *settings)
    assert code == 1, errors
    assert "fine: retraining follows the hypergradient over one outer step." in out
    assert "precision   cos(bfloat16, float64) = 1.000 at K = 1, 1.000 at K = 4, 0." in out
    assert "In this order: float32 in place of bfloat16; a smaller inner learning rate;" in out
    code, out, errors = command(*arguments, *settings, "problem.inner_optimizer.lr=0.3")
    assert code == 0, errors
    assert out.splitlines()[-1] == "fine: bfloat16 is precise enough for this hypergradient."


def test_a_black_box_is_refused_before_estimators_are_composed(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    composed: list[list[str]] = []
    original = checking.composed
    monkeypatch.setattr(checking, "composed", lambda o: composed.append(o) or original(o))
    code, _, errors = command("problem=knapsack")
    assert code == 1
    assert "needs a GradientProblem" in errors
    assert len(composed) == 1


@pytest.mark.slow
def test_the_command_checks_a_shipped_problem(command: Command) -> None:
    code, out, errors = command("problem=quadratic", "estimator=unroll,implicit_exact", "steps=200")
    assert code == 0, errors
    exact = next(x for x in out.splitlines() if x.startswith("implicit_exact")).split()
    assert float(exact[2]) > 0.999
    assert len([x for x in out.splitlines() if x.startswith("unroll  ")]) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["problem=knapsack", "estimator=score"], "GradientProblem"),
        (["problem=ridge", "estimator=unrol"], "unroll"),
        (["problem=ridge", "estimator=unroll", "steps=few"], "steps"),
    ],
)
def test_the_command_explains_mistakes(
    command: Command, arguments: list[str], message: str
) -> None:
    code, _, errors = command(*arguments)
    assert code == 1
    assert message in errors
    assert "Traceback" not in errors
