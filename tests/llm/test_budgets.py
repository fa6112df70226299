from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from paid import Paid, failures, requests

from metaopt.llm import (
    BudgetSpent,
    Client,
    Parameters,
    Reply,
    Request,
    SimulatedLM,
    Usage,
    estimate,
    user,
)
from metaopt.llm.budgets import Budgets, Cost
from metaopt.llm.cassette import Use

CALL = Cost(calls=1)


def use(key: str, tokens: int = 10, role: str = "target", number: int | None = None) -> Use:
    return Use(key, role, Usage(tokens, 0), number)


def test_reserved_and_charged_count_together() -> None:
    budgets = Budgets({"tokens": 100}, {})
    budgets.charge(use("a", 40))
    budgets.reserve("target", Cost(tokens=40))
    assert budgets.refusal("judge", Cost(tokens=20)) is None
    assert budgets.refusal("judge", Cost(tokens=21)) is not None
    budgets.release("target", Cost(tokens=40))
    assert budgets.refusal("judge", Cost(tokens=60)) is None


def test_a_role_has_a_limit_of_its_own() -> None:
    budgets = Budgets({"tokens": None}, {"judge": {"lm_calls": 2}})
    for key in "ab":
        assert budgets.refusal("judge", CALL) is None
        budgets.charge(use(key, role="judge"))
    refused = budgets.refusal("judge", CALL)
    assert refused == (
        "the budget of 2 lm_calls for judge is spent: 2 used, and a request to judge may need 1 "
        "more"
    )
    assert budgets.refusal("target", CALL) is None


def test_requests_are_as_many_as_calls_where_nothing_else_is_said() -> None:
    for limits, most in (({"lm_calls": 3}, 3), ({"lm_calls": 3, "lm_requests": 5}, 5)):
        budgets = Budgets(limits, {})
        for _ in range(most):
            assert budgets.refusal("judge", Cost(requests=1)) is None
            budgets.spend("judge", Cost(requests=1), None)
        assert f"{most} lm_requests" in str(budgets.refusal("judge", Cost(requests=1)))
    unlimited = Budgets({"lm_calls": 3, "lm_requests": None}, {})
    unlimited.spend("judge", Cost(requests=1e6), None)
    assert unlimited.refusal("judge", Cost(calls=3, requests=1)) is None


def test_what_is_reserved_may_not_fit_any_more_after_failures() -> None:
    budgets = Budgets({"lm_requests": 3}, {})
    budgets.reserve("judge", Cost(requests=2))
    assert budgets.refusal("judge") is None
    budgets.spend("judge", Cost(requests=2), None)
    assert "3 lm_requests is spent: 2 used" in str(budgets.refusal("judge"))


def test_a_budget_of_requests_must_last_for_the_paid_roles_only() -> None:
    lms = {"judge": Paid(), "writer": SimulatedLM(lambda role, messages, key: "")}
    client = Client(lms, limits={"lm_calls": 99, "lm_requests": 7})
    client.require({"judge": 7, "writer": 20})
    client.ask(requests(2, "judge"))
    with pytest.raises(ValueError, match=r"limits\.lm_requests=7 .* least 6 requests"):
        client.require({"judge": 6, "writer": 20})


def test_an_answer_is_charged_once_and_to_its_first_round() -> None:
    budgets = Budgets({}, {})
    budgets.charge(use("early", 1))
    budgets.begin(1)
    budgets.charge(use("a", 10, number=1))
    budgets.charge(use("a", 99, number=1))
    assert budgets.end(1) == {"lm_calls": 2.0, "tokens": 11.0}
    assert budgets.round == 2
    assert budgets.spent("target") == {"lm_calls": 2.0, "tokens": 11.0}
    assert budgets.spent("judge") == {"lm_calls": 0.0, "tokens": 0.0}


def test_a_round_that_is_run_again_costs_the_same() -> None:
    budgets = Budgets({}, {})
    for number in (1, 2, 1, 2):
        budgets.begin(number)
        for key in "abc":
            budgets.charge(use(f"{key}{number}", number * 10, number=number))
        assert budgets.end(number) == {"lm_calls": 3.0, "tokens": 30.0 * number}


def test_a_budget_too_small_for_the_calls_of_a_step_is_refused() -> None:
    client = Client({"target": Paid()}, limits={"lm_calls": 9}, budget={"target": {"lm_calls": 7}})
    client.require({"target": 7})
    with pytest.raises(ValueError, match=r"budget\.target\.lm_calls=7"):
        client.require({"target": 8})
    with pytest.raises(ValueError, match=r"limits\.lm_calls=9 .* 10 calls"):
        client.require({"target": 7, "judge": 3})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"limits": {"calls": 1}}, "'calls'.*lm_calls, lm_requests, tokens"),
        ({"limits": {"tokens": 0}}, "tokens.*above 0"),
        ({"limits": {"tokens": float("nan")}}, "tokens.*above 0"),
        ({"budget": {"target": {"lm_calls": -1}}}, "target.*lm_calls.*above 0"),
        ({"budget": {"nobody": {"lm_calls": 1}}}, "'nobody'; roles are judge, target"),
    ],
)
def test_a_wrong_limit_is_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Client({"target": Paid(), "judge": Paid()}, **arguments)


def test_an_exhausted_budget_keeps_what_was_paid_for(tmp_path: Path) -> None:
    client = Client({"target": Paid()}, limits={"lm_calls": 5})
    client.open(tmp_path / "run")
    answers = client.ask(requests(9))
    assert failures(answers) == [""] * 5 + ["BudgetSpent"] * 4
    assert client.stopped is not None
    assert "5 lm_calls" in client.stopped
    assert client.ask(requests(9))[:5] == answers[:5], "what was paid for is still answered"
    assert client.sent == {"target": 5}
    assert client.spent()["lm_calls"] == 5
    client.close()
    more = Client({"target": Paid()}, limits={"lm_calls": 7})
    more.open(tmp_path / "run")
    assert failures(more.ask(requests(9))) == [""] * 7 + ["BudgetSpent"] * 2
    assert more.sent == {"target": 2}


def test_after_the_stop_nothing_new_is_sent_even_if_it_would_fit() -> None:
    client = Client({"target": Paid()}, limits={"tokens": 200})
    large = Request("target", user("x" * 900), Parameters(max_tokens=1))
    small = requests(1)[0]
    assert failures(client.ask([large])) == ["BudgetSpent"]
    assert failures(client.ask([small])) == ["BudgetSpent"]
    assert client.sent == {"target": 0}


def test_a_role_out_of_budget_stops_the_client_and_names_the_role() -> None:
    lms = {"target": Paid(), "judge": Paid()}
    client = Client(lms, budget={"judge": {"lm_calls": 1}})
    asked = [*requests(2, "judge"), *requests(1, "target", start=9)]
    assert failures(client.ask(asked)) == ["", "BudgetSpent", "BudgetSpent"]
    assert client.stopped is not None
    assert "judge" in client.stopped


def tokens_that_stop_in_the_middle(batch: list[Request]) -> float:
    """Enough for 40 answers at their price, far too little for 40 upper guesses."""
    free = Client({"target": Paid()})
    free.ask(batch[:40])
    return free.spent()["tokens"] + sum(estimate(batch[40])) - 1


@pytest.mark.parametrize("concurrency", [1, 3, 64])
def test_the_stop_is_at_the_same_request_however_many_are_in_flight(concurrency: int) -> None:
    batch = requests(64)
    limits = {"tokens": tokens_that_stop_in_the_middle(batch)}
    client = Client({"target": Paid()}, concurrency=concurrency, limits=limits)
    answers = client.ask(batch)
    assert failures(answers) == [""] * 40 + ["BudgetSpent"] * 24
    assert client.sent == {"target": 40}


def test_a_replay_stops_where_the_recording_stopped(tmp_path: Path) -> None:
    path, batch = tmp_path / "shared.cassette", requests(64)
    limits = {"tokens": tokens_that_stop_in_the_middle(batch)}
    recording = Client({"target": Paid()}, "record", path, limits=limits)
    first = recording.ask(batch)
    replay = Client({"target": Paid(dead=True)}, "replay", path, limits=limits)
    again = [replay.ask([request])[0] for request in batch]
    assert again[:40] == first[:40]
    assert failures(again) == failures(first)
    assert isinstance(again[40], BudgetSpent)
    assert replay.spent() == recording.spent()
    assert replay.stopped == recording.stopped


def test_a_budget_holds_for_simulated_models_too() -> None:
    lm = SimulatedLM(lambda role, messages, key: "four" * 4)
    client = Client({"target": lm}, limits={"lm_calls": 3})
    answers = client.ask(requests(5))
    assert [isinstance(a, Reply) for a in answers] == [True] * 3 + [False] * 2
    assert client.ask(requests(3)) == answers[:3]
    assert client.spent() == {"lm_calls": 3.0, "tokens": 3 * (len("question 0") // 4 + 4)}


def test_a_limit_is_never_passed_when_guesses_hold() -> None:
    for limit in (30, 100, 333, 1000):
        client = Client({"target": Paid()}, limits={"tokens": limit}, concurrency=8)
        client.ask(requests(100))
        assert client.spent()["tokens"] <= limit
