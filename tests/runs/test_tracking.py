import builtins
import json
from hashlib import sha256

import pytest
import torch

from metaopt.runs.tracking import (
    Guarded,
    Jsonl,
    TensorBoard,
    Tracker,
    Wandb,
    means,
    of_replicates,
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


class Failing(Tracker):
    """Fails at one of its calls."""

    def __init__(self, at):
        self.at, self.calls = at, []
        self.call("init")

    def call(self, name):
        self.calls.append(name)
        if name == self.at:
            raise OSError(28, "No space left on device")

    def __enter__(self):
        self.call("enter")
        return self

    def log(self, step, metrics):
        self.call("log")

    def conclude(self, result):
        self.call("conclude")

    def close(self):
        self.call("close")


@pytest.mark.parametrize(
    ("at", "what", "calls"),
    [
        ("init", "starting", []),
        ("enter", "starting", ["init", "enter", "close"]),
        ("log", "logging outer step 1", ["init", "enter", "log", "close"]),
        ("conclude", "recording the result", ["init", "enter", "log", "log", "conclude", "close"]),
        ("close", "closing", ["init", "enter", "log", "log", "conclude", "close"]),
        ("", "", ["init", "enter", "log", "log", "conclude", "close"]),
    ],
)
def test_a_tracker_that_fails_is_named_once_and_closed(tmp_path, capsys, at, what, calls):
    made = []

    def make():
        made.append(Failing(at))
        return made[0]

    with Guarded(make, tmp_path) as tracker:
        for step in (1, 2):
            tracker.record(step, {"loss": 1.0})
        tracker.conclude({})
    assert (made[0].calls if made else []) == calls
    err = capsys.readouterr().err
    assert err.count("metrics.jsonl has every record") == bool(at)
    if at:
        assert f"failed while {what} (OSError: [Errno 28] No space left on device)" in err


def test_what_stops_a_run_is_not_taken_for_a_failure_of_its_tracker(tmp_path):
    with pytest.raises(ArithmeticError), Guarded(lambda: Failing(""), tmp_path):
        raise ArithmeticError
    with pytest.raises(KeyboardInterrupt):
        Guarded(interrupted, tmp_path)


def interrupted():
    raise KeyboardInterrupt
