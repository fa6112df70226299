"""Tries that fail, and how far a budget lasts for others: bounds, order, and no deadlock."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from paid import Paid, failures, requests

from metaopt.llm import Client, LMError, PolicyRefusal, Reply, Transient, Truncated, estimate


@pytest.mark.parametrize("concurrency", [1, 3, 16])
@pytest.mark.parametrize("limits", [{"lm_calls": 30}, {"lm_requests": 30}, {"tokens": 900}])
def test_tries_that_fail_never_send_more_than_the_budget(
    limits: dict[str, float], concurrency: int, tmp_path: Path
) -> None:
    lm = Paid(lambda text, n: Truncated("half", after=0.0) if n % 3 else None)
    arguments: Any = {"limits": limits, "concurrency": concurrency}
    for _ in range(2):  # the second time on the same record, as a resumed run
        client = Client({"target": lm}, **arguments)
        client.open(tmp_path / "run")
        answers = client.ask(requests(40))
        spent = client.spent()
        client.close()
        answered = failures(answers).count("")
        assert failures(answers).count("BudgetSpent") == 40 - answered
        assert spent["lm_requests"] == len(lm.calls)
        assert spent[next(iter(limits))] <= next(iter(limits.values()))
        assert spent["lm_calls"] == answered
    if "tokens" not in limits:
        assert len(lm.calls) == 30
    if "tokens" not in limits and concurrency == 1:
        assert [text for text, _ in lm.calls] == [f"question {i // 3}" for i in range(30)]


def test_a_try_waits_for_what_others_in_flight_give_back() -> None:
    def fail(text: str, n: int) -> LMError | None:
        return Transient("busy", after=0.0) if text == "question 0" and n == 1 else None

    batch = requests(8)
    guess, free = sum(estimate(batch[0])), Client({"target": Paid()})
    free.ask(batch)
    limits = {"tokens": 8 * guess, "lm_requests": 9}  # all is reserved when the first one fails
    client = Client({"target": Paid(fail, delay=0.05)}, concurrency=8, limits=limits)
    assert failures(client.ask(batch)) == [""] * 8
    assert client.spent() == {**free.spent(), "lm_requests": 9.0}


@pytest.mark.parametrize("seed", range(20))
def test_any_mix_of_failures_ends_within_its_budget(seed: int) -> None:
    draw = np.random.default_rng(seed)
    share, most = draw.random(), int(draw.integers(10, 120))
    kinds = [Transient("busy", after=0.0), Truncated("half", after=0.0)]

    def fail(text: str, n: int) -> LMError | None:
        lot = np.random.default_rng([seed, int(text.split()[1]), n])
        return kinds[lot.integers(2)] if lot.random() < share else None

    lm, batch = Paid(fail, delay=0.001), [*requests(40, "judge"), *requests(40, start=100)]
    guess = sum(estimate(batch[-1]))
    limits = [{"lm_calls": most}, {"lm_requests": most}, {"tokens": most * guess}][seed % 3]
    budget = {"judge": {"lm_requests": int(draw.integers(5, 60))}} if seed % 2 else None
    concurrency = int(draw.integers(1, 33))
    client = Client({"target": lm, "judge": lm}, concurrency=concurrency, limits=limits,
                    budget=budget, attempts=int(draw.integers(1, 7)))  # fmt: skip
    answers = client.ask(batch)
    spent = client.spent()
    assert spent["lm_requests"] == len(lm.calls) == spent["lm_calls"] + sum(client.failed.values())
    assert spent["lm_calls"] == sum(isinstance(answer, Reply) for answer in answers)
    for unit, limit in limits.items():
        assert spent[unit] <= limit
    assert spent["lm_requests"] <= most or "tokens" in limits
    if budget:
        assert client.spent("judge").get("lm_requests", 0) <= budget["judge"]["lm_requests"]
    assert client.stopped or "BudgetSpent" not in failures(answers)
    client.close()


def test_a_try_takes_no_place_of_a_role_that_cannot_help() -> None:
    lm = Paid(lambda text, n: Transient("busy", after=0.0) if text == "question 0" else None)
    client = Client(
        {"target": lm, "judge": lm}, concurrency=1, budget={"judge": {"lm_requests": 2}}
    )
    answers = client.ask([*requests(1, "judge"), *requests(4, start=9)])
    assert failures(answers) == ["BudgetSpent", "", "", "", ""]
    assert [text for text, _ in lm.calls[:2]] == ["question 0"] * 2


def test_a_request_whose_place_is_taken_is_no_policy_refusal(tmp_path: Path) -> None:
    def fail(text: str, n: int) -> LMError | None:
        if text == "question 0":
            return Transient("busy", after=0.0)
        return PolicyRefusal("no") if text == "question 1" else None

    client = Client({"target": Paid(fail)}, concurrency=2, limits={"lm_requests": 6})
    client.open(tmp_path / "run")
    client.ask(requests(6))
    client.close()
    resumed = Client({"target": Paid()})
    resumed.open(tmp_path / "run")
    again = resumed.ask([request for i, request in enumerate(requests(6)) if i != 1])
    assert failures(again) == [""] * 5
