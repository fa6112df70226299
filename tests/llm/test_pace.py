from __future__ import annotations

import asyncio

import pytest

from metaopt.llm import LMError, PolicyRefusal, Rejected, Transient, Usage
from metaopt.llm.pace import PATIENCE_S, Pace, retrying

NOTHING = Usage()


class Clock:
    """A clock that moves when somebody waits."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now += seconds


def starts(n: int, guess: Usage = NOTHING, **rates: float) -> list[float]:
    clock = Clock()
    pace = Pace(**rates, clock=clock, sleep=clock.sleep)
    waits = []
    for _ in range(n):
        asyncio.run(pace.wait(guess))
        waits.append(clock.now - 1000.0)
    return waits


def test_no_rate_never_waits() -> None:
    assert starts(5, Usage(10**6, 10**6)) == [0.0] * 5


def test_requests_are_spread_evenly() -> None:
    assert starts(4, requests_per_minute=120) == pytest.approx([0.0, 0.5, 1.0, 1.5])


def test_tokens_are_spread_evenly() -> None:
    waits = starts(4, Usage(100, 200), tokens_per_minute=1800)
    assert waits == pytest.approx([0.0, 10.0, 20.0, 30.0])


def test_the_tighter_rate_decides() -> None:
    both = {"requests_per_minute": 60.0, "tokens_per_minute": 600.0}
    assert starts(3, Usage(5, 0), **both) == pytest.approx([0.0, 1.0, 2.0])
    assert starts(3, Usage(50, 0), **both) == pytest.approx([0.0, 5.0, 10.0])


def test_no_minute_holds_more_than_the_rate() -> None:
    waits = starts(500, requests_per_minute=90)
    for start in waits:
        assert sum(start <= other < start + 59.999 for other in waits) <= 90


def test_requests_at_once_wait_in_their_order() -> None:
    waited: list[float] = []

    async def sleep(seconds: float) -> None:
        waited.append(seconds)

    pace = Pace(60, clock=lambda: 5.0, sleep=sleep)

    async def together() -> None:
        await asyncio.gather(*(pace.wait(Usage()) for _ in range(4)))

    asyncio.run(together())
    assert waited == pytest.approx([1.0, 2.0, 3.0])


def test_tokens_that_were_not_needed_are_given_back() -> None:
    clock = Clock()
    pace = Pace(tokens_per_minute=60, clock=clock, sleep=clock.sleep)
    asyncio.run(pace.wait(Usage(10, 50)))
    pace.settle(Usage(10, 50), Usage(10, 5))
    asyncio.run(pace.wait(Usage(1, 0)))
    assert clock.now - 1000.0 == pytest.approx(15.0)


@pytest.mark.parametrize("name", ["requests_per_minute", "tokens_per_minute"])
def test_a_rate_is_above_zero(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        Pace(**{name: 0.0})


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


@pytest.mark.parametrize("kind", [Rejected, PolicyRefusal, LMError])
def test_nothing_else_is_tried_again(kind: type[LMError]) -> None:
    work = Failing(kind("no"))
    result, waits = run(work)
    assert isinstance(result, kind)
    assert work.calls == 1
    assert waits == []


def test_a_server_that_asks_to_wait_holds_every_request() -> None:
    clock = Clock()
    pace = Pace(clock=clock, sleep=clock.sleep)
    pace.hold(None)
    pace.hold(7.0)
    pace.hold(2.0)
    for _ in range(2):
        asyncio.run(pace.wait(NOTHING))
        assert clock.now == 1007.0


def test_nothing_is_sent_while_a_server_asks_for_more_patience_than_anybody_has() -> None:
    clock = Clock()
    pace = Pace(clock=clock, sleep=clock.sleep)
    pace.hold(3600.0)
    with pytest.raises(Transient, match=r"wait another 3,600 s\.") as failure:
        asyncio.run(pace.wait(NOTHING))
    assert not failure.value.sent
    clock.now += 3600.0
    asyncio.run(pace.wait(NOTHING))
    assert clock.now == 4600.0


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
