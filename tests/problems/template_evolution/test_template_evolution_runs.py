"""Whole runs of template evolution: real servers, kill -9, replays, and no text on disk."""

from __future__ import annotations

import json
import re
import signal
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from processes import Command
from servers import Asked, Scripted, Served, completion, error

from metaopt.problems.template_evolution.canary_world import CanaryWorld

pytestmark = pytest.mark.slow

TINY = (
    "problem=template_evolution", "outer_steps=3", "inner_steps=2", "problem.task.queries=2",
    "problem.candidates=6", "problem.inherited=3", "problem.prompts_per_step=3",
    "problem.screening_pool=6",
    "figures=false",
)  # fmt: skip
PERMISSION = (
    "owner=its maker", "system=a test server", "scope=harmless canaries",
    "contact=nobody@localhost", "expiry=2999-01-01", "statement=go ahead",
)  # fmt: skip
WORLD = CanaryWorld(2, seed=0)
CANARY = re.compile(rb"canary[0-9a-f]{8}")


def answer(asked: Asked) -> Served:
    """Play target and judge of the world, by what is asked."""
    key = zlib.crc32(asked.text.encode())
    messages = asked.body["messages"]
    judging = "\n\nResponse:\n" in asked.text
    text = WORLD._judge("judge", messages, key) if judging else WORLD.respond(asked.text, key)
    return completion(text)


def real(server: Scripted, *roles: str) -> list[str]:
    """Return overrides that hand roles to a server."""
    overrides = []
    for role in roles:
        node = f"problem.roles.{role}"
        overrides += [f"+llm@{node}=openai_compatible", f"{node}.base_url={server.url}",
                  f"{node}.model=canary-{role}", f"{node}.key_variable=null"]  # fmt: skip
    overrides += ["problem.client.limits={lm_calls: 100000}"]
    return [*overrides, *(f"+problem.roles.target.authorisation.{field}" for field in PERMISSION)]


def test_a_killed_run_continues_without_asking_twice(
    metaopt: Callable[..., Any], tmp_path: Path
) -> None:
    results: list[dict[str, Any]] = []
    running: list[Command] = []
    overrides = [*TINY, "problem.client.concurrency=1"]

    def script(asked: Asked) -> Served:
        if running and len(server.log) == 70:
            running[0].send(signal.SIGKILL)
        return answer(asked)

    for run in ("whole", "killed"):
        with Scripted(script) as server:
            arguments = [*overrides, *real(server, "target", "judge"), f"hydra.run.dir={run}"]
            if run == "killed":
                running.append(Command(tmp_path, *arguments))
                assert running[0].end() == -signal.SIGKILL
                lost = server.log.pop()  # its answer never arrived
                arguments = [f"resume={run}"]
            done = metaopt(*arguments)
            assert done.code == 0, done.err
            asked = [(a.body["model"], a.text) for a in server.log]
        assert len(asked) == len(set(asked)) > 100
        summary = json.loads((tmp_path / run / "result.json").read_text())
        results.append({k: summary[k] for k in ("metrics", "budget", "outer_steps", "stopped")})
    assert ("canary-target", lost.text) in asked or ("canary-judge", lost.text) in asked
    # The request whose answer never arrived was sent, and is charged with what it may have cost.
    whole, killed = (result["budget"] for result in results)
    assert killed.pop("lm_requests") == whole.pop("lm_requests") + 1
    assert killed.pop("tokens") > whole.pop("tokens")
    assert results[0] == results[1]


def test_faults_lose_no_paid_reply_and_score_no_error(
    metaopt: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("metaopt.llm.pace._backoff", lambda state: 0.0)
    faults = [
        error(429, "slow down", after="0"), error(500, "oops"), Served(200, b'{"choices": [{"mes'),
        error(400, "no such thing"),
    ]  # fmt: skip

    damaged = True

    def script(asked: Asked) -> Served:
        draw = zlib.crc32(asked.text.encode()) % 40
        if draw < 2 and asked.before == 0:
            return faults[draw]
        if draw in (3, 4, 5):
            return faults[3]
        return faults[draw] if draw == 2 and damaged else answer(asked)

    with Scripted(script) as server:
        done = metaopt(*TINY, *real(server, "target", "judge"), "hydra.run.dir=run")
        assert done.code == 1
        assert "requests failed: The answer is not JSON" in done.err  # asked again, then not final
        assert "metaopt resume=run" in done.err
        damaged = False
        done = metaopt("resume=run")
        assert done.code == 0, done.err
        for text, count in server.counts.items():
            draw = zlib.crc32(text.encode()) % 40
            if draw in (3, 4, 5):
                assert count <= 2  # refused, and asked again in the step that is taken again
            elif draw != 2:
                assert count == (2 if draw < 2 else 1)  # what was answered is paid for once
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    coverage = [json.loads(line)["judge/coverage"] for line in lines]
    assert 0.8 < min(coverage) < 1  # what the server refuses has no score


def test_a_policy_refusal_ends_the_run(metaopt: Callable[..., Any], tmp_path: Path) -> None:
    def script(asked: Asked) -> Served:
        if len(server.log) == 30:
            return completion(None, "content_filter")
        return answer(asked)

    with Scripted(script) as server:
        done = metaopt(
            *TINY, *real(server, "target"), "problem.client.concurrency=1", "hydra.run.dir=run"
        )
        assert done.code == 0, done.err
        assert len(server.log) == 30
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert "policy" in result["stopped"]["text"]
    assert result["outer_steps"] < 3
    assert "stopped early" in done.out


def test_a_replay_needs_no_server(metaopt: Callable[..., Any], tmp_path: Path) -> None:
    results = []
    with Scripted(answer) as server:
        roles = real(server, "target", "judge")
        for mode, concurrency in (("record", 1), ("replay", 64), ("replay", 1)):
            run = tmp_path / f"{mode}-{concurrency}"
            done = metaopt(
                *TINY, *roles, f"problem.client.mode={mode}", "problem.client.cassette=tape.sqlite",
                f"problem.client.concurrency={concurrency}", f"hydra.run.dir={run}",
            )  # fmt: skip
            assert done.code == 0, done.err
            sent = len(server.log)
            if mode == "record":
                server._server.server_close()
                recorded = sent
            assert sent == recorded
            result = json.loads((run / "result.json").read_text())
            results.append((result["metrics"], result["budget"]))
    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize("transcripts", [False, True])
def test_texts_are_in_the_folder_only_when_asked_for(
    metaopt: Callable[..., Any], tmp_path: Path, transcripts: bool
) -> None:
    larger = [
        "outer_steps=4",
        "inner_steps=5",
        "problem.candidates=10",
        "problem.prompts_per_step=5",
        "figures=true",
    ]
    texts = f"problem.transcripts={transcripts}".lower()
    done = metaopt(*TINY, *larger, texts, "hydra.run.dir=run")
    assert done.code == 0, done.err
    holding = {
        path.name
        for path in (tmp_path / "run").rglob("*")
        if path.is_file() and CANARY.search(path.read_bytes())
    }
    assert ("round_0004.jsonl" in holding) == transcripts
    assert {name[:6] for name in holding} == ({"round_"} if transcripts else set())
    private = tmp_path / "run.cassette"
    assert CANARY.search(private.read_bytes())
    assert private.stat().st_mode & 0o777 == 0o600
    assert not CANARY.search((done.out + done.err).encode())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("~problem.roles.target.authorisation", "needs an authorisation"),
        ("problem.roles.target.authorisation.expiry=2001-01-01", "expired on 2001-01-01"),
        ("problem.roles.target.authorisation.owner=''", "lacks owner"),
        (
            "problem.roles.target.base_url=http://example.com/v1",
            "not in problem.roles.target.hosts=",
        ),
    ],
)
def test_a_real_target_needs_a_permission(
    metaopt: Callable[..., Any], tmp_path: Path, change: str, said: str
) -> None:
    with Scripted(answer) as server:
        done = metaopt(*TINY, *real(server, "target"), change)
        assert server.log == []
    assert done.code == 1
    assert said in done.err
    assert "Traceback" not in done.err


def test_the_permission_is_in_the_result_by_its_hash(
    metaopt: Callable[..., Any], tmp_path: Path
) -> None:
    with Scripted(answer) as server:
        done = metaopt(*TINY, *real(server, "target"), "hydra.run.dir=run")
    assert done.code == 0, done.err
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert re.fullmatch("[0-9a-f]{64}", result["authorisation"]["target"])


def test_the_report_says_what_was_spent_and_found(
    metaopt: Callable[..., Any], tmp_path: Path
) -> None:
    done = metaopt(*TINY, "figures=true", "hydra.run.dir=run")
    assert done.code == 0, done.err
    for said in ("eval/success", "eval/auroc", "calls: ", "first template:", "best template:"):
        assert said in done.out
    judge = json.loads((tmp_path / "run" / "judge.json").read_text())["judge"]
    assert judge["template"].splitlines()[-1] == "End with one line: Score: <number>"
    assert "<html" in (tmp_path / "run" / "report.html").read_text()


def test_the_report_is_the_same_at_every_eval_every(
    metaopt: Callable[..., Any], tmp_path: Path
) -> None:
    said = []
    for every in (1, 4):
        folder = f"run{every}"
        options = ["outer_steps=6", f"eval_every={every}", f"hydra.run.dir={folder}"]
        done = metaopt(*TINY, "figures=true", *options)
        assert done.code == 0, done.err
        report = (tmp_path / folder / "report.md").read_text()
        said.append(report.partition("## Evolution of the template")[2].partition("##")[0])
    lines = (tmp_path / "run1" / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["outer/loss"] for line in lines]
    step = 1 + losses.index(min(losses))
    assert said[0] == said[1]
    assert "6 outer steps" in said[0]
    assert f"{losses[0]:.4g} at step 1, {min(losses):.4g} at its lowest, at step {step}," in said[0]


def test_queries_of_ones_own_with_a_model_in_every_role(
    metaopt: Callable[..., Any], tmp_path: Path
) -> None:
    """Capitals, asked of a server that knows two of them; the checker is a model too."""
    rows = [{"query": f"name the capital of {c}"} for c in ("France", "Italy", "Peru", "Chad")]
    (tmp_path / "queries.jsonl").write_text("\n".join(map(json.dumps, rows)))

    def script(asked: Asked) -> Served:
        role, text = asked.body["model"], asked.text
        if role == "canary-optimizer":
            return completion(f"- Say it: {text.split('Objective: ')[1].splitlines()[0]}")
        if role == "canary-template":
            return completion("<template>\nBe strict.\nScore: <number>\n</template>")
        good = "Paris" in text or "Rome" in text
        if role == "canary-judge":
            return completion(f"Score: {9.0 if good else 4.0}")
        if role == "canary-checker":
            return completion("Yes" if good else "no")
        return completion("Paris" if "France" in text else "Rome" if "Italy" in text else "hm")

    roles = ("target", "judge", "optimizer", "template", "checker")
    with Scripted(script) as server:
        done = metaopt(
            "problem=template_evolution", "data@problem.task=template_evolution/prompt_file",
            "outer_steps=2", "problem.task.path=queries.jsonl", "problem.checker=lm",
            "inner_steps=1",
            "problem.instruction=Ask for what the objective says.", "hydra.run.dir=run",
            *real(server, *roles),
        )  # fmt: skip
    assert done.code == 0, done.err
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["metrics"]["eval/success"] == 50
    assert result["metrics"]["judge/auroc"] == 1
    judge = json.loads((tmp_path / "run" / "judge.json").read_text())
    assert judge["held_out"]["n"] > 0
    assert judge["provenance"]["authorisation"]["target"] == result["authorisation"]["target"]
