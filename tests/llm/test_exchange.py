from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from paid import Paid, failures, requests

from metaopt.llm import (
    Client,
    LMError,
    Message,
    Parameters,
    PolicyRefusal,
    Rejected,
    Reply,
    Request,
    SimulatedLM,
    Transient,
    Truncated,
    Usage,
    estimate,
    user,
)


def answer(role: str, messages: Sequence[Message], key: int) -> str:
    return f"{role} {messages[-1]['content']} {key}"


def refusing(*texts: str) -> Any:
    return lambda text, n: PolicyRefusal("no: " + text) if text in texts else None


@pytest.mark.parametrize("deterministic", [True, False])
def test_sixty_four_at_once_answer_as_one_at_a_time(deterministic: bool) -> None:
    lm = SimulatedLM(answer, error_rate=0.3)
    lm.deterministic = deterministic  # False takes the path of paid models
    batch = requests(40) + requests(24, "judge", start=100)
    together = Client({"target": lm, "judge": lm}, concurrency=64)
    apart = Client({"target": lm, "judge": lm}, concurrency=1)
    first = together.ask(batch)
    assert [apart.ask([request])[0] for request in batch] == first
    assert together.ask(batch[::-1])[::-1] == first
    for role in (None, "target", "judge"):
        assert together.spent(role) == apart.spent(role)


def test_answers_are_in_the_order_of_the_requests_not_of_their_arrival() -> None:
    lm = Paid(delay=0.02)
    answers = Client({"target": lm}, concurrency=8).ask(requests(40))
    expected = Client({"target": Paid()}, concurrency=1).ask(requests(40))
    assert answers == expected
    assert 1 < lm.most <= 8


def test_the_rollout_index_asks_again() -> None:
    lm = Paid()
    client = Client({"target": lm})
    first, second = client.ask([*requests(1), *requests(1, rollout=1)])
    assert first != second
    assert client.ask([*requests(1, rollout=1), *requests(1)]) == [second, first]
    assert len(lm.calls) == 2


def test_identical_requests_share_one_call() -> None:
    lm = Paid(delay=0.05)
    client = Client({"target": lm})
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: client.ask(requests(5) * 3), range(4)))
    assert len(lm.calls) == 5
    assert all(a == answers[0] for a in answers)
    assert answers[0][:5] * 3 == answers[0]
    assert client.spent()["lm_calls"] == 5


def test_roles_that_ask_the_same_model_the_same_share_the_answer() -> None:
    lm = Paid()
    client = Client({"target": lm, "judge": lm})
    one, two = client.ask([*requests(1, "target"), *requests(1, "judge")])
    assert one == two
    assert len(lm.calls) == 1


def test_a_simulated_answer_may_depend_on_the_role() -> None:
    lm = SimulatedLM(answer)
    client = Client({"target": lm, "judge": lm})
    one, two = client.ask([*requests(1, "target"), *requests(1, "judge")])
    assert isinstance(one, Reply)
    assert isinstance(two, Reply)
    assert one.text.startswith("target")
    assert two.text.startswith("judge")
    assert client.spent("judge")["lm_calls"] == client.spent("target")["lm_calls"] == 1


@pytest.mark.parametrize("kind", [Transient, Rejected, Truncated, LMError])
def test_a_failure_is_never_a_reply_and_costs_the_others_nothing(kind: type[LMError]) -> None:
    lm = Paid(lambda text, n: kind("broken") if text == "question 3" else None)
    client = Client({"target": lm}, attempts=1)
    answers = client.ask(requests(8))
    assert failures(answers) == [kind.__name__ if i == 3 else "" for i in range(8)]
    assert not isinstance(answers[3], Reply)
    assert len(lm.calls) == 8
    assert client.stopped is None
    client.ask(requests(8))
    assert len(lm.calls) == 8 + (kind is not Rejected), "what was rejected is not asked again"


def test_a_damaged_answer_is_charged_with_the_guess_and_asked_again(tmp_path: Path) -> None:
    lm = Paid(lambda text, n: Truncated("half") if n < 3 else None)
    client = Client({"target": lm}, attempts=1)
    client.open(tmp_path / "run")
    request, guess = requests(1)[0], float(sum(estimate(requests(1)[0])))
    for n in (1, 2):
        assert failures(client.ask([request])) == ["Truncated"]
        assert client.spent() == {"lm_calls": 0.0, "lm_requests": n, "tokens": n * guess}
    client.close()
    resumed = Client({"target": lm}, attempts=1)
    resumed.open(tmp_path / "run")
    (reply,) = resumed.ask([request])
    assert isinstance(reply, Reply)
    tokens = 2 * guess + sum(reply.usage)
    assert resumed.spent() == {"lm_calls": 1.0, "lm_requests": 3.0, "tokens": tokens}
    assert resumed.failed == {"damaged answer": 2}


@pytest.mark.parametrize(
    ("failure", "cost"),
    [
        (Transient("503", after=0.0), (1, 0)),
        (Transient("no answer", after=0.0, billed=True), (1, 1)),
        (Transient("no connection", after=0.0, sent=False), (0, 0)),
        (Truncated("half", after=0.0), (1, 1)),
        (Rejected("400"), (1, 0)),
        (Rejected("no key", sent=False), (0, 0)),
    ],
)
def test_a_failure_costs_what_a_vendor_may_bill(
    failure: LMError, cost: tuple[int, int], tmp_path: Path
) -> None:
    client = Client({"target": Paid(lambda text, n: failure)}, attempts=1)
    client.open(tmp_path / "run")
    (request,) = requests(1)
    client.ask([request])
    spent = {"lm_calls": 0.0, "lm_requests": cost[0], "tokens": cost[1] * sum(estimate(request))}
    spent = spent if cost[0] else {"lm_calls": 0.0, "tokens": 0.0}
    assert client.spent("target") == client.spent() == spent
    assert client.sent == {"target": cost[0]}
    assert client.failed == ({failure.kind: 1} if cost[0] else {})
    client.close()
    resumed = Client({"target": Paid()})
    resumed.open(tmp_path / "run")
    assert (resumed.spent(), resumed.failed) == (spent, client.failed)


def test_transient_failures_are_tried_again_and_nothing_else_is() -> None:
    def fail(text: str, n: int) -> LMError | None:
        if text == "question 0" and n < 3:
            return Transient("503", after=0.0)
        return Rejected("400 bad request") if text == "question 1" else None

    lm = Paid(fail)
    client = Client({"target": lm})
    assert failures(client.ask(requests(3))) == ["", "Rejected", ""]
    tries = [sum(text == f"question {i}" for text, _ in lm.calls) for i in range(3)]
    assert tries == [3, 1, 1]
    assert client.sent == {"target": 5}
    assert client.spent()["lm_calls"] == 2


def test_a_refusal_stops_and_is_never_asked_again(tmp_path: Path) -> None:
    lm = Paid(refusing("question 2"), delay=0.0)
    client = Client({"target": lm}, concurrency=1)
    client.open(tmp_path / "run")
    answers = client.ask(requests(6))
    assert failures(answers) == ["", "", *["PolicyRefusal"] * 4]
    assert client.stopped == "a content policy refused a request to target"
    assert failures(client.ask(requests(9))) == ["", "", *["PolicyRefusal"] * 7]
    assert [text for text, _ in lm.calls] == ["question 0", "question 1", "question 2"]
    client.close()
    resumed = Client({"target": Paid(dead=True)})
    resumed.open(tmp_path / "run")
    assert failures(resumed.ask(requests(6)[:3])) == ["", "", "PolicyRefusal"]
    assert resumed.stopped == client.stopped
    assert failures(resumed.ask(requests(6))) == ["", "", *["PolicyRefusal"] * 4]
    assert resumed.spent() == client.spent()


def test_what_was_in_flight_beside_a_refusal_is_kept_and_replayed(tmp_path: Path) -> None:
    path, batch = tmp_path / "shared.cassette", requests(16)
    recording = Client({"target": Paid(refusing("question 2"))}, "record", path)
    first = recording.ask(batch)
    assert failures(first).count("PolicyRefusal") == 1
    replay = Client({"target": Paid(dead=True)}, "replay", path)
    assert failures(replay.ask(batch)) == failures(first)
    assert [a for a in replay.ask(batch) if isinstance(a, Reply)] == [
        a for a in first if isinstance(a, Reply)
    ]
    assert (replay.stopped, replay.spent()) == (recording.stopped, recording.spent())
    assert failures(replay.ask(requests(1, start=99))) == ["PolicyRefusal"]


def test_what_was_rejected_is_asked_again_by_the_next_process(tmp_path: Path) -> None:
    first = Client({"target": Paid(lambda text, n: Rejected("401, no such key"))})
    first.open(tmp_path / "run")
    assert failures(first.ask(requests(2))) == ["Rejected"] * 2
    assert first.spent()["lm_calls"] == 0
    first.close()
    mended = Client({"target": Paid()})
    mended.open(tmp_path / "run")
    assert failures(mended.ask(requests(2))) == ["", ""]


def test_a_long_wait_that_a_server_asks_for_spends_no_budget_on_the_rest() -> None:
    lm = Paid(lambda text, n: Transient("429", after=3600.0))
    client = Client({"target": lm}, concurrency=2, limits={"lm_calls": 50})
    assert failures(client.ask(requests(20))) == ["Transient"] * 20
    assert len(lm.calls) == client.spent()["lm_requests"] <= 2
    assert client.stopped is None


def test_answers_of_another_model_are_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    class Routed(Paid):
        async def chat(self, *asked: Any) -> Reply:
            reply = await super().chat(*asked)
            return reply._replace(model="b" if len(self.calls) > 2 else "a")

    client = Client({"target": Routed(), "judge": Paid()}, concurrency=1)
    client.ask([*requests(5), *requests(2, "judge")])
    assert [record.getMessage() for record in caplog.records] == [
        "target: an answer came from 'b', those before from 'a'; they are used together."
    ]


def test_an_error_in_a_model_is_raised_after_the_others_are_kept() -> None:
    lm = Paid(lambda text, n: ZeroDivisionError("a bug") if text == "question 0" else None)
    client = Client({"target": lm})
    with pytest.raises(ZeroDivisionError, match="a bug"):
        client.ask(requests(6))
    assert client.spent()["lm_calls"] == 5
    client.ask(requests(6)[1:])
    assert len(lm.calls) == 6


def test_the_pace_holds_for_misses_and_not_for_hits() -> None:
    client = Client({"target": Paid(delay=0.0)}, requests_per_minute=1200)
    start = time.monotonic()
    client.ask(requests(5))
    assert time.monotonic() - start >= 0.2
    start = time.monotonic()
    for _ in range(40):
        client.ask(requests(5))
    assert time.monotonic() - start < 40 * 0.25, "200 requests at this pace take ten seconds"


def test_a_text_that_no_file_can_hold_is_mended() -> None:
    class Odd(Paid):
        async def chat(
            self, role: str, messages: Sequence[Message], parameters: Parameters, rollout: int
        ) -> Reply:
            return Reply("half a pair: \ud800", Usage(1, 1))

    client = Client({"target": Odd()})
    (reply,) = client.ask(requests(1))
    assert isinstance(reply, Reply)
    assert reply.text == "half a pair: ?"
    assert failures(client.ask([Request("target", user(reply.text))])) == [""]


def test_a_model_that_returns_no_reply_is_a_bug() -> None:
    class Bare(Paid):
        async def chat(self, *_: Any) -> Any:
            return "text"

    with pytest.raises(TypeError, match="Reply; got str"):
        Client({"target": Bare()}).ask(requests(1))


def test_a_model_of_ones_own_must_answer_choices() -> None:
    client = Client({"target": Paid()})
    with pytest.raises(TypeError, match="likelihood of each of the 2 choices; got 0"):
        client.ask([Request("target", user("a"), Parameters(choices=("yes", "no")))])
    client.close()
