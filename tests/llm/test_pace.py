from __future__ import annotations

import asyncio

import pytest

from metaopt.llm import Usage
from metaopt.llm.pace import Pace

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
    found = []
    for _ in range(n):
        asyncio.run(pace.wait(guess))
        found.append(clock.now - 1000.0)
    return found


def test_no_rate_never_waits() -> None:
    assert starts(5, Usage(10**6, 10**6)) == [0.0] * 5


def test_requests_are_spread_evenly() -> None:
    assert starts(4, requests_per_minute=120) == pytest.approx([0.0, 0.5, 1.0, 1.5])


def test_tokens_are_spread_evenly() -> None:
    found = starts(4, Usage(100, 200), tokens_per_minute=1800)
    assert found == pytest.approx([0.0, 10.0, 20.0, 30.0])


def test_the_tighter_rate_decides() -> None:
    both = {"requests_per_minute": 60.0, "tokens_per_minute": 600.0}
    assert starts(3, Usage(5, 0), **both) == pytest.approx([0.0, 1.0, 2.0])
    assert starts(3, Usage(50, 0), **both) == pytest.approx([0.0, 5.0, 10.0])


def test_no_minute_holds_more_than_the_rate() -> None:
    found = starts(500, requests_per_minute=90)
    for start in found:
        assert sum(start <= other < start + 59.999 for other in found) <= 90


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
