"""A search in processes: what kills, signals, launchers and a second process leave of its study."""

from __future__ import annotations

import json
import re
import shlex
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from processes import Command

optuna = pytest.importorskip("optuna", minversion="4")

from metaopt.cli.trial import STUDY, storage  # noqa: E402

pytestmark = pytest.mark.slow

TRIALS = 8
SEARCH = (
    "experiment=ridge/tune", f"hydra.sweeper.n_trials={TRIALS}", "outer_steps=40",
    "checkpoint_every=10",
)  # fmt: skip


def trials(folder: Path) -> list[tuple[Any, ...]]:
    """Return what a study knows of its trials, and what their runs have written."""
    home = folder / "results" / "ridge" / "tune"
    study = optuna.load_study(
        study_name=STUDY, storage=storage(home / "study" / "journal" / "log.jsonl")
    )
    return [
        (t.number, t.params, t.state, t.value, t.intermediate_values, result(t))
        for t in study.trials
    ]


def result(trial: Any) -> bytes | None:
    path = Path(trial.user_attrs["folder"]) / "result.json"
    return path.read_bytes() if path.exists() else None


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Any, ...]]:
    folder = tmp_path_factory.mktemp("undisturbed")
    command = Command(folder, *SEARCH)
    assert command.end() == 0, command.said()
    known = trials(folder)
    assert {t[2].name for t in known} == {"COMPLETE", "PRUNED"}
    return known


@pytest.mark.parametrize("at", [61])
def test_a_search_that_is_killed_again_and_again_is_the_undisturbed_one(
    tmp_path: Path, undisturbed: list[Any], at: int
) -> None:
    kills = 0
    while (status := Command(tmp_path, *SEARCH, kill_at=at).end()) == -signal.SIGKILL:
        kills += 1
        assert kills < 60
    assert status == 0
    assert kills >= 3
    assert trials(tmp_path) == undisturbed


def test_a_search_that_is_interrupted_goes_on(tmp_path: Path, undisturbed: list[Any]) -> None:
    command = Command(tmp_path, *SEARCH)
    while len([*tmp_path.glob("results/ridge/tune/*/checkpoints/*.pt")]) < 3:
        assert command.running(), command.said()
        time.sleep(0.01)
    command.send(signal.SIGINT)
    assert command.end() == 130
    assert "The study is kept; the same command goes on with it." in command.said()
    assert Command(tmp_path, *SEARCH).end() == 0
    assert trials(tmp_path) == undisturbed


def test_two_processes_share_a_study_also_when_one_is_killed(tmp_path: Path) -> None:
    kill = (25, signal.SIGKILL)  # in its first trial
    both = [Command(tmp_path, *SEARCH, signal_at=at) for at in (None, kill)]
    first, second = (command.end() for command in both)
    assert (first, second) == (0, -signal.SIGKILL)
    known = trials(tmp_path)
    assert len(known) == TRIALS
    assert {t[2].name for t in known} <= {"COMPLETE", "PRUNED"}
    assert len({json.dumps(t[1]) for t in known}) == TRIALS  # nobody draws what another drew
    assert not (tmp_path / "results/ridge/tune/study/locks").exists()


def test_a_launcher_runs_several_trials_at_once(metaopt: Callable[..., Any]) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    parallel = (
        "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "hydra.sweeper.n_jobs=2",
        "hydra.sweeper.n_trials=4",
    )  # fmt: skip
    done = metaopt("experiment=ridge/tune", "outer_steps=20", *parallel)
    assert done.code == 0, done.err
    assert re.search(r"4 trials, 4 of them in \d+ s: \d finished, \d pruned, 0 failed", done.out)
    again = metaopt("experiment=ridge/tune", "outer_steps=20", *parallel)
    assert "4 trials, nothing to compute" in again.out


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_trials_that_fail_do_not_win_and_the_best_can_be_run(
    metaopt: Callable[..., Any], direction: str
) -> None:
    done = metaopt(
        "-m", "problem=ridge", "hydra/sweeper=tune", "objective=eval/test_loss", "outer_steps=20",
        "outer_lr=0.01,0.02,-1.0,1.0e+300", "figures=false", "hydra.sweeper.n_trials=8",
        f"hydra.sweeper.direction={direction}", "hydra.sweeper.pruner=null",
        "problem.max_penalty=null",  # so that the largest rate makes a trial fail
    )  # fmt: skip
    assert done.code == 0
    assert not re.search(", 0 failed", done.out)
    found = re.search(r"Best: trial \d+, eval/test_loss (\S+), in .*\n  (metaopt .*)\n", done.out)
    assert found, done.out
    assert re.search(r"outer_lr=0.0[12]( |$)", found[2])
    assert metaopt(*shlex.split(found[2])[1:]).code == 0
    (single,) = (json.loads(p.read_text()) for p in Path().glob("runs/**/result.json"))
    assert f"{single['metrics']['eval/test_loss']:.6g}" == found[1]
    hashes = {
        json.loads(p.read_text())["config_hash"] for p in Path().glob("results/**/result.json")
    }
    assert single["config_hash"] in hashes
