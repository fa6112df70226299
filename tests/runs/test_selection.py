"""Early stopping and the best checkpoint: what ends a run, what is kept, and what is refused."""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import metaopt as package
from metaopt import ConfigError, Descent, Unroll
from metaopt.problems.examples import Ridge
from metaopt.runs import checkpoint
from metaopt.runs.selection import Selection
from metaopt.testing.trees import identical

Metaopt = Callable[..., Any]
RUN = ("problem=ridge", "figures=false", "outer_lr=0.3", "eval_every=5", "outer_steps=60")
EARLY = ("early_stopping.metric=eval/test_loss", "early_stopping.patience=2")
BEST = ("keep_best=eval/test_loss",)


def result(folder: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(Path(folder, "result.json").read_text())
    return content


def evaluations(folder: str, metric: str = "eval/test_loss") -> dict[int, float]:
    records = map(json.loads, Path(folder, "metrics.jsonl").read_text().splitlines())
    return {r["outer_step"]: r[metric] for r in records if metric in r}


def ended(selection: Selection, values: Sequence[float]) -> int | None:
    """Return after how many evaluations a run would end, or `None` where it would go on."""
    for step, value in enumerate(values, 1):
        selection.update(step, {"eval/x_loss": value, "eval/x_accuracy": -value}, scheduled=True)
        if selection.stopped is not None:
            return step
    return None


@pytest.mark.parametrize("metric", ["eval/x_loss", "eval/x_accuracy"])
def test_the_step_is_that_of_transformers(metric: str) -> None:
    transformers = pytest.importorskip("transformers")

    def expected(patience: int, values: Sequence[float]) -> int | None:
        callback = transformers.EarlyStoppingCallback(patience)
        args = SimpleNamespace(metric_for_best_model=metric, greater_is_better=False)
        state, control = SimpleNamespace(best_metric=None), SimpleNamespace(should_training_stop=0)
        for step, value in enumerate(values, 1):
            callback.on_evaluate(args, state, control, {f"eval_{metric}": value})
            if control.should_training_stop:
                return step
            if state.best_metric is None or value < state.best_metric:
                state.best_metric = value
        return None

    draw, ends = random.Random(0), set()
    for _ in range(200):
        patience = draw.randint(1, 4)
        values = [draw.choice([0.5, 1.0, 1.5, draw.random()]) for _ in range(12)]
        end = ended(Selection({"metric": metric, "patience": patience}), values)
        assert end == expected(patience, values)
        ends.add(end)
    assert len(ends) > 8  # among them those of no end


def test_a_value_must_be_better_by_more_than_min_delta() -> None:
    keys = {"metric": "eval/x_loss", "patience": 2, "min_delta": 0.1}
    assert ended(Selection(keys), [1.0, 0.95, 0.91]) == 3
    assert ended(Selection(keys), [1.0, 0.95, 0.89, 0.85, 0.80]) == 5  # two after the 0.89
    assert ended(Selection({**keys, "min_delta": 0.0}), [1.0, 0.95, 0.91]) is None


def test_a_value_that_is_not_finite_is_never_better(capsys: pytest.CaptureFixture[str]) -> None:
    selection = Selection({"metric": "eval/x_loss", "patience": 3}, "eval/x_loss")
    assert ended(selection, [math.nan, 0.5, -math.inf, math.nan, 0.6]) == 5
    assert selection.result()["best"]["outer_step"] == 2
    said = "eval/x_loss is nan at outer step 1: it counts as no better than before."
    assert said in capsys.readouterr().err
    never = Selection({"metric": "eval/x_loss", "patience": 2})
    assert ended(never, [math.nan, math.inf]) == 2
    assert str(never.stopped) == "eval/x_loss was not finite in 2 evaluations"


def test_the_evaluation_at_the_end_has_no_part_in_early_stopping() -> None:
    both = Selection({"metric": "eval/x_loss", "patience": 1}, "eval/x_loss")
    both.update(5, {"eval/x_loss": 1.0}, scheduled=True)
    both.update(7, {"eval/x_loss": 0.5}, scheduled=False)
    both.update(10, {"eval/x_loss": 0.9}, scheduled=True)
    assert both.stopped is None
    assert both.best.step == 7


MISTAKES = {
    "misspelt": (
        ["early_stopping.metric=eval/test_los"],
        "early_stopping.metric=eval/test_los is not a metric of this run. Did you mean "
        "eval/test_loss?",
    ),
    "short": (["early_stopping=eval/x"], "early_stopping.metric=eval/x is not a metric of this ru"),
    "misspelt best": (["keep_best=eval/tst_loss"], "keep_best=eval/tst_loss is not a metric"),
    "listed": (["keep_best=eval/tst_loss"], "outer/grad_norm, eval/test_loss"),
    "no direction": (
        ["keep_best=inner/adjoint_growth"],
        "keep_best.mode must be min or max: the name inner/adjoint_growth does not say which",
    ),
    "time": (["keep_best=time/elapsed_s"], "time/elapsed_s says what a run costs, not how good"),
    "patience": (["early_stopping.patience=0", EARLY[0]], "needs patience >= 1; got patience=0"),
    "text": (["early_stopping.patience=x", EARLY[0]], "patience must be an integer; got 'x'"),
    "delta": (["early_stopping.min_delta=-1", EARLY[0]], "needs min_delta >= 0"),
    "mode": (["early_stopping.mode=up", EARLY[0]], "mode must be min or max or null; got 'up'"),
    "key": (["+early_stopping.patient=1", EARLY[0]], "has no key 'patient'. Did you mean patience"),
    "no metric": (["early_stopping.patience=3"], "early_stopping has patience=3 and no metric"),
    "a list": (["early_stopping=[1]"], "early_stopping=[1] cannot take the place of"),
    "seeds": ([*EARLY, "seeds=2"], "of seeds that are trained together each would have an end"),
    "no steps": ([*BEST, "outer_steps=0"], "keep_best=eval/test_loss needs outer_steps >= 1"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_a_sentence_and_leaves_nothing(metaopt: Metaopt, case: str) -> None:
    words, said = MISTAKES[case]
    done = metaopt(*RUN, *words, "hydra.run.dir=run")
    assert done.code == 1
    assert said in done.err
    assert "Traceback" not in done.err
    assert not Path("run").exists()


def test_a_metric_that_a_problem_declares_is_refused_before_its_first_step(
    metaopt: Metaopt,
) -> None:
    done = metaopt("problem=template_evolution", "debug=tiny", "keep_best=eval/auroks")
    assert "keep_best=eval/auroks is not a metric of this run. Did you mean eval/auroc?" in done.err
    assert "outer step" not in done.err


def test_a_run_ends_early_and_its_best_checkpoint_is_the_state_of_that_step(
    metaopt: Metaopt,
) -> None:
    done = metaopt(*RUN, *EARLY, *BEST, "keep_checkpoints=1", "hydra.run.dir=run")
    values, ends = evaluations("run"), result("run")
    best = min(values, key=lambda step: values[step])
    assert ends["outer_steps"] == max(values) == best + 10 < 60
    assert ends["best"] == {
        "metric": "eval/test_loss", "value": values[best], "outer_step": best,
    }  # fmt: skip
    why = f"eval/test_loss was not better than {values[best]:.6g} (outer step {best}) in 2 evaluat"
    assert ends["stopped"]["by"] == "early_stopping"
    assert ends["stopped"]["text"].startswith(why)
    assert f"stopped early: {why}" in done.out
    names = {path.name for path in Path("run/checkpoints").iterdir()}
    assert names == {f"best_{best:08d}.pt", f"step_{best + 10:08d}.pt"}
    metaopt(*RUN, f"outer_steps={best}", "hydra.run.dir=short")
    short, loaded = package.load("short"), package.load("run", best=True)
    assert identical([short.outer, short.inner], [loaded.outer, loaded.inner])
    assert loaded.outer_steps == best
    assert loaded.metrics == short.metrics
    assert not loaded.finished
    assert repr(loaded).startswith(f"Result(run: a checkpoint, {best} outer steps\n")
    assert len(loaded.history) == best


def test_a_run_that_a_limit_ends_compares_its_last_evaluation(metaopt: Metaopt) -> None:
    done = metaopt(*RUN, *BEST, "eval_every=50", "limits={gradients: 100}", "hydra.run.dir=run")
    assert done.code == 0, done.err
    measured = result("run")
    assert measured["best"]["value"] == measured["metrics"]["eval/test_loss"]
    assert measured["best"]["outer_step"] == measured["outer_steps"] < 60


def test_a_run_without_keep_best_says_so(metaopt: Metaopt) -> None:
    metaopt("problem=ridge", "debug=tiny", "figures=false", "hydra.run.dir=run")
    with pytest.raises(ConfigError, match="no best checkpoint: the run was started without keep_b"):
        package.load("run", best=True)


def test_a_run_that_is_too_short_to_end_early_says_so(metaopt: Metaopt) -> None:
    done = metaopt(*RUN, EARLY[0], "outer_steps=20", "hydra.run.dir=run")
    assert done.code == 0
    assert "early_stopping.patience=5 cannot end this run early: it needs 6 evaluations" in done.err
    assert "is outer step 30 of 20. Choose a patience from 1 to 2, a smaller eval_every" in done.err
    patient = metaopt(*RUN, *EARLY, "outer_steps=20", "hydra.run.dir=other")  # of 2
    assert "cannot end" not in patient.err


@pytest.mark.slow
@pytest.mark.parametrize("killed", [False, True])
def test_more_patience_is_the_run_that_had_it(metaopt: Metaopt, killed: bool) -> None:
    metaopt(*RUN, EARLY[0], "early_stopping.patience=4", *BEST, "hydra.run.dir=patient")
    metaopt(*RUN, *EARLY, *BEST, "hydra.run.dir=run")
    assert result("run")["outer_steps"] < result("patient")["outer_steps"]
    refused = metaopt("resume=run", "outer_steps=80")
    assert "a run of outer_steps=80 ends there, too. With more patience it goes on: metaopt " in (
        refused.err
    )
    assert "early_stopping.patience=<more than 2>" in refused.err
    if killed:
        Path("run/result.json").unlink()
    assert "is below the 2 of run" in metaopt("resume=run", "early_stopping.patience=1").err
    assert metaopt("resume=run", "early_stopping.patience=4").code == 0
    assert {**result("run"), "overrides": result("patient")["overrides"]} == result("patient")
    names = [{p.name for p in Path(f, "checkpoints").glob("best*")} for f in ("run", "patient")]
    assert names[0] == names[1]
    again = metaopt("resume=run", "early_stopping.patience=4")
    assert "already finished" in again.out
    command = next(line for line in metaopt("show", "run").out.splitlines() if "command" in line)
    assert command.split()[1:] == ["metaopt", *RUN, EARLY[0], *BEST, "early_stopping.patience=4"]


def test_patience_of_a_run_without_early_stopping_is_refused(metaopt: Metaopt) -> None:
    metaopt("problem=ridge", "debug=tiny", "figures=false", "hydra.run.dir=run")
    done = metaopt("resume=run", "early_stopping.patience=4")
    assert "run was started without early_stopping" in done.err


def test_an_edited_patience_is_refused(metaopt: Metaopt) -> None:
    metaopt(*RUN, *EARLY, "hydra.run.dir=run")
    path = Path("run/config.yaml")
    path.write_text(path.read_text().replace("patience: 2", "patience: 9"))
    for words in ([], ["outer_steps=80"]):
        assert "early_stopping.patience: 2 -> 9" in metaopt("resume=run", *words).err


def test_what_came_from_the_old_number_of_steps_is_named(metaopt: Metaopt) -> None:
    metaopt(*RUN, "outer_steps=20", "inner_steps=${outer_steps}", "hydra.run.dir=run")
    done = metaopt("resume=run", "outer_steps=21")
    assert done.code == 0
    assert "estimator.inner_steps, inner_steps of run came from outer_steps=20" in done.err
    assert result("run")["outer_steps"] == 21
    command = "outer_steps=20 inner_steps=20; then metaopt resume=<its folder> "
    assert f"{command}outer_steps=21\n" in metaopt("show", "run").out


def test_python_has_the_same_and_a_resume_goes_on(tmp_path: Path) -> None:
    def run(folder: str, patience: int) -> package.Result:
        return package.run(
            Ridge(), Unroll(inner_steps=5), Descent("adam", lr=0.3), 60, folder=tmp_path / folder,
            eval_every=5, progress=False, figures=False, keep_best="eval/test_loss",
            early_stopping={"metric": "eval/test_loss", "patience": patience},
        )  # fmt: skip

    short, long = run("short", 1), run("long", 3)
    assert short.stopped is not None
    assert short.stopped.by == "early_stopping"
    assert short.stopped.text.startswith("eval/test_loss was not better")
    assert short.outer_steps < long.outer_steps
    gone_on = package.resume(tmp_path / "short", patience=3, progress=False)
    assert identical([gone_on.outer, gone_on.inner], [long.outer, long.inner])
    assert gone_on.stopped == long.stopped
    best = [package.load(tmp_path / name, best=True) for name in ("short", "long")]
    assert identical(best[0].outer, best[1].outer)
    assert best[0].outer_steps < long.outer_steps
    with pytest.raises(ConfigError, match="keep_best needs a folder"):
        package.run(Ridge(), Unroll(1), Descent("sgd"), 1, keep_best="eval/test_loss")


def test_a_black_box_ends_early_by_its_outer_loss(metaopt: Metaopt) -> None:
    early = ("early_stopping.metric=outer/loss", "early_stopping.patience=3", "eval_every=1")
    metaopt("problem=knapsack", "figures=false", *early, "hydra.run.dir=run")
    losses = [*evaluations("run", "outer/loss").values()]
    best = [*itertools.accumulate(losses, min)]
    assert result("run")["outer_steps"] == len(losses) < 100
    assert best[-1] == best[-4] < best[-5]


def test_of_two_best_checkpoints_the_newer_one_stays(tmp_path: Path) -> None:
    for step in (5, 10, 15):
        (tmp_path / checkpoint.BEST.format(step)).touch()
    checkpoint.prune(tmp_path, 10, keep=1)
    assert [step for step, _ in checkpoint.best_files(tmp_path)] == [10]
