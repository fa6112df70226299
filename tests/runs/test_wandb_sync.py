"""What a server of Weights & Biases gets: of runs that are synced, and of runs online."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import Command
from wandb_server import ServedRun, serving

pytest.importorskip("wandb")
pytestmark = pytest.mark.slow

RIDGE = (
    "problem=ridge", "outer_steps=60", "eval_every=20", "checkpoint_every=7", "figures=false",
    "hydra.run.dir=run", "label=ours", "tracker=wandb",
)  # fmt: skip
OWN = ("_step", "_timestamp", "_runtime", "inner_step")


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, ServedRun]]:
    with serving() as (address, served):
        monkeypatch.setenv("WANDB_BASE_URL", address)
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        monkeypatch.delenv("WANDB_MODE", raising=False)
        monkeypatch.delenv("WANDB_SERVICE", raising=False)  # of an earlier test in this process
        yield served


def logged(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def ended(folder: Path, *arguments: str) -> str:
    """Run the command in a folder to its end; return what it said."""
    command = Command(folder, *arguments)
    assert command.end() == 0, command.said()
    return command.said()


def stopped(folder: Path, step: int, signum: int, *arguments: str) -> None:
    """Run the command in a folder, and send it a signal once it has logged a step."""
    command = Command(folder, *arguments, signal_at=(step, signum))
    code = -signum if signum == signal.SIGKILL else 128 + signum
    assert command.end() == code, command.said()


def sync(folder: Path, *options: str) -> None:
    """Call the command that a run prints at its end."""
    parts = sorted(map(str, folder.glob("run/wandb/offline-run-*")))
    words = [sys.executable, "-m", "wandb", "sync", *options, *parts]
    done = subprocess.run(words, env=os.environ, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Finished syncing" in done.stderr


def assert_served(run: ServedRun, folder: Path) -> None:
    """Assert that the server has the records of metrics.jsonl, each once and in order."""
    rows = run.history()
    expected = logged(folder)
    assert [row["_step"] for row in rows] == [record["outer_step"] for record in expected]
    without = [{k: v for k, v in row.items() if k not in OWN} for row in rows]
    timeless: list[dict[str, Any]] = [
        [{k: v for k, v in row.items() if not k.startswith("time/")} for row in side]
        for side in (without, expected)
    ]
    assert timeless[0] == timeless[1]


def test_a_run_that_is_synced_before_and_after_its_stops_is_whole(
    tmp_path: Path, runs: dict[str, ServedRun]
) -> None:
    stopped(tmp_path, 12, signal.SIGTERM, *RIDGE, "tracker.mode=offline")
    sync(tmp_path)
    (run,) = runs.values()
    assert_served(run, tmp_path / "run")
    assert run.exit_code == 1
    stopped(tmp_path, 30, signal.SIGKILL, "resume=run")
    ended(tmp_path, "resume=run")
    for again in ([], ["--include-synced"]):
        sync(tmp_path, *again)
        assert [*runs.values()] == [run]
        assert len(run.history()) == 60
        assert_served(run, tmp_path / "run")
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["metrics"].items() <= run.summary().items()
    assert (run.exit_code, run.group, run.job_type) == (0, "ridge", "ours")
    assert {*run.tags} == {"Ridge", "Unroll", "Descent adam"}
    assert {*run.artifacts} == {"outer"}


def test_a_run_that_is_killed_online_is_one_run_with_every_record_once(
    tmp_path: Path, runs: dict[str, ServedRun]
) -> None:
    arguments: tuple[str, ...] = (*RIDGE, "tracker.mode=online")
    for step in (12, 30):
        stopped(tmp_path, step, signal.SIGKILL, *arguments)
        arguments = ("resume=run",)
    ended(tmp_path, "resume=run")
    (run,) = runs.values()
    assert_served(run, tmp_path / "run")
    assert run.exit_code == 0


def test_a_run_goes_on_online_after_it_was_kept_offline(
    tmp_path: Path, runs: dict[str, ServedRun]
) -> None:
    stopped(tmp_path, 12, signal.SIGTERM, *RIDGE, "tracker.mode=offline")
    assert not runs
    path = tmp_path / "run" / "config.yaml"
    path.write_text(path.read_text().replace("mode: offline", "mode: online"))
    ended(tmp_path, "resume=run")
    (run,) = runs.values()
    assert_served(run, tmp_path / "run")
    assert not list(tmp_path.glob("run/wandb/offline-run-*"))


def test_a_run_without_a_server_is_kept_offline(
    tmp_path: Path, runs: dict[str, ServedRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    address = os.environ["WANDB_BASE_URL"]
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "3")
    said = ended(tmp_path, *RIDGE, "tracker.mode=online")
    assert "wandb could not start the run online" in said
    monkeypatch.setenv("WANDB_BASE_URL", address)
    sync(tmp_path)
    (run,) = runs.values()
    assert_served(run, tmp_path / "run")
