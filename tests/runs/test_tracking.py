import builtins
import json
from hashlib import sha256
from pathlib import Path

import pytest
import torch

from metaopt.files.errors import ConfigError
from metaopt.runs.tracking import (
    Jsonl,
    TensorBoard,
    Wandb,
    means,
    of_replicates,
    run_id,
    values_of,
)


def records(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_numbers_tensors_and_the_values_of_replicates_are_read():
    each = torch.tensor([1.0, 4.0], requires_grad=True) * 2
    actual = values_of({"a": torch.tensor(2.5), "b": 3, "c": torch.tensor(1), "d": each})
    assert actual == {"a": 2.5, "b": 3, "c": 1.0, "d": [2.0, 8.0]}
    assert list(actual) == ["a", "b", "c", "d"]
    assert means(actual) == {"a": 2.5, "b": 3, "c": 1.0, "d": 5.0}
    assert of_replicates(actual) == {"d": [2.0, 8.0]}


def test_the_values_of_replicates_are_logged_beside_their_means(tmp_path):
    with Jsonl(tmp_path / "metrics.jsonl") as tracker:
        tracker.record(1, {"outer/loss": [0.5, 0.25], "inner/loss": [1.0, float("nan")]})
    (record,) = records(tmp_path / "metrics.jsonl")
    assert (record["outer/loss"], record["inner/loss"]) == (0.375, None)
    assert record["replicates"] == {"outer/loss": [0.5, 0.25], "inner/loss": [1.0, None]}


def test_jsonl_appends_a_line_at_once(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with Jsonl(path) as tracker:
        tracker.log(1, {"outer/loss": 0.5})
        assert records(path) == [{"outer_step": 1, "outer/loss": 0.5}]
        tracker.log(2, {"outer/loss": float("nan"), "inner/loss": float("inf")})
    assert records(path)[1] == {"outer_step": 2, "outer/loss": None, "inner/loss": None}


def test_jsonl_goes_on_after_what_is_kept(tmp_path):
    path, kept = tmp_path / "metrics.jsonl", b'{"outer_step": 1}\n'
    path.write_bytes(kept + b'{"outer_step": 2}\n{"outer_step": 2, "o')
    tracker = Jsonl(path, kept)
    tracker.log(3, {"a": 1.0})
    assert records(path) == [{"outer_step": 1}, {"outer_step": 3, "a": 1.0}]
    content = path.read_bytes()
    assert tracker.commit() == {"bytes": len(content), "sha256": sha256(content).hexdigest()}
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]
    Jsonl(path)
    assert path.read_bytes() == b""


def test_tensorboard_writes_scalars(tmp_path):
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with TensorBoard(tmp_path, {}) as tracker:
        tracker.log(3, {"outer/loss": 0.5})
    with TensorBoard(tmp_path, {}, resume_step=3) as tracker:
        tracker.log(4, {"outer/loss": 0.25})
    actual = accumulators.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in actual.Scalars("outer/loss")] == [(3, 0.5), (4, 0.25)]


@pytest.mark.parametrize(
    ("service", "package", "module"),
    [(Wandb, "wandb", "wandb"), (TensorBoard, "tensorboard", "torch.utils.tensorboard")],
)
def test_a_missing_package_is_named(tmp_path, monkeypatch, service, package, module):
    real = builtins.__import__

    def absent(name, *args, **kwargs):
        if name == module:
            raise ModuleNotFoundError(f"No module named {package!r}", name=package)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(ModuleNotFoundError, match=f"pip install {package}"):
        service(tmp_path, {})


def test_wandb_refuses_an_unknown_mode(tmp_path):
    with pytest.raises(ValueError, match="online, offline, disabled; got 'off'"):
        Wandb(tmp_path, {}, mode="off")


@pytest.mark.slow
def test_wandb_takes_its_mode_from_the_environment(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_MODE", "offline")
    with Wandb(tmp_path, {}) as tracker:
        tracker.log(1, {"loss": 1.0})
    tracker.close()
    assert len(list(tmp_path.glob("wandb/offline-run-*"))) == 1
    assert capsys.readouterr().out.count(f"wandb sync {tmp_path}/wandb/offline-run-*") == 1
    Wandb(tmp_path, {}, mode="disabled").close()
    assert "wandb sync" not in capsys.readouterr().out
    monkeypatch.setenv("WANDB_MODE", "off")
    with pytest.raises(ValueError, match=r"WANDB_MODE must be one of .* got 'off'"):
        Wandb(tmp_path, {})


def test_wandb_says_why_it_could_not_start(tmp_path, monkeypatch):
    def refuse(**_):
        raise wandb.Error("No API key configured.")

    wandb = pytest.importorskip("wandb")
    monkeypatch.setattr(wandb, "init", refuse)
    with pytest.raises(ConfigError, match=r"No API key configured\. tracker.mode=offline"):
        Wandb(tmp_path, {}, mode="online")


def test_wandb_without_an_account_is_refused_before_the_run(metaopt, monkeypatch):
    def refuse(**_):
        raise wandb.errors.UsageError("No API key configured.")

    wandb = pytest.importorskip("wandb")
    monkeypatch.setattr(wandb, "login", refuse)
    for mode, sentence in (
        ("online", "No API key configured. tracker.mode=offline"),
        ("of", "got 'of'"),
    ):
        done = metaopt("problem=ridge", "debug=tiny", "tracker=wandb", f"tracker.mode={mode}")
        assert sentence in done.err
        assert "Traceback" not in done.err
        assert not list(Path().iterdir())


def test_wandb_disabled_writes_nothing(tmp_path):
    with Wandb(tmp_path, {"seed": 1}, mode="disabled") as tracker:
        tracker.log(1, {"a": 1.0})
    assert not list(tmp_path.glob("**/*.wandb"))


@pytest.mark.slow
def test_wandb_offline_keeps_two_runs_of_one_process_apart(tmp_path):
    folders = [tmp_path / "a", tmp_path / "b"]
    trackers = []
    for seed, folder in enumerate(folders):
        folder.mkdir()
        trackers.append(Wandb(folder, {"seed": seed}, mode="offline"))
    first, second = trackers
    with first, second:
        first.log(1, {"loss": 1.0})
        second.log(1, {"loss": 2.0})
        assert [t.run.config["seed"] for t in trackers] == [0, 1]
        assert [t.run.summary["loss"] for t in trackers] == [1.0, 2.0]
    assert [t.run.id for t in trackers] == [run_id(f) for f in folders]
    assert first.run.id != second.run.id
    assert all(len(list(f.glob("wandb/offline-run-*/*.wandb"))) == 1 for f in folders)


def test_wandb_run_id_is_that_of_the_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    assert run_id(tmp_path / "run") == run_id(tmp_path / "x" / ".." / "run")
    assert run_id(Path("run")) == run_id(tmp_path / "run")
