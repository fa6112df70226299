"""A search: what is drawn, which trial wins, and what a stop, a failure, another process do."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import OmegaConf

optuna = pytest.importorskip("optuna", minversion="4")

from metaopt.cli.jobs import Outcome  # noqa: E402
from metaopt.cli.search_space import distribution, search_space  # noqa: E402
from metaopt.cli.study import OptunaSweeper, _reseed  # noqa: E402
from metaopt.cli.trial import Prune, TrialTask  # noqa: E402
from metaopt.files.errors import ConfigError  # noqa: E402
from metaopt.files.lock import locked  # noqa: E402
from metaopt.report.study import study_of  # noqa: E402

RANDOM = {"_target_": "optuna.samplers.RandomSampler", "seed": 0}
X = "x=interval(0.0, 1.0)"


def parsed(*words: str) -> Any:
    return OverridesParser.create().parse_overrides(list(words))


class Search(OptunaSweeper):
    """A study whose runs are a function of the overrides; no config is composed."""

    def __init__(self, folder: Path, run: Callable[..., Any], **settings: Any) -> None:
        super().__init__(**{"sampler": RANDOM, "n_trials": 6, **settings})
        self.run, self.launches = run, 0
        self.values: dict[str, Any] = {"objective": "eval/loss", "width": 1}
        compose = lambda *_: OmegaConf.create(self.values)  # noqa: E731
        self.loader: Any = SimpleNamespace(load_sweep_config=compose)
        self.master: Any = OmegaConf.create({"hydra": {"job": {"config_name": "train"}}})
        self.folder, self.home = folder, folder / "study"
        self.task = TrialTask(run, self.home / "journal" / "log.jsonl", self.pruner)
        self.launcher: Any = self

    def launch(self, words: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        self.launches += 1
        jobs = []
        for i, cell in enumerate(words):
            trial = optuna.trial.Trial(self.study, self.task.ids[i])
            trial.set_user_attr("folder", str(self.folder / "-".join(cell)))
            given = {k: v for k, _, v in (word.partition("=") for word in cell)}
            outcome = self.run(trial, given)
            if isinstance(outcome, Exception):
                outcome = Outcome("failed", self.folder, message=str(outcome))
            if not isinstance(outcome, Outcome):
                outcome = Outcome("finished", self.folder, outcome)
            jobs.append(JobReturn(status=JobStatus.COMPLETED))
            jobs[-1].return_value = outcome
        return jobs

    def states(self) -> list[str]:
        return [trial.state.name for trial in self.study.trials]


def x(trial: Any, given: dict[str, str]) -> float:
    return float(given["x"])


@pytest.mark.parametrize(
    ("word", "kind", "low", "high", "step", "log"),
    [
        ("x=interval(0.5, 2)", "Float", 0.5, 2, None, False),
        ("x=tag(log, interval(1e-4, 1e-1))", "Float", 1e-4, 1e-1, None, True),
        ("x=interval(1, 64)", "Float", 1, 64, None, False),
        ("x=int(interval(1, 64))", "Int", 1, 64, 1, False),
        ("x=tag(log, int(interval(1, 64)))", "Int", 1, 64, 1, True),
        ("x=range(1, 10)", "Int", 1, 9, 1, False),
        ("x=range(1, 10, 4)", "Int", 1, 9, 4, False),
        ("x=range(9, 0, -4)", "Int", 1, 9, 4, False),
        ("x=range(0.1, 0.5, 0.2)", "Float", 0.1, 0.3, 0.2, False),
    ],
)
def test_ranges_mean_what_they_mean_to_hydra(
    word: str, kind: str, low: float, high: float, step: float | None, log: bool
) -> None:
    d: Any = distribution(parsed(word)[0])
    assert type(d).__name__ == f"{kind}Distribution"
    assert (d.low, d.high, d.step, d.log) == (low, high, step, log)


def test_values_are_drawn_as_they_are_typed() -> None:
    words = ("method=f/a,f/b", "x=null,1e-3,[1,2],'a b'", "seed=3", "x=1,2", "seed=4")
    fixed, space = search_space(parsed(*words[:-2]))
    assert fixed == ["seed=3"]
    assert space["method"].choices == ("f/a", "f/b")  # type: ignore[attr-defined]
    assert space["x"].choices == ("null", "0.001", "[1,2]", "'a b'")  # type: ignore[attr-defined]
    fixed, space = search_space(parsed(*words))
    assert fixed == ["seed=4"]
    assert space["x"].choices == ("1", "2")  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["seed=3"], "nothing to search"),
        (["x=tag(log, interval(0, 1))"], "x=tag(log, interval(0, 1)): "),
        (["x=interval(2.0, 1.0)"], "x=interval(2.0, 1.0): "),
        (["x=tag(ln, interval(1, 2))"], "the tag is log; got ln"),
        (["x=tag(log, choice(1, 2))"], "is of interval(...) or range(...)"),
        (["x=tag(log, range(1, 9, 2))"], "the step of a range is 1"),
    ],
)
def test_what_cannot_be_searched_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        search_space(parsed(*words))
    assert message in str(error.value)


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_a_failed_trial_does_not_win_and_stops_nothing(
    tmp_path: Path, capsys: Any, direction: str
) -> None:
    def run(trial: Any, given: dict[str, str]) -> Any:
        return (
            None if trial.number == 1  # failed, or not finite
            else RuntimeError("no config") if trial.number == 2
            else Outcome("pruned", tmp_path) if trial.number == 3
            else float(given["x"])
        )  # fmt: skip

    search = Search(tmp_path, run, direction=direction)
    assert search.sweep([X]) == 0
    assert search.states() == ["COMPLETE", "FAIL", "FAIL", "PRUNED", "COMPLETE", "COMPLETE"]
    values = {t.number: t.value for t in search.study.trials if t.state.name == "COMPLETE"}
    best = (min if direction == "minimize" else max)(values, key=lambda n: values[n])
    out = capsys.readouterr().out
    assert re.search(r"6 trials, 6 of them in \d+ s: 3 finished, 1 pruned, 2 failed\.\n", out)
    assert f"Best: trial {best}, eval/loss {values[best]:.6g}, in " in out
    assert f"\n  metaopt x={values[best]}\n" in out
    study = study_of(tmp_path)
    assert study is not None
    assert study.counts == {"trials": 6, "finished": 3, "pruned": 1, "failed": 2}
    assert study.best == (best, values[best])
    assert (study.command, len(study.pruned_runs)) == (f"metaopt x={values[best]}", 1)
    # Two were wanted that finish, and a failure of before does not count.
    again = Search(tmp_path, x, direction=direction)
    assert again.sweep([X]) == 0
    assert again.states()[6:] == ["COMPLETE", "COMPLETE"]


def test_a_study_of_failures_has_no_best_trial(tmp_path: Path, capsys: Any) -> None:
    assert Search(tmp_path, lambda *_: None).sweep([X]) == 1
    assert "none is the best" in capsys.readouterr().out
    study = study_of(tmp_path)
    assert study is not None
    assert (study.best, len(study.notes())) == (None, 1)


def test_a_finished_study_runs_nothing_and_a_larger_one_the_rest(tmp_path: Path) -> None:
    Search(tmp_path, x).sweep([X])
    again = Search(tmp_path, x)
    assert (again.sweep([X]), again.launches) == (0, 0)
    more = Search(tmp_path, x, n_trials=9)
    more.sweep([X])
    whole = Search(tmp_path / "whole", x, n_trials=9)
    whole.sweep([X])
    assert [t.params for t in more.study.trials] == [t.params for t in whole.study.trials]
    assert len({t.params["x"] for t in whole.study.trials}) == 9


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_a_stopped_study_is_the_one_that_was_never_stopped(
    tmp_path: Path, capsys: Any, stop: type[BaseException]
) -> None:
    def stopped(trial: Any, given: dict[str, str]) -> float:
        if trial.number == 2:
            raise stop
        return float(given["x"])

    tpe = {"_target_": "optuna.samplers.TPESampler", "seed": 0, "n_startup_trials": 2}
    first = Search(tmp_path / "a", stopped, sampler=tpe)
    with pytest.raises(stop):
        first.sweep([X])
    assert first.states() == ["COMPLETE", "COMPLETE", "RUNNING"]
    assert "the same command goes on with it" in capsys.readouterr().err
    second, whole = Search(tmp_path / "a", x, sampler=tpe), Search(tmp_path / "b", x, sampler=tpe)
    second.sweep([X])
    computed = len(second.study.trials) - 2
    assert f", {computed} of them in " in capsys.readouterr().out  # the one that was stopped, too
    whole.sweep([X])
    key = [(t.number, t.params, t.value, t.state) for t in whole.study.trials]
    assert [(t.number, t.params, t.value, t.state) for t in second.study.trials] == key


def test_a_trial_killed_while_its_parameters_were_drawn_gets_the_rest(tmp_path: Path) -> None:
    whole = Search(tmp_path / "whole", x, n_trials=1)
    whole.sweep([X, "y=interval(0.0, 1.0)"])
    part = Search(tmp_path / "part", x, n_trials=1)
    part.task.journal.parent.mkdir(parents=True)
    _, part.space = search_space(parsed(X, "y=interval(0.0, 1.0)"))
    part.fixed = []
    part._open(part._asked())
    part.study.sampler = part._seeded(0)
    begun = part.study.ask()
    part.study.sampler = part._seeded(0, "x")
    begun.suggest_float("x", 0.0, 1.0)
    part.sweep([X, "y=interval(0.0, 1.0)"])
    (trial,), (undisturbed,) = part.study.trials, whole.study.trials
    assert trial.params == undisturbed.params
    assert trial.params["x"] != trial.params["y"]


def test_what_another_process_runs_is_left_to_it(tmp_path: Path) -> None:
    search = Search(tmp_path, x, n_trials=3)
    search.sweep([X])
    search.goal, search.n_jobs = 6, 2
    other = Search(tmp_path, x, n_trials=6, n_jobs=4)
    other.study, other.space, other.goal = search.study, search.space, 6
    with ExitStack() as held, ExitStack() as rest:
        assert [t.number for t in search._claimed(held)] == [3, 4]
        assert [t.number for t in other._claimed(rest)] == [5]
        assert other._claimed(rest) == []
        held.close()  # killed
        assert [t.number for t in other._claimed(rest)] == [3, 4]


def test_a_trial_whose_run_outlives_the_sweep_is_left_alone(tmp_path: Path) -> None:
    search = Search(tmp_path, x, n_trials=1)
    search.sweep([X])
    search.goal = 2
    with ExitStack() as held:
        (trial,) = search._claimed(held)
        trial.set_user_attr("folder", str(tmp_path))
    with locked(tmp_path), ExitStack() as held:
        assert search._claimed(held) == []
    with ExitStack() as held:
        assert [t.number for t in search._claimed(held)] == [1]


def test_the_same_overrides_are_not_run_at_once(tmp_path: Path) -> None:
    at_once: list[list[str]] = []
    search = Search(tmp_path, x, n_trials=8, n_jobs=4)
    launch = search.launch

    def record(words: Any, initial_job_idx: int) -> Any:
        at_once.append([" ".join(cell) for cell in words])
        return launch(words, initial_job_idx)

    search.launcher = SimpleNamespace(launch=record)
    search.sweep(["x=1,2"])
    assert all(len(set(batch)) == len(batch) for batch in at_once)
    assert sum(map(len, at_once)) == 8
    assert {t.value for t in search.study.trials} == {1.0, 2.0}


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_a_sampler_may_end_the_search(tmp_path: Path) -> None:
    brute = {"_target_": "optuna.samplers.BruteForceSampler", "seed": 0}
    search = Search(tmp_path, x, n_trials=9, sampler=brute)
    assert search.sweep(["x=1,2,3"]) == 0
    assert sorted(t.value for t in search.study.trials) == [1, 2, 3]
    assert Search(tmp_path, x, n_trials=9, sampler=brute).sweep(["x=1,2,3"]) == 0
    assert len(search.study.trials) == 3


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"width": 2}, "width: 1 -> 2"),
        ({"objective": "eval/error"}, "search.objective: eval/loss -> eval/error"),
    ],
)
def test_the_study_of_another_search_is_refused(
    tmp_path: Path, change: dict[str, Any], line: str
) -> None:
    Search(tmp_path, x).sweep([X])
    other = Search(tmp_path, x)
    other.values |= change
    with pytest.raises(ConfigError) as error:
        other.sweep([X])
    assert line in str(error.value)
    with pytest.raises(ConfigError, match=r"search.direction: minimize -> maximize"):
        Search(tmp_path, x, direction="maximize").sweep([X])
    with pytest.raises(ConfigError, match=r"search.space.x.attributes.high: 1.0 -> 2.0"):
        Search(tmp_path, x).sweep(["x=interval(0.0, 2.0)"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_trials": 0}, "hydra.sweeper.n_trials must be a whole number >= 1; got 0"),
        ({"n_jobs": True}, "hydra.sweeper.n_jobs must be a whole number >= 1; got True"),
        ({"direction": ["minimize", "maximize"]}, "for the one metric that objective names"),
    ],
)
def test_settings_that_are_not_legal_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        OptunaSweeper(**settings)


@pytest.mark.parametrize(
    ("values", "message"),
    [({"objective": None}, "needs objective="), ({"methods": ["a"]}, "give method=")],
)
def test_a_config_that_cannot_be_searched_leaves_nothing(
    tmp_path: Path, values: dict[str, Any], message: str
) -> None:
    search = Search(tmp_path, x)
    search.values |= values
    with pytest.raises(ConfigError, match=message):
        search.sweep([X])
    assert list(tmp_path.iterdir()) == []


def test_a_run_reports_each_step_once_and_is_pruned_by_the_others(tmp_path: Path) -> None:
    median = optuna.pruners.MedianPruner(n_startup_trials=1)
    study = optuna.create_study(pruner=median)
    good, bad, lost = study.ask(), study.ask(), study.ask()
    assert not any(Prune(good)(step, 0.1) for step in (10, 20, 20))
    study.tell(good, 0.1)
    assert Prune(bad)(10, 0.2)
    assert not Prune(lost)(10, math.nan)
    assert study.trials[0].intermediate_values == {10: 0.1, 20: 0.1}


def test_seeds_of_nested_samplers_differ_by_trial() -> None:
    config = {"seed": 0, "inner": [{"seed": 0}], "n": 3, "free": {"seed": None}}
    first, second = json.loads(json.dumps(config)), json.loads(json.dumps(config))
    _reseed(first, 0)
    _reseed(second, 1)
    assert first["seed"] != second["seed"]
    assert first["inner"][0]["seed"] == first["seed"]
    assert (first["n"], first["free"]) == (3, {"seed": None})
    sequence = {"_target_": "optuna.samplers.QMCSampler", "seed": 7}
    _reseed(sequence, 5)
    assert sequence["seed"] == 7
