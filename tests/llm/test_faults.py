"""A server of which three answers in ten are one of many faults: what is sent and charged."""

from __future__ import annotations

import gzip
import hashlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from servers import Asked, Scripted, Served, completion, error

import metaopt
from metaopt.llm import BudgetSpent, Client, Parameters, Reply, Request, estimate, user
from metaopt.llm.openai_compatible import OpenAICompatibleLM

FINE = completion("Fine.")
NO_CHOICE = json.dumps({"model": "m-1", "choices": []}).encode()

FAULTS = [
    error(429, "slow down", after="0"),
    error(500, "out of order"),
    Served(503, b"<h1>busy</h1>", {"Content-Type": "text/html"}),
    error(504, "the model took too long"),
    Served(200, b"<html>log in</html>", {"Content-Type": "text/html"}),
    completion(None),
    FINE._replace(body=FINE.body[:40]),
    FINE._replace(body=FINE.body[:40], claim=100),
    FINE._replace(delay=30.0),
    Served(200, NO_CHOICE),
    Served(200, FINE.body.replace(b"Fine.", b"\xff\xfe")),
    Served(200, gzip.compress(b" " * 10_000_000), {"Content-Encoding": "gzip"}),
    Served(200, b"[" + FINE.body + b"]"),
    completion("Half of", "error"),
]
BILLED = [3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13]
"""Those that a vendor may ask money for: all but 429, 500 and 503."""


def fault(asked: Asked, share: float = 0.3) -> int | None:
    """Return which fault a try meets, a function of its text and number; mostly `None`."""
    digest = hashlib.sha256(f"{asked.text} {asked.before}".encode()).digest()
    number = int(asked.text.split()[-1]) + asked.before
    return number % len(FAULTS) if digest[0] < 256 * share else None


class Faulty(Scripted):
    """A server with faults until it is mended, which answers a question with its words."""

    def __init__(self) -> None:
        super().__init__(self._script)
        self.mended = False
        self.met: list[int] = []

    def _script(self, asked: Asked) -> Served:
        number = None if self.mended else fault(asked)
        if number is None:
            return completion(f"to {asked.text}")
        self.met.append(number)
        return FAULTS[number]


def questions(count: int) -> list[Request]:
    return [
        Request("judge", user(f"question {i}"), Parameters(max_tokens=16)) for i in range(count)
    ]


def client_of(url: str, **arguments: Any) -> Client:
    lm = OpenAICompatibleLM("m", url, None, timeout=0.8, name="m")
    return Client({"judge": lm}, **{"concurrency": 16, **arguments})


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metaopt.llm.pace._backoff", lambda state: 0.0)


def answered(answers: list[Any], batch: list[Request]) -> list[bool]:
    """Return which requests have an answer, which must be their own."""
    for answer, request in zip(answers, batch, strict=True):
        if isinstance(answer, Reply):
            assert answer.text == f"to {request.messages[0]['content']}"
    return [isinstance(answer, Reply) for answer in answers]


@pytest.mark.slow
def test_every_answer_comes_in_the_end_and_everything_sent_is_charged(tmp_path: Path) -> None:
    batch = questions(110)
    guess = sum(estimate(batch[-1]))
    with Faulty() as server:
        first = client_of(server.url, attempts=2)
        first.open(tmp_path / "run")
        early = answered(first.ask(batch), batch)
        assert 70 < sum(early) < 110, "one in eleven meets two faults in a row"
        assert len(server.log) == first.spent()["lm_requests"]
        assert sum(first.failed.values()) == len(server.met)
        first.close()
        server.mended = True
        second = client_of(server.url, attempts=2)
        second.open(tmp_path / "run")
        assert all(answered(second.ask(batch), batch))
        spent = second.spent()
        second.close()
    assert len(set(server.met)) == len(FAULTS)
    assert spent["lm_calls"] == 110
    assert spent["lm_requests"] == len(server.log) == 110 + len(server.met)
    billed = sum(number in BILLED for number in server.met)
    assert spent["tokens"] == pytest.approx(110 * 12 + billed * guess, abs=billed)
    assert second.failed == first.failed


@pytest.mark.slow
@pytest.mark.parametrize("limits", [{"lm_calls": 60}, {"lm_calls": 100, "lm_requests": 60}])
def test_the_server_never_sees_more_than_the_budget(
    limits: dict[str, float], tmp_path: Path
) -> None:
    batch = questions(100)
    with Faulty() as server:
        for _ in range(3):  # the same run, resumed
            client = client_of(server.url, limits=limits)
            client.open(tmp_path / "run")
            answers = client.ask(batch)
            spent = client.spent()
            client.close()
            assert len(server.log) == spent["lm_requests"] <= 60
    assert isinstance(answers[-1], BudgetSpent)
    assert "60 lm_requests" in str(client.stopped)
    assert len(server.met) > 10
    assert sum(answered(answers, batch)) == spent["lm_calls"] == 60 - len(server.met)


KILLED = """
import sys
from pathlib import Path
sys.path[:0] = {paths!r}
import metaopt.llm.pace
metaopt.llm.pace._backoff = lambda state: 0.0
from test_faults import client_of, questions
client = client_of({url!r}, limits={{"lm_calls": 200}})
client.open(Path({folder!r}))
client.ask(questions(100))
"""


@pytest.mark.slow
def test_a_kill_in_the_middle_leaves_everything_sent_on_record(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    tests, package = Path(__file__).parent, Path(metaopt.__file__).parents[1]
    paths = [str(path) for path in (tests, tests.parent, package)]

    class Killing(Faulty):
        def _script(self, asked: Asked) -> Served:
            if len(self.log) >= 40:
                process.send_signal(signal.SIGKILL)  # once: nothing is sent to who has ended
            return super()._script(asked)

    with Killing() as server:
        code = KILLED.format(url=server.url, folder=str(folder), paths=paths)
        process = subprocess.Popen([sys.executable, "-c", code])
        assert process.wait() == -signal.SIGKILL
        time.sleep(0.1)
        before = len(server.log)
        client = client_of(server.url, limits={"lm_calls": 200})
        client.open(folder)
        lost = client.failed["interrupted"]
        assert before <= client.spent()["lm_requests"] <= before + lost
        assert lost <= 16, "what was in flight"
        server.mended = True
        batch = questions(100)
        assert all(answered(client.ask(batch), batch))
        spent = client.spent()
        client.close()
    assert spent["lm_calls"] == 100
    assert len(server.log) <= spent["lm_requests"] <= len(server.log) + lost
