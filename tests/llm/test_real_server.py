"""A server that we did not write, `transformers serve`, with a tiny model made on the spot."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from servers import ALPHABET, smollm2, tiny_model

from metaopt.llm import Client, LMError, Parameters, Rejected, Reply, Request, user
from metaopt.llm.openai_compatible import OpenAICompatibleLM
from metaopt.llm.transformers_lm import TransformersLM

pytestmark = pytest.mark.slow

for package in ("fastapi", "uvicorn"):
    pytest.importorskip(package, reason="needs transformers[serving]")

PATIENCE_S = 120.0
BLANK = 3 + ALPHABET.index(" ")
"""The token of a space, after three special ones."""
PERMISSION = {
    "owner": "this test",
    "system": "a random model on the loopback address",
    "scope": "any question",
    "contact": "tests@example.org",
    "expiry": "2999-12-31",
    "statement": "The model is made by the test and knows nothing.",
}


@contextlib.contextmanager
def serving(model: Path, log: Path) -> Iterator[str]:
    """Run the server for the time of a block; yields its base URL."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # The module, since the command `transformers` is not on every path that python is on.
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(model)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    quiet = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    with log.open("wb") as out:
        server = subprocess.Popen(command, stdout=out, stderr=out, env={**os.environ, **quiet})
        try:
            deadline = time.monotonic() + PATIENCE_S
            while not healthy(port):
                dead = server.poll() is not None or time.monotonic() > deadline
                assert not dead, f"the server did not start:\n{log.read_text()}"
                time.sleep(0.05)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            server.kill()
            server.wait()


def healthy(port: int) -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with contextlib.suppress(OSError):
        with opener.open(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    return False


def never_blank(model: Path) -> Path:
    """Let no answer of a model begin with a special token or a blank.

    Two in a hundred draws would otherwise hold no text, and such an answer is asked for again.
    """
    path = model / "generation_config.json"
    fields = json.loads(path.read_text()) | {"begin_suppress_tokens": [0, 1, 2, BLANK]}
    path.write_text(json.dumps(fields))
    return model


def test_a_real_server_as_target_and_judge(tmp_path: Path) -> None:
    """Its greedy answers are those of the same model in this process, and each is paid for once."""
    model, log = never_blank(tiny_model(tmp_path / "model")), tmp_path / "server.log"
    cassette = tmp_path / "answers.cassette"
    texts = ["Hi", "What is 1 + 1?", "Rate this answer: 2.", "Name a colour", "Why?"]
    greedy = [Request("target", user(t), Parameters(0.0, 20, stop=("B", "_"))) for t in texts]
    sampled = [Request("judge", user("Rate it"), Parameters(1.0, 20), n) for n in range(3)]
    requests = [*greedy, *sampled, greedy[0]]

    def client(url: str, mode: str) -> Client:
        target, judge = (
            OpenAICompatibleLM(str(model), url, None, authorisation=permission, timeout=60.0)
            for permission in (PERMISSION, None)
        )
        return Client({"target": target, "judge": judge}, mode=mode, cassette=cassette)

    with serving(model, log) as url:
        with contextlib.closing(client(url, "record")) as recording:
            answers = recording.ask(requests)
        assert recording.failed == {}
        assert recording.sent == {"target": len(texts), "judge": 3}
        unknown = Client({"judge": OpenAICompatibleLM("another", url, None)})
        with contextlib.closing(unknown):
            refused = unknown.ask([sampled[0]])[0]
    served = log.read_text()
    assert served.count('"POST /v1/chat/completions HTTP/1.1" 200') == len(texts) + 3
    assert served.count('"POST /v1/chat/completions HTTP/1.1" 400') == 1
    assert isinstance(refused, Rejected)
    assert "requested 'another'" in str(refused)

    here = Client({"target": TransformersLM(str(model), authorisation=PERMISSION)})
    with contextlib.closing(here):
        expected = here.ask(greedy)
    for answer, own in zip(answers[: len(texts)], expected, strict=True):
        assert isinstance(answer, Reply)
        assert isinstance(own, Reply)
        assert answer._replace(model="") == own._replace(model="")
    assert {reply.finish for reply in expected if isinstance(reply, Reply)} == {"stop", "length"}
    assert answers[-1] == answers[0]
    draws = {answer.text for answer in answers[len(texts) : -1] if isinstance(answer, Reply)}
    assert len(draws) == 3

    with contextlib.closing(client(url, "replay")) as replayed:
        again: list[Reply | LMError] = replayed.ask(requests)
    assert again == answers
    assert replayed.spent() == recording.spent()
    assert replayed.sent == {"target": 0, "judge": 0}


@pytest.mark.parametrize("real", [False, pytest.param(True, marks=pytest.mark.realmodel)])
def test_a_server_that_drops_logprobs_is_noticed_at_the_first_reply(
    metaopt: Any, tmp_path: Path, real: bool
) -> None:
    model, log = smollm2() if real else tiny_model(tmp_path / "m", context=4096), tmp_path / "log"
    with serving(model, log) as url:
        done = metaopt(
            "problem=template_evolution/judge_calibration", "llm=openai_compatible",
            f"llm.model={model}", f"llm.base_url={url}", "problem.data.questions=6",
            "problem.labelled=12", "scoring@problem.scoring=template_evolution/yes_no",
            "problem.client.limits={lm_calls: 999}", "debug=tiny", "hydra.run.dir=run",
        )  # fmt: skip
    assert done.code == 1
    assert "Traceback" not in done.err
    for words in (
        "logprobs and top_logprobs",
        "vLLM",
        "llm=transformers",
        "template_evolution/written",
    ):
        assert words in done.err
    assert log.read_text().count("POST /v1/chat/completions") == 1
