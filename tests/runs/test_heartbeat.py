"""How far a cell of a multirun is, as its worker writes it."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from metaopt.engine.inner_progress import Progress
from metaopt.runs.heartbeat import Heartbeat, gone, read_heartbeat


def test_a_heartbeat_says_how_far_a_run_is(tmp_path: Path) -> None:
    heart, progress = Heartbeat(tmp_path / "hearts" / "x.json"), Progress()
    with heart.beating():
        record = read_heartbeat(heart.path) or {}
        assert (record["status"], "total" in record, record["left"]) == ("running", False, None)
        watch = heart("ridge", 100, 20)
        watch.follow(progress)
        watch.log(30, {})
        heart._first -= 5.0
        heart._last -= 5.0
        with progress.phase("inner step", 10_000) as phase:
            phase.done = 1_340
            heart._write("running")
    record = read_heartbeat(heart.path) or {}
    assert (record["step"], record["total"]) == (30, 100)
    assert record["phase"] == "inner step 1,340/10,000"
    assert record["left"] == pytest.approx(35, rel=0.2)
    assert not gone(record)
    heart.end("failed", "why")
    assert (read_heartbeat(heart.path) or {})["message"] == "why"
    assert [path.name for path in heart.path.parent.iterdir()] == ["x.json"]


def test_a_heartbeat_goes_on_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metaopt.runs.heartbeat.INTERVAL_S", 0.01)
    heart = Heartbeat(tmp_path / "x.json")
    with heart.beating():
        first = read_heartbeat(heart.path)
        while read_heartbeat(heart.path) == first:
            time.sleep(0.01)
