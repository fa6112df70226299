from __future__ import annotations

import asyncio

import pytest

from metaopt.llm import LMError, PolicyRefusal, Rejected, Transient, Truncated
from metaopt.llm.retries import PATIENCE_S, retrying


class Failing:
    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.calls = 0

    async def __call__(self) -> str:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return "done"


def run(work: Failing, attempts: int = 6) -> tuple[str | Exception, list[float]]:
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    try:
        return asyncio.run(retrying(attempts, sleep)(work)), waits
    except LMError as error:
        return error, waits


def test_transient_failures_are_tried_again_until_they_pass() -> None:
    work = Failing(Transient("429"), Transient("503"))
    result, waits = run(work)
    assert result == "done"
    assert work.calls == 3
    assert len(waits) == 2


def test_the_last_failure_is_raised_after_all_attempts() -> None:
    errors = [Transient(str(i)) for i in range(9)]
    work = Failing(*errors)
    result, waits = run(work, attempts=4)
    assert result is errors[3]
    assert work.calls == 4
    assert len(waits) == 3


@pytest.mark.parametrize("kind", [Rejected, PolicyRefusal, Truncated, LMError])
def test_nothing_else_is_tried_again(kind: type[LMError]) -> None:
    work = Failing(kind("no"))
    result, waits = run(work)
    assert isinstance(result, kind)
    assert work.calls == 1
    assert waits == []


def test_waits_are_random_and_their_bound_doubles_up_to_a_minute() -> None:
    waits = [run(Failing(*[Transient("")] * 9), attempts=10)[1] for _ in range(200)]
    for n, column in enumerate(zip(*waits, strict=True)):
        bound = min(2.0**n, 60.0)
        assert 0 <= min(column) < 0.1 * bound
        assert 0.9 * bound < max(column) <= bound


def test_a_wait_that_the_server_asks_for_is_honoured() -> None:
    _, waits = run(Failing(Transient("429", after=7.0), Transient("429", after=0.0)))
    assert 7.0 <= waits[0] <= 7.7
    assert waits[1] == 0.0


def test_a_server_that_asks_for_an_hour_is_not_waited_for() -> None:
    work = Failing(Transient("429", after=PATIENCE_S + 1))
    result, waits = run(work)
    assert isinstance(result, Transient)
    assert work.calls == 1
    assert waits == []


def test_at_least_one_attempt() -> None:
    with pytest.raises(ValueError, match="attempts"):
        retrying(0)
