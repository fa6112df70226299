from __future__ import annotations

import asyncio
import gc
import signal
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from paid import Paid, failures, requests

from metaopt.files.errors import FolderError
from metaopt.llm import Client, LMError, SimulatedLM, Transient, estimate
from metaopt.llm.errors import Rejected


def run(client: Client, rounds: Sequence[int], rounds_asked: int = 10) -> dict[int, Any]:
    """A little search: answers and costs of each round; later ones build on earlier ones."""
    rounds_by_number: dict[int, Any] = {}
    client.ask(requests(3, start=1000))
    for number in rounds:
        client.begin(number)
        answers = client.ask(requests(rounds_asked, start=5 * number))
        ref = client.keep(f"best of round {number}: {answers[-1]}")
        cost = client.end(number)
        client.ask(requests(2, start=2000 + 2 * number))
        rounds_by_number[number] = (answers, ref, cost)
    return rounds_by_number


def answered_by(rounds: dict[int, Any]) -> list[Any]:
    """Answers, references and calls, without what failed requests cost."""
    return [(answers, ref, cost["lm_calls"]) for answers, ref, cost in rounds.values()]


def test_what_failed_is_asked_again_until_every_request_is_answered(tmp_path: Path) -> None:
    def fail(text: str, n: int) -> Transient | Rejected | None:
        if text == "question 5":
            return Rejected("too long", "target")
        return Transient("down", "target", after=0.0) if text == "question 3" and n <= 5 else None

    lm = Paid(fail)
    first = Client({"target": lm}, attempts=2)
    first.open(tmp_path / "run")
    with pytest.raises(LMError, match="target: 1 of 8 requests failed: down"):
        first.ask_all(requests(8))
    first.close()
    resumed = Client({"target": lm}, attempts=2)
    resumed.open(tmp_path / "run")
    assert failures(resumed.ask_all(requests(8))) == [
        "Rejected" if i == 5 else "" for i in range(8)
    ]
    assert [lm.calls.count((f"question {i}", 0)) for i in range(8)] == [1, 1, 1, 6, 1, 2, 1, 1]
    assert resumed.spent()["lm_calls"] == 7


@pytest.mark.parametrize("end", ["", "-wal", "-journal"])
def test_the_file_of_a_run_is_not_opened_through_a_link(tmp_path: Path, end: str) -> None:
    other = tmp_path / "other"
    other.write_bytes(b"mine")
    (tmp_path / f"run.cassette{end}").symlink_to(other)
    client = Client({"target": Paid(dead=True)})
    with pytest.raises(FolderError, match=rf"run\.cassette{end} is a symbolic link, to .*other"):
        client.open(tmp_path / "run")
    client.close()
    assert other.read_bytes() == b"mine"


class Killed(BaseException):
    pass


@pytest.mark.parametrize("calls", [1, 2, 7, 13, 20, 24, 28])
def test_a_crash_after_k_calls_then_resume_repeats_none(tmp_path: Path, calls: int) -> None:
    whole = Client({"target": Paid()})
    expected = run(whole, [1, 2, 3])

    before = Paid(lambda text, n: Killed() if len(before.calls) > calls else None, delay=0.0)
    killed = Client({"target": before}, concurrency=1)
    killed.open(tmp_path / "run")
    with pytest.raises(Killed):
        run(killed, [1, 2, 3])
    killed.close()
    after = Paid()
    resumed = Client({"target": after})
    resumed.open(tmp_path / "run")
    assert answered_by(run(resumed, [1, 2, 3])) == answered_by(expected)
    answered, lost = before.calls[:calls], len(before.calls) - calls
    assert not set(answered) & set(after.calls)
    assert len(answered) + len(after.calls) == whole.spent()["lm_calls"]
    assert resumed.failed == {"interrupted": lost}
    assert resumed.spent()["lm_calls"] == whole.spent()["lm_calls"]
    assert resumed.spent()["lm_requests"] == len(before.calls) + len(after.calls)
    wasted = sum(sum(estimate(r)) for r in requests(1, start=1000)) * lost
    assert resumed.spent()["tokens"] == pytest.approx(whole.spent()["tokens"] + wasted, abs=lost)
    resumed.close()

    replay = Client({"target": Paid(dead=True)}, "replay", tmp_path / "run.cassette")
    assert run(replay, [1, 2, 3]) == expected
    assert replay.spent() == whole.spent()


@pytest.mark.parametrize("checkpoint", [0, 1, 2])
def test_a_resume_from_an_earlier_round_gives_the_same_costs(
    tmp_path: Path, checkpoint: int
) -> None:
    expected = run(Client({"target": Paid()}), [1, 2, 3])
    killed = Client({"target": Paid()})
    killed.open(tmp_path / "run")
    run(killed, [1, 2])
    killed.close()
    resumed = Client({"target": Paid()})
    resumed.open(tmp_path / "run")
    rest = range(checkpoint + 1, 4)
    assert run(resumed, rest) == {number: expected[number] for number in rest}


def test_the_costs_of_the_rounds_are_every_use(tmp_path: Path) -> None:
    client = Client({"target": Paid()})
    rounds_by_number = run(client, [1, 2, 3])
    calls = [cost["lm_calls"] for _, _, cost in rounds_by_number.values()]
    assert calls == [3 + 10, 2 + 5, 2 + 5]
    assert client.spent()["lm_calls"] == sum(calls) + 2


def test_what_was_asked_before_open_is_in_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("metaopt.llm.client._process_texts", {})
    client = Client({"target": Paid()})
    first = client.ask(requests(4))
    ref = client.keep("an early text")
    client.open(tmp_path / "run")
    client.begin(1)
    assert client.end(1)["lm_calls"] == 4
    client.close()
    monkeypatch.setattr("metaopt.llm.client._process_texts", {})  # as in another process
    resumed = Client({"target": Paid(dead=True)})
    resumed.open(tmp_path / "run")
    assert resumed.ask(requests(4)) == first
    assert resumed.text(ref) == "an early text"


def test_the_folder_of_the_run_holds_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    client = Client({"target": Paid()})
    client.open(folder)
    run(client, [1, 2])
    assert list(folder.iterdir()) == []
    assert {p.name for p in tmp_path.iterdir() if p.is_file()} >= {"run.cassette"}
    assert (tmp_path / "run.cassette").stat().st_mode & 0o777 == 0o600
    client.close()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run", "run.cassette"]


def test_a_text_has_a_reference_of_sixteen_digits(tmp_path: Path) -> None:
    client = Client({"target": Paid()})
    ref = client.keep("abc")
    assert ref == "ba7816bf8f01cfea"  # sha256("abc"), FIPS 180-2
    assert Client({"target": Paid()}).text(ref) == "abc", "memory is shared by the process"
    client.open(tmp_path / "run")
    reference = client.keep("kept in the file only")
    assert client.text(reference) == "kept in the file only"
    with pytest.raises(LookupError, match=f"{reference}.*folder"):
        Client({"target": Paid()}).text(reference)
    with pytest.raises(LookupError, match=r"run\.cassette has no text 0000"):
        client.text("0000")


def test_clients_open_the_same_folder_one_after_another(tmp_path: Path) -> None:
    lm = Paid()
    for n in (3, 5, 8):
        client = Client({"target": lm})
        client.open(tmp_path / "run")
        client.ask(requests(n))
        client.close()
    assert len(lm.calls) == 8
    assert lm.closed == 3
    client.open(tmp_path / "run")
    assert client.spent()["lm_calls"] == 8
    client.open(tmp_path / "other")
    assert client.spent()["lm_calls"] == 0
    client.ask(requests(20, start=100))
    client.close()


def test_a_closed_client_says_so_and_keeps_its_accounts() -> None:
    client = Client({"target": Paid()})
    client.ask(requests(2))
    client.close()
    client.close()
    assert client.spent()["lm_calls"] == 2
    with pytest.raises(RuntimeError, match="closed"):
        client.ask(requests(2))


def test_it_works_where_a_loop_is_running() -> None:
    async def cell() -> list[Any]:
        return Client({"target": Paid()}).ask(requests(3))

    assert failures(asyncio.run(cell())) == [""] * 3


@pytest.mark.slow
def test_a_client_that_is_dropped_takes_its_thread_along() -> None:
    def threads() -> int:
        return sum(thread.name == "metaopt-llm" for thread in threading.enumerate())

    gc.collect()
    before = threads()
    client = Client({"target": Paid()})
    client.ask(requests(1))
    assert threads() == before + 1
    del client
    gc.collect()
    assert threads() == before


def test_a_model_that_asks_its_own_client_is_told() -> None:
    client: Client
    lm = SimulatedLM(lambda role, messages, key: str(client.ask(requests(1, start=9))))
    client = Client({"target": lm})
    with pytest.raises(RuntimeError, match="its own client"):
        client.ask(requests(1))


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Listen to SIGINT, which a shell's background processes start out ignoring."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_keeps_what_was_sent_and_sends_nothing_more(tmp_path: Path) -> None:
    lm = Paid(delay=0.3)
    client = Client({"target": lm}, concurrency=4)
    client.open(tmp_path / "run")
    client.ask(requests(1, start=500))
    main = threading.main_thread().ident
    assert main is not None
    threading.Timer(0.05, signal.pthread_kill, (main, signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        client.ask(requests(50))
    called = len(lm.calls)
    assert called < 20
    assert client.spent()["lm_calls"] == called
    answers = client.ask(requests(10))
    assert failures(answers) == [""] * 10
    assert len(lm.calls) == len(set(lm.calls))
    client.close()


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"lms": {}}, ValueError, "at least one role"),
        ({"lms": {"judge": "gpt"}}, TypeError, r"lms\['judge'\].*str"),
        ({"mode": "online"}, ValueError, "live, record, replay.*'online'"),
        ({"mode": "record"}, ValueError, "mode=record needs a cassette"),
        ({"mode": "replay"}, ValueError, "mode=replay needs a cassette"),
        ({"cassette": "a"}, ValueError, "mode=live takes no cassette"),
        ({"concurrency": 0}, ValueError, "concurrency"),
        ({"attempts": 0}, ValueError, "attempts"),
        ({"requests_per_minute": 0}, ValueError, "requests_per_minute"),
        ({"tokens_per_minute": -1}, ValueError, "tokens_per_minute"),
    ],
)
def test_a_wrong_argument_is_named(
    arguments: dict[str, Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        Client(**{"lms": {"target": Paid()}, **arguments})


def test_a_role_without_a_model_is_named_before_anything_is_sent() -> None:
    lm = Paid()
    client = Client({"target": lm})
    with pytest.raises(ValueError, match="'jury'; roles are target"):
        client.ask([*requests(1), *requests(1, "jury")])
    with pytest.raises(ValueError, match="'jury'; roles are target"):
        client.spent("jury")
    assert lm.calls == []
