from __future__ import annotations

import math
import os
import signal
import sqlite3
import stat
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from paid import SECRET, Paid, failures, requests

import metaopt
from metaopt.files.errors import DamagedFileError
from metaopt.llm import (
    CassetteMiss,
    Client,
    Likelihood,
    LMError,
    PolicyRefusal,
    Rejected,
    Reply,
    Transient,
    Truncated,
    Usage,
    estimate,
)
from metaopt.llm.cassette import ANSWERED, UNKNOWN, Cassette, Sent, Use
from metaopt.runs.errors import explain

REPLY = Reply("two\nlines, \U0001f600 and \u00e9", Usage(3, 4), "length", "model-1")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_reply_comes_back_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.cassette"
    first = Cassette(path)
    assert first.answer("k") is None
    assert first.add("k", "target", REPLY) == REPLY
    first.close()
    assert Cassette(path).answer("k") == REPLY


def test_likelihoods_come_back_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "a.cassette"
    reply = Reply("a", Usage(3, 0), likelihoods=(Likelihood(-0.1, 3), Likelihood(-math.inf)))
    cassette = Cassette(path)
    cassette.add("k", "judge", reply)
    cassette.close()
    assert Cassette(path).answer("k") == reply


def test_the_first_answer_stays() -> None:
    cassette = Cassette()
    cassette.add("k", "target", Reply("first"))
    assert cassette.add("k", "target", Reply("second")) == Reply("first")
    assert cassette.add("k", "target", PolicyRefusal("no")) == Reply("first")
    assert cassette.answer("k") == Reply("first")


def test_a_refusal_comes_back_as_its_type() -> None:
    cassette = Cassette()
    cassette.add("k", "target", PolicyRefusal("why", "target"))
    held = cassette.answer("k")
    assert type(held) is PolicyRefusal
    assert str(held) == "why"
    assert held.role == "target"


@pytest.mark.parametrize("kind", [Transient, Truncated, Rejected, LMError])
def test_a_failure_that_may_pass_is_never_recorded(kind: type[LMError]) -> None:
    cassette = Cassette()
    with pytest.raises(TypeError, match=kind.__name__):
        cassette.add("k", "target", kind("why"))
    assert cassette.answer("k") is None


def test_uses_keep_their_first_round_and_their_order() -> None:
    cassette = Cassette()
    one, two = Use("b", "target", Usage(1, 2), None), Use("a", "judge", Usage(3, 4), 1)
    cassette.use([one, two])
    cassette.use([two._replace(round=9)])
    cassette.assign(5)
    assert cassette.uses() == [one._replace(round=5), two]


def test_requests_are_on_record_before_their_outcome() -> None:
    cassette, other = Cassette(), Cassette()
    numbers = [cassette.send(Sent("judge", 9, UNKNOWN, None)) for _ in range(4)]
    cassette.settle(numbers[1], 0, ANSWERED)
    cassette.settle(numbers[2], 9, "timeout")
    cassette.unsend(numbers[3])
    cassette.assign(2)
    expected = [
        Sent("judge", 9, UNKNOWN, 2), Sent("judge", 0, ANSWERED, 2), Sent("judge", 9, "timeout", 2),
    ]  # fmt: skip
    assert cassette.sent() == expected
    cassette.copy_to(other)
    assert other.sent() == expected


def test_a_transaction_is_kept_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a.cassette"
    cassette = Cassette(path)
    with suppress(KeyboardInterrupt), cassette.transaction():
        cassette.add("k", "target", REPLY)
        cassette.use([Use("k", "target", Usage(), 0)])
        raise KeyboardInterrupt
    assert cassette.answer("k") is None
    assert Cassette(path).uses() == []
    cassette.add("k", "target", REPLY)
    assert Cassette(path).answer("k") == REPLY


def test_the_file_is_private_from_its_creation(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        path = tmp_path / "a.cassette"
        cassette = Cassette(path)
        cassette.keep("r", "text")
        files = sorted(tmp_path.iterdir())
        assert [f.name for f in files] == ["a.cassette", "a.cassette-shm", "a.cassette-wal"]
        assert [mode(f) for f in files] == [0o600] * 3
        cassette.close()
    finally:
        os.umask(before)
    assert list(tmp_path.iterdir()) == [path]
    assert mode(path) == 0o600


def test_a_read_only_cassette_cannot_be_written_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a ?#%20.cassette"
    recorded = Cassette(path)
    recorded.add("k", "target", REPLY)
    recorded.close()
    before = path.read_bytes()
    cassette = Cassette(path, read_only=True)
    assert cassette.answer("k") == REPLY
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        cassette.keep("r", "text")
    cassette.close()
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_files_that_are_no_cassettes_are_refused_and_left_alone(tmp_path: Path) -> None:
    text, foreign = tmp_path / "text", tmp_path / "foreign"
    text.write_text("not a database, but long enough to have the header of one" * 20)
    with sqlite3.connect(foreign) as connection:
        connection.execute("CREATE TABLE answers (number INTEGER)")
    connection.close()
    for path in (text, foreign):
        before = path.read_bytes()
        for read_only in (False, True):
            with pytest.raises(ValueError, match=path.name):
                Cassette(path, read_only)
        assert path.read_bytes() == before
    with pytest.raises(ValueError, match="mode=record"):
        Cassette(tmp_path / "missing", read_only=True)
    assert not (tmp_path / "missing").exists()


def test_threads_share_a_cassette(tmp_path: Path) -> None:
    cassette = Cassette(tmp_path / "a.cassette")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: cassette.add(f"k{i % 50}", "target", Reply(str(i))), range(400)))
    assert len([k for k in range(50) if cassette.answer(f"k{k}")]) == 50


def test_what_is_recorded_is_replayed_by_a_dead_model(tmp_path: Path) -> None:
    path = tmp_path / "shared.cassette"
    batch = requests(64) + requests(8, rollout=1)
    with_model = Client({"target": Paid()}, "record", path)
    first = with_model.ask(batch)
    with_model.close()
    replay = Client({"target": Paid(dead=True)}, "replay", path)
    assert replay.ask(batch) == first
    one_at_a_time = Client({"target": Paid(dead=True)}, "replay", path)
    assert [one_at_a_time.ask([request])[0] for request in batch] == first
    assert replay.sent == {"target": 0}
    assert replay.spent() == one_at_a_time.spent() == with_model.spent()


def test_a_second_recording_pays_for_what_is_new_only(tmp_path: Path) -> None:
    path = tmp_path / "shared.cassette"
    Client({"target": Paid()}, "record", path).ask(requests(5))
    again = Client({"target": Paid()}, "record", path)
    again.ask(requests(8))
    assert again.sent == {"target": 3}
    assert again.spent()["lm_calls"] == 8


def test_a_replay_without_an_answer_says_so_and_sends_nothing(tmp_path: Path) -> None:
    path = tmp_path / "shared.cassette"
    Client({"target": Paid()}, "record", path).ask(requests(2))
    client = Client({"target": Paid(dead=True)}, "replay", path)
    answers = client.ask(requests(4))
    assert failures(answers) == ["", "", "CassetteMiss", "CassetteMiss"]
    assert isinstance(answers[3], CassetteMiss)
    # Another try, or another server, would not help.
    said = explain(answers[3], tmp_path)
    assert "Replay with that config, or set mode=record" in said
    assert "resume=" not in said
    assert answers[3].role == "target"
    assert client.spent()["lm_calls"] == 2
    assert client.stopped is None


def test_the_private_file_of_a_run_can_be_replayed(tmp_path: Path) -> None:
    live = Client({"target": Paid()})
    live.open(tmp_path / "run")
    first = live.ask(requests(6))
    live.close()
    replay = Client({"target": Paid(dead=True)}, "replay", tmp_path / "run.cassette")
    assert replay.ask(requests(6)) == first


def test_no_secret_is_in_the_file(tmp_path: Path) -> None:
    lm = Paid()
    client = Client({"target": lm})
    client.open(tmp_path / "run")
    client.ask(requests(4))
    client.close()
    held = (tmp_path / "run.cassette").read_bytes()
    assert b"answer" in held
    assert lm.api_key == SECRET
    assert SECRET.encode() not in held


KILLED = """
import os, signal, sys
from pathlib import Path
from types import ModuleType
sys.path[:0] = [{tests!r}]
sys.modules["metaopt"] = ModuleType("metaopt")  # without its imports, which take seconds
sys.modules["metaopt"].__path__ = [{package!r}]
from metaopt.llm import Client
from paid import Paid, requests
log = Path({log!r})
def kill(*_):
    if len(log.read_text().splitlines()) >= 60:
        os.kill(os.getpid(), signal.SIGKILL)
client = Client({{"target": Paid(kill, log, delay=0.02)}}, concurrency=4)
client.open(Path({folder!r}))
client.begin(1)
client.keep("a text")
client.ask(requests(20))
client.end(1)
client.begin(2)
client.ask(requests(300))
"""


@pytest.mark.slow
def test_kill_nine_loses_no_paid_answer(tmp_path: Path) -> None:
    log, folder = tmp_path / "log", tmp_path / "run"
    code = KILLED.format(
        tests=str(Path(__file__).parent),
        package=str(Path(metaopt.__file__).parent),
        log=str(log),
        folder=str(folder),
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == -signal.SIGKILL
    called = log.read_text().splitlines()
    lm = Paid()
    client = Client({"target": lm}, concurrency=4)
    client.open(folder)
    assert client.spent()["lm_calls"] >= len(called) - 4
    costs = []
    for number, n in ((1, 20), (2, 300)):
        client.begin(number)
        answers = client.ask(requests(n))
        costs.append(Counter(client.end(number)))
    again = {f"{text} {rollout}" for text, rollout in lm.calls} & set(called)
    assert len(again) <= 4, "only what was in flight may be asked again"
    assert len(lm.calls) == 300 - len(called) + len(again)
    assert client.failed.get("interrupted", 0) == sum(costs, Counter())["lm_requests"] - 300
    assert len(again) <= client.failed.get("interrupted", 0) <= 4
    whole = Client({"target": Paid()}, concurrency=64)
    for (number, n), cost in zip(((1, 20), (2, 300)), costs, strict=True):
        whole.begin(number)
        assert whole.ask(requests(n)) == answers[:n]
        expected, guess = whole.end(number), sum(estimate(requests(300)[-1]))
        lost = cost["lm_requests"] - expected["lm_requests"]
        assert cost["lm_calls"] == expected["lm_calls"]
        assert 0 <= cost["tokens"] - expected["tokens"] <= lost * guess
    assert client.text(client.keep("a text")) == "a text"
    client.close()
    assert not folder.exists()


def test_a_full_disk_names_the_file_and_leaves_it_whole(tmp_path):
    path = tmp_path / "a.cassette"
    cassette = Cassette(path)
    cassette.keep("first", "kept")
    cassette._connection.execute("PRAGMA max_page_count = 8")
    answer = Reply("x" * 40_000, Usage(1, 1))
    with pytest.raises(OSError, match="No space left on device") as caught:
        cassette.add("key", "judge", answer)
    assert caught.value.filename == str(path)
    assert cassette.text("first") == "kept"
    cassette.close()
    assert Cassette(path).text("first") == "kept"


def test_a_damaged_file_is_named(tmp_path):
    path = tmp_path / "a.cassette"
    cassette = Cassette(path)
    for i in range(50):
        cassette.keep(str(i), "x" * 1000)
    cassette.close()
    content = bytearray(path.read_bytes())
    content[4096:] = b"\xff" * (len(content) - 4096)
    path.write_bytes(content)
    with pytest.raises(DamagedFileError, match=r"a\.cassette is damaged: .* delete it"):
        [Cassette(path).text(str(i)) for i in range(50)]


@pytest.mark.parametrize("edited", ['{"text": "Rating', "[]", '{"text": 3, "usage": {}}', "{}"])
def test_an_answer_that_was_edited_into_none_names_the_file(tmp_path, edited):
    cassette = Cassette(tmp_path / "a.cassette")
    cassette.add("key", "judge", Reply("fine", Usage(1, 1)))
    cassette._connection.execute("UPDATE answers SET reply = ?", (edited,))
    with pytest.raises(
        DamagedFileError, match=r"a\.cassette is damaged: the answer key is no reply"
    ):
        cassette.answer("key")
