"""Weights & Biases offline: what its file holds, also after kills, stops and failures."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import wandb_log
from processes import Command

from metaopt.files.errors import ConfigError
from metaopt.runs.interrupts import Interrupted, Pruned
from metaopt.runs.tracking import Guarded, Wandb
from metaopt.runs.tracking.description import HIDDEN, filing, sendable
from metaopt.runs.tracking.wandb_file import BLOCK, is_finished

wandb = pytest.importorskip("wandb")

OFFLINE = ("tracker=wandb", "tracker.mode=offline")


def kept(folder: Path) -> Path:
    """Return the only file of a run that is kept offline."""
    (path,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    return path


def logged(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def assert_whole(folder: Path) -> None:
    """Assert that W&B has the records of metrics.jsonl, each once and in order."""
    rows = wandb_log.history(kept(folder))
    expected = logged(folder)
    assert [row.pop("_step") for row in rows] == [record["outer_step"] for record in expected]
    for row in rows:
        assert row.pop("inner_step", None) == row.get("budget/inner_steps")
    assert rows == expected


def test_wandb_refuses_an_unknown_mode(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="online, offline, disabled; got 'off'"):
        Wandb(tmp_path, {}, mode="off")


def test_wandb_without_an_account_is_refused_before_the_run(
    metaopt: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: Any) -> None:
        raise wandb.errors.UsageError("No API key configured.")

    monkeypatch.setattr(wandb, "login", refuse)
    for mode, sentence in (
        ("online", "No API key configured. tracker.mode=offline"),
        ("of", "got 'of'"),
    ):
        done = metaopt("problem=ridge", "debug=tiny", "tracker=wandb", f"tracker.mode={mode}")
        assert sentence in done.err
        assert "Traceback" not in done.err
        assert not list(Path().iterdir())


def test_wandb_that_cannot_start_leaves_the_run_alone(
    metaopt: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    def refuse(mode: str, **_: Any) -> None:
        tried.append(mode)
        raise wandb.Error(f"no way {mode}.")

    monkeypatch.setattr(wandb, "init", refuse)
    monkeypatch.setattr(wandb, "teardown", lambda: tried.append("teardown"))
    monkeypatch.setattr(wandb, "login", lambda **_: None)
    with pytest.raises(ConfigError, match=r"no way offline\. tracker.mode=offline"):
        Wandb(Path(), {}, mode="online")
    assert tried == ["online", "teardown", "offline"]
    done = metaopt("problem=ridge", "debug=tiny", "tracker=wandb", "tracker.mode=online")
    assert done.code == 0
    assert "wandb could not start the run online (no way online); it is kept offline." in done.err
    assert "the tracker failed while starting" in done.err
    (result,) = Path().glob("runs/ridge/*/result.json")
    assert json.loads(result.read_text())["outer_steps"] == 3


def test_wandb_disabled_writes_nothing(tmp_path: Path) -> None:
    with Wandb(tmp_path, {"seed": 1}, mode="disabled") as tracker:
        tracker.log(1, {"a": 1.0})
        tracker.conclude(
            {"metrics": {"eval/a": 1.0}, "budget": {}, "stopped": None, "outer_steps": 1}
        )
    assert not list(tmp_path.iterdir())


def test_a_run_is_filed_by_its_table_its_method_and_its_parts() -> None:
    config: dict[str, Any] = {
        "name": "ridge/table",
        "label": None,
        "problem": {"_target_": "metaopt.problems.examples.Ridge"},
        "estimator": {
            "_target_": "metaopt.estimators.Implicit",
            "solve": {"_target_": "metaopt.estimators.Neumann"},
        },
        "optimizer": {"_class_": "metaopt.optimizers.descent:Descent", "algorithm": "adam"},
    }
    tags = ["Ridge", "Implicit Neumann", "Descent adam"]
    assert filing(config) == ("ridge/table", "Implicit Neumann", tags)
    assert filing({**config, "label": "ours"}).job_type == "ours"
    seeds = {**config, "problem": [config["problem"]] * 2}
    assert filing(seeds).tags == tags
    assert filing({"name": "x" * 200, "label": "y" * 200}) == ("x" * 128, "y" * 64, [])


def test_a_config_is_sent_without_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_SERVICE_TOKEN", "abcdefgh-12345")
    config = {
        "llm": [{"api_key": "sk-1", "key_variable": "OPENAI_API_KEY", "max_tokens": 5}],
        "password": None,
        "domain_token": True,
        "header": "Bearer abcdefgh-12345",
        "url": "https://me:pass@host/v1",
    }
    assert sendable(config) == {
        "llm": [{"api_key": HIDDEN, "key_variable": "OPENAI_API_KEY", "max_tokens": 5}],
        "password": None,
        "domain_token": True,
        "header": HIDDEN,
        "url": f"https://{HIDDEN}@host/v1",
    }


@pytest.mark.slow
def test_a_run_is_in_wandb_with_config_summary_axes_and_products(
    metaopt: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = "sk-0123456789abcdef"
    monkeypatch.setenv("WANDB_API_KEY", secret)
    monkeypatch.setenv("OPENAI_API_KEY", secret)
    folder = Path("run")
    done = metaopt(
        "problem=domain_reweighting", "method=domain_reweighting/reweighted", "debug=tiny",
        "hydra.run.dir=run", "tracker.tags=[mine]", f"label='a {secret}'", *OFFLINE, *SMALL,
    )  # fmt: skip
    assert done.code == 0, done.err
    assert f"wandb sync {folder.resolve()}/wandb/offline-run-*" in done.out
    path = kept(folder)
    assert_whole(folder)
    result = json.loads((folder / "result.json").read_text())
    run = wandb_log.run(path)
    assert (run.project, run.run_group) == ("metaopt", "domain_reweighting")
    assert run.job_type == HIDDEN
    assert {"DomainReweighting", "Descent adam", "mine"} < {*run.tags}
    config = wandb_log.config(path)
    assert config["problem"]["batch"] == 16
    assert config["provenance"]["commit"] == result["commit"]
    summary = wandb_log.summary(path)
    final = {k: v for k, v in result["metrics"].items() if v is not None}
    assert {k: summary[k] for k in final} == final
    assert {f"budget/{k}": v for k, v in result["budget"].items()}.items() <= summary.items()
    assert wandb_log.exit_code(path) == 0
    axes = wandb_log.axes(path)
    assert {axes[k] for k in axes if k.startswith("inner/")} == {"inner_step"}
    assert {axes[k] for k in axes if not k.startswith("inner/")} == {"outer_step"}
    assert axes.keys() | {"outer_step", "inner_step", "_step"} == {
        k for row in wandb_log.history(path) for k in row
    }
    files = wandb_log.artifacts(path)
    assert files["outer"] == ["outer.safetensors"]
    assert {"best_of_n.csv", "weights.csv"} <= {*files["product"]}
    assert not any("process_reward_model" in name for name in files["product"])
    assert summary["tables/weights"]["_type"] == "table-file"
    for file in filter(Path.is_file, (folder / "wandb").rglob("*")):
        assert secret.encode() not in file.read_bytes(), file


SMALL = [
    "problem.batch=16", "problem.meta_batch=40", "problem.reference_steps=4", "inner_steps=2",
    "problem.task.data.chains=40", "problem.task.data.meta_size=40",
    "problem.task.data.questions=4", "problem.task.data.candidates=8",
    "problem.task.data.held_out=20",
]  # fmt: skip


LONG = (
    "problem=ridge", "outer_steps=60", "eval_every=20", "checkpoint_every=7", "figures=false",
    "hydra.run.dir=run", *OFFLINE,
)  # fmt: skip


@pytest.mark.slow
def test_killed_twice_a_run_is_one_run_with_every_record_once(tmp_path: Path) -> None:
    folder, ids = tmp_path / "run", set()
    arguments: tuple[str, ...] = LONG
    for step in (12, 30):
        command = Command(tmp_path, *arguments, signal_at=(step, signal.SIGKILL))
        assert command.end() == -signal.SIGKILL
        ids.add(json.loads((folder / "wandb" / "metaopt.json").read_text())["id"])
        arguments = ("resume=run",)
    folder = folder.rename(tmp_path / "elsewhere")
    assert Command(tmp_path, "resume=elsewhere").end() == 0
    assert_whole(folder)
    assert ids == {wandb_log.run(kept(folder)).run_id}
    assert Command(tmp_path, "resume=elsewhere", "outer_steps=70").end() == 0
    assert_whole(folder)
    assert ids == {wandb_log.run(kept(folder)).run_id}
    assert wandb_log.summary(kept(folder))["outer_step"] == 70


@pytest.mark.slow
def test_a_run_that_a_signal_stops_is_preempted_and_goes_on(tmp_path: Path) -> None:
    command = Command(tmp_path, *LONG, signal_at=(12, signal.SIGTERM))
    assert command.end() == 143
    path = kept(tmp_path / "run")
    assert_whole(tmp_path / "run")
    assert any(r.HasField("preempting") for r in wandb_log.records(path))
    assert wandb_log.exit_code(path) == 1  # which wandb takes for preempted after that
    assert Command(tmp_path, "resume=run").end() == 0
    assert_whole(tmp_path / "run")
    assert kept(tmp_path / "run") != path
    assert wandb_log.exit_code(kept(tmp_path / "run")) == 0


@pytest.mark.slow
def test_a_pruned_run_is_finished_and_one_that_failed_is_not(tmp_path: Path) -> None:
    expected = {
        "pruned": (Pruned(4), 0, "pruned after outer step 4"),
        "paused": (Interrupted(15, 4), 1, None),
        "failed": (ArithmeticError(), 1, None),
    }
    for name, (error, code, stopped) in expected.items():
        folder = tmp_path / name
        folder.mkdir()
        with pytest.raises(type(error)), Guarded(lambda: Wandb(folder, {}, mode="offline"), folder):  # noqa: B023
            raise error
        path = kept(folder)
        preempted = any(r.HasField("preempting") for r in wandb_log.records(path))
        assert (wandb_log.exit_code(path), preempted) == (code, name == "paused")
        assert wandb_log.summary(path).get("stopped") == stopped


@pytest.mark.slow
def test_a_pruned_trial_of_a_search_is_finished(metaopt: Callable[..., Any]) -> None:
    pytest.importorskip("optuna", minversion="4")
    done = metaopt(
        "-m", "hydra/sweeper=tune", "problem=ridge", "objective=eval/test_loss", *OFFLINE,
        "outer_lr=tag(log, interval(1.0e-6, 1.0e-1))", "outer_steps=6", "eval_every=2",
        "figures=false", "hydra.sweeper.n_trials=6", "+hydra.sweeper.pruner.n_startup_trials=1",
    )  # fmt: skip
    assert done.code == 0, done.err
    codes = {}
    for folder in (p.parent for p in Path("results/ridge").glob("*/config.yaml")):
        path = kept(folder)
        codes[(folder / "result.json").exists()] = wandb_log.exit_code(path)
        assert wandb_log.run(path).run_group == "ridge"
    assert codes == {True: 0, False: 0}


@pytest.mark.slow
def test_offline_runs_of_one_process_are_kept_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_PROJECT", "theirs")
    folders = [tmp_path / "a", tmp_path / "of b"]
    for folder in folders:
        folder.mkdir()
    first, second = (Wandb(folder, {"seed": i}) for i, folder in enumerate(folders))
    with first, second:
        first.log(1, {"loss": 1.0})
        second.log(1, {"loss": 2.0})
    out = capsys.readouterr().out
    assert out.count("wandb sync") == 2
    assert f"wandb sync '{folders[1]}/wandb'/offline-run-*\n" in out
    runs = [wandb_log.run(kept(folder)) for folder in folders]
    assert [wandb_log.config(kept(folder))["seed"] for folder in folders] == [0, 1]
    assert [wandb_log.history(kept(folder))[0]["loss"] for folder in folders] == [1.0, 2.0]
    assert len({run.run_id for run in runs}) == 2
    assert {run.project for run in runs} == {"theirs"}
    monkeypatch.setenv("WANDB_MODE", "off")
    with pytest.raises(ValueError, match=r"WANDB_MODE must be one of .* got 'off'"):
        Wandb(tmp_path, {})


@pytest.mark.slow
def test_a_folder_that_is_computed_again_is_another_run(tmp_path: Path) -> None:
    def run_id(seed: int, resume_step: int | None = None) -> str:
        with Wandb(tmp_path, {"seed": seed}, resume_step, mode="offline") as tracker:
            return str(tracker.run.id)

    first = run_id(0)
    assert run_id(0) == first  # killed before its first checkpoint
    assert run_id(1, resume_step=3) == first  # extended
    second = run_id(1)
    assert second != first
    (tmp_path / "wandb" / "metaopt.json").write_text("{")
    assert run_id(1) not in (first, second)


@pytest.mark.slow
def test_a_file_that_was_not_written_to_its_end_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Wandb(tmp_path, {}, mode="offline") as tracker:
        for step in range(1, 400):
            tracker.log(step, {f"metric_{k}": k / step for k in range(9)})
    path = kept(tmp_path)
    content = path.read_bytes()
    assert len(content) > 3 * BLOCK
    assert len(wandb_log.history(path)) == 399
    assert is_finished(path)
    for size in (len(content) - 1, 2 * BLOCK, BLOCK + 3, 7, 0):
        path.write_bytes(content[:size])
        assert not is_finished(path)
    monkeypatch.setattr("metaopt.runs.tracking.weights_and_biases.is_finished", lambda _: False)
    monkeypatch.setattr("metaopt.runs.tracking.weights_and_biases.WRITING_TIMEOUT_S", 0.1)
    with pytest.raises(OSError, match="is the disk full"), Wandb(tmp_path, {}, mode="offline"):
        pass
