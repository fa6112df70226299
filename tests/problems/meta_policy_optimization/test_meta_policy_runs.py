"""Whole runs of meta policy optimisation: kill -9, a server that fails, replays, refusals."""

from __future__ import annotations

import json
import signal
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import Command
from servers import Asked, Scripted, Served, completion, error

from metaopt.problems.meta_policy_optimization.simulated_meta_judge import SimulatedMetaJudge

pytestmark = pytest.mark.slow

TINY = (
    "problem=meta_policy_optimization", "outer_steps=4", "inner_steps=3", "problem.rollouts=6",
    "figures=false",
)  # fmt: skip
META = SimulatedMetaJudge(0.2)


def answer(asked: Asked) -> Served:
    """Play the meta judge, with draws that are a function of what is asked."""
    return completion(META("meta", asked.body["messages"], zlib.crc32(asked.text.encode())))


def real(server: Scripted) -> list[str]:
    """Return overrides that hand the meta judge to a server."""
    node = "problem.roles.meta"
    return [
        f"+llm@{node}=openai_compatible", f"{node}.base_url={server.url}", f"{node}.model=meta-1",
        f"{node}.key_variable=null", "problem.client.limits={lm_calls: 100000}",
    ]  # fmt: skip


def finished(folder: Path) -> dict[str, Any]:
    summary = json.loads((folder / "result.json").read_text())
    return {k: summary[k] for k in ("metrics", "budget", "outer_steps", "stopped")}


def final(folder: Path) -> Any:
    return torch.load(folder / "final.pt", weights_only=True)


@pytest.mark.parametrize("at", [16, 24, 40])
def test_a_killed_run_continues_to_the_bit(
    metaopt: Callable[..., Any], tmp_path: Path, at: int
) -> None:
    done = metaopt(*TINY, "hydra.run.dir=whole")
    assert done.code == 0, done.err
    killed = Command(tmp_path, *TINY, "hydra.run.dir=killed", kill_at=at)
    assert killed.end() == -signal.SIGKILL
    done = metaopt("resume=killed")
    assert done.code == 0, done.err
    assert finished(tmp_path / "whole") == finished(tmp_path / "killed")
    whole, other = (final(tmp_path / name)["inner"] for name in ("whole", "killed"))
    assert whole["history"] == other["history"]
    assert whole["curve"] == other["curve"]
    assert torch.equal(whole["policy"]["log_probability"], other["policy"]["log_probability"])
    assert whole["samples"] == other["samples"]


def test_a_killed_run_buys_no_answer_twice(metaopt: Callable[..., Any], tmp_path: Path) -> None:
    results: list[dict[str, Any]] = []
    running: list[Command] = []
    overrides = [*TINY, "problem.client.concurrency=1"]

    def script(asked: Asked) -> Served:
        if running and len(server.log) == 20:
            running[0].send(signal.SIGKILL)
        return answer(asked)

    for run in ("whole", "killed"):
        with Scripted(script) as server:
            arguments = [*overrides, *real(server), f"hydra.run.dir={run}"]
            if run == "killed":
                running.append(Command(tmp_path, *arguments))
                assert running[0].end() == -signal.SIGKILL
                server.log.pop()  # its answer never arrived
                arguments = [f"resume={run}"]
            done = metaopt(*arguments)
            assert done.code == 0, done.err
            assert len(server.log) == 3 * (2 * 6 + 1)
        results.append(finished(tmp_path / run))
    # The request whose answer never arrived was sent, and is charged with what it may have cost.
    whole, killed = (result["budget"] for result in results)
    assert killed.pop("lm_requests") == whole.pop("lm_requests") + 1
    assert killed.pop("tokens") > whole.pop("tokens")
    assert results[0] == results[1]


def test_a_faulty_server_loses_no_answer(
    metaopt: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("metaopt.llm.pace._backoff", lambda state: 0.0)
    faults = [
        error(429, "slow down", after="0"), error(500, "oops"), Served(200, b'{"choices": [{"mes'),
    ]  # fmt: skip

    def script(asked: Asked) -> Served:
        draw = zlib.crc32(asked.text.encode()) % 6
        return faults[draw] if draw < 3 and asked.before == 0 else answer(asked)

    whole = tmp_path / "whole"
    with Scripted(answer) as server:
        done = metaopt(*TINY, *real(server), f"hydra.run.dir={whole}")
        assert done.code == 0, done.err
    with Scripted(script) as server:
        done = metaopt(*TINY, *real(server), "hydra.run.dir=faulty")
        assert done.code == 0, done.err
        failed = sum(zlib.crc32(text.encode()) % 6 < 3 for text in server.counts)
        assert failed > 3
        # Rollouts that ask the same share one index and one answer, so no text is asked again.
        assert len(server.log) == 39 + failed
    results = [finished(folder) for folder in (whole, tmp_path / "faulty")]
    budgets = [result.pop("budget") for result in results]
    assert results[0] == results[1]
    assert budgets[0]["lm_calls"] == budgets[1]["lm_calls"]


def test_a_replay_needs_no_server(metaopt: Callable[..., Any], tmp_path: Path) -> None:
    results = []
    with Scripted(answer) as server:
        for mode in ("record", "replay"):
            done = metaopt(
                *TINY, *real(server), f"problem.client.mode={mode}",
                "problem.client.cassette=tape.sqlite", f"hydra.run.dir={mode}",
            )  # fmt: skip
            assert done.code == 0, done.err
            if mode == "record":
                sent = len(server.log)
                server._server.server_close()
            assert len(server.log) == sent
            results.append(finished(tmp_path / mode))
    assert results[0] == results[1]


def test_a_policy_refusal_ends_the_run_with_the_rubric_in_force(
    metaopt: Callable[..., Any], tmp_path: Path
) -> None:
    def script(asked: Asked) -> Served:
        if len(server.log) == 20:  # in the second rewrite
            return completion(None, "content_filter")
        return answer(asked)

    with Scripted(script) as server:
        done = metaopt(*TINY, *real(server), "problem.client.concurrency=1", "hydra.run.dir=run")
        assert done.code == 0, done.err
    result = finished(tmp_path / "run")
    assert "policy" in result["stopped"]["text"]
    assert result["outer_steps"] == 3
    history = final(tmp_path / "run")["inner"]["history"]
    assert history[0] != history[1] == history[2]


def test_no_response_is_in_the_folder(metaopt: Callable[..., Any], tmp_path: Path) -> None:
    done = metaopt(*TINY, "figures=true", "hydra.run.dir=run")
    assert done.code == 0, done.err
    holding = [
        path.name
        for path in (tmp_path / "run").rglob("*")
        if path.is_file() and b"This response shows" in path.read_bytes()
    ]
    assert holding == []
    assert b"This response shows" in (tmp_path / "run.cassette").read_bytes()


def test_a_mistake_is_a_sentence(metaopt: Callable[..., Any]) -> None:
    for change, said in (
        ("+llm@problem.roles.judge=openai_compatible", "cannot be another model"),
        ("problem.votes=9", "1 <= votes <= rollouts"),
        ("optimizer.proposer={_method_: fit_labels}", "need labels: set problem.labels"),
    ):
        extra = ["problem.roles.judge.model=m", "problem.roles.judge.key_variable=null"]
        done = metaopt(*TINY, change, *(extra if "llm@" in change else []))
        assert done.code == 1
        assert said in done.err
        assert "Traceback" not in done.err
