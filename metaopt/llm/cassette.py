"""Answers, uses and texts in one private sqlite file, which a kill leaves whole."""

from __future__ import annotations

import json
import os
import sqlite3
import threading
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from metaopt.files.errors import DamagedFileError
from metaopt.llm.chat import Likelihood, Reply, Usage
from metaopt.llm.connection import Connection
from metaopt.llm.errors import LMError, PolicyRefusal

VERSION = 2

SCHEMA = f"""
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, role TEXT NOT NULL, reply TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS failures (
    key TEXT PRIMARY KEY, role TEXT NOT NULL, kind TEXT NOT NULL, message TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS uses (
    key TEXT PRIMARY KEY, role TEXT NOT NULL, prompt INTEGER NOT NULL, completion INTEGER NOT NULL,
    round INTEGER);
CREATE TABLE IF NOT EXISTS requests (
    number INTEGER PRIMARY KEY, role TEXT NOT NULL, tokens INTEGER NOT NULL, outcome TEXT NOT NULL,
    round INTEGER);
CREATE TABLE IF NOT EXISTS texts (ref TEXT PRIMARY KEY, text TEXT NOT NULL);
PRAGMA user_version = {VERSION};
COMMIT;
"""

FINAL: dict[str, type[LMError]] = {"PolicyRefusal": PolicyRefusal}
"""Failures that are kept: asking again would go around a policy."""

UNKNOWN, ANSWERED = "interrupted", "answered"
"""Outcomes of a request: unknown as long as it is under way, so that a kill leaves it so."""

BUSY_S = 60.0
"""Longest wait for another process that writes to the same file."""


class Use(NamedTuple):
    """The first use of an answer in a run, which is when it is charged.

    Args:
        key: the request's.
        role: who was asked.
        usage: what the answer cost.
        round: outer round that it belongs to, or `None` before the first.
    """

    key: str
    role: str
    usage: Usage
    round: int | None


class Sent(NamedTuple):
    """A request that was sent, once for every try.

    Args:
        role: who was asked.
        tokens: charged for it in addition to what its answer costs: a guess as long as the outcome
            is unknown and of a failure that the vendor may bill, else 0.
        outcome: `ANSWERED`, `UNKNOWN`, or the kind of the failure.
        round: outer round that it belongs to, or `None` before the first.
    """

    role: str
    tokens: int
    outcome: str
    round: int | None


class Cassette:
    """A sqlite file (WAL, mode 0600 from its creation) of what was asked and answered.

    A commit survives the death of the process (`synchronous=NORMAL`), though the last ones may be
    lost with the machine's power; the file itself is never damaged.

    Args:
        path: the file, made with its folder where missing; `None` keeps everything in memory.
        read_only: nothing is written, and the file must exist.

    Raises:
        ValueError: the file is missing, no cassette, or one of another version. All methods: it
            is damaged.
        OSError: from all methods: the disk is full, or fails.
    """

    def __init__(self, path: Path | None = None, read_only: bool = False) -> None:
        self.path = path
        self._read_only = read_only
        self._lock = threading.RLock()
        try:
            self._connection = _connect(path, read_only)
        except sqlite3.Error as error:
            raise ValueError(f"cassette={str(path)!r} cannot be opened: {error}.") from None
        self._end = weakref.finalize(self, self._connection.close)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Commit what the block writes together, or nothing of it."""
        with self._lock:
            if self._connection.in_transaction:
                yield
                return
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.commit()
            except BaseException:
                self._connection.rollback()
                raise

    def answer(self, key: str) -> Reply | LMError | None:
        """Return the reply to a request, or the final failure that it met, or `None`.

        Raises:
            DamagedFileError: what is on record is no reply, as after an edit by hand.
        """
        row = self._one("SELECT reply FROM answers WHERE key = ?", key)
        if row:
            try:
                return _reply(row[0])
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                raise DamagedFileError(
                    f"{self.path} is damaged: the answer {key} is no reply ({error}). Restore the "
                    "file from a copy, or delete it: the answers in it are then asked for, and "
                    "paid, again."
                ) from error
        row = self._one("SELECT kind, message, role FROM failures WHERE key = ?", key)
        return FINAL[row[0]](row[1], row[2]) if row else None

    def add(self, key: str, role: str, answer: Reply | LMError) -> Reply | LMError:
        """Record an answer and return the one that is on record: the first one stays.

        Raises:
            TypeError: a failure that another try could mend.
        """
        if isinstance(answer, LMError) and type(answer).__name__ not in FINAL:
            raise TypeError(f"only {', '.join(FINAL)} are recorded; got {type(answer).__name__}.")
        with self.transaction():
            held = self.answer(key)
            if held is not None:
                return held
            if isinstance(answer, LMError):
                row = (key, role, type(answer).__name__, str(answer))
                self._connection.execute("INSERT INTO failures VALUES (?, ?, ?, ?)", row)
            else:
                text = json.dumps(answer._asdict() | {"usage": answer.usage._asdict()})
                self._connection.execute("INSERT INTO answers VALUES (?, ?, ?)", (key, role, text))
        return answer

    def use(self, uses: Iterable[Use]) -> None:
        """Record first uses, all in one transaction; a second use changes nothing."""
        rows = [(u.key, u.role, *u.usage, u.round) for u in uses]
        if rows:
            with self.transaction():
                self._connection.executemany(
                    "INSERT OR IGNORE INTO uses VALUES (?, ?, ?, ?, ?)", rows
                )

    def uses(self) -> list[Use]:
        """Return every first use on record, in the order in which they were made."""
        query = "SELECT key, role, prompt, completion, round FROM uses ORDER BY rowid"
        with self._lock:
            rows = self._connection.execute(query).fetchall()
        return [Use(key, role, Usage(p, c), number) for key, role, p, c, number in rows]

    def send(self, sent: Sent) -> int:
        """Record a request before it is sent, and return its number."""
        query = "INSERT INTO requests (role, tokens, outcome, round) VALUES (?, ?, ?, ?)"
        with self.transaction():
            number = self._connection.execute(query, sent).lastrowid
        assert number is not None  # of an insert
        return number

    def settle(self, number: int, tokens: int, outcome: str) -> None:
        """Record what became of a request."""
        query = "UPDATE requests SET tokens = ?, outcome = ? WHERE number = ?"
        with self.transaction():
            self._connection.execute(query, (tokens, outcome, number))

    def unsend(self, number: int) -> None:
        """Forget a request that did not leave."""
        with self.transaction():
            self._connection.execute("DELETE FROM requests WHERE number = ?", (number,))

    def sent(self) -> list[Sent]:
        """Return every request on record, in the order in which they were sent."""
        query = "SELECT role, tokens, outcome, round FROM requests ORDER BY number"
        with self._lock:
            return [Sent(*row) for row in self._connection.execute(query)]

    def assign(self, number: int) -> None:
        """Give the uses and requests that have no round yet to round `number`."""
        with self.transaction():
            for table in ("uses", "requests"):
                query = f"UPDATE {table} SET round = ? WHERE round IS NULL"
                self._connection.execute(query, (number,))

    def keep(self, ref: str, text: str) -> None:
        """Record a text under its reference."""
        with self._lock:
            self._connection.execute("INSERT OR IGNORE INTO texts VALUES (?, ?)", (ref, text))

    def text(self, ref: str) -> str | None:
        """Return the text of a reference, or `None`."""
        row = self._one("SELECT text FROM texts WHERE ref = ?", ref)
        return row[0] if row else None

    def copy_to(self, other: Cassette) -> None:
        """Add everything in this cassette to another, where it is not there already."""
        with self._lock, other.transaction():
            for sent in self.sent():
                other.send(sent)
            for table, columns in (("answers", 3), ("failures", 4), ("uses", 5), ("texts", 2)):
                rows = self._connection.execute(f"SELECT * FROM {table} ORDER BY rowid")
                marks = ", ".join("?" * columns)
                other._connection.executemany(
                    f"INSERT OR IGNORE INTO {table} VALUES ({marks})", rows
                )

    def close(self) -> None:
        """Close the file; the last one to close it leaves a single file, with no log next to it."""
        with self._lock:
            if self._end.alive and self.path and not self._read_only:
                with suppress(sqlite3.OperationalError, OSError):  # another has it open; no space
                    self._connection.execute("PRAGMA busy_timeout = 0")
                    self._connection.execute("PRAGMA journal_mode = DELETE")
            self._end()

    def _one(self, query: str, key: str) -> tuple[str, ...] | None:
        with self._lock:
            row: tuple[str, ...] | None = self._connection.execute(query, (key,)).fetchone()
        return row


def _reply(record: str) -> Reply:
    """Return the reply that `Cassette.add` has written."""
    values = json.loads(record)
    likelihoods = tuple(Likelihood(*pair) for pair in values.pop("likelihoods", ()))
    reply = Reply(**values | {"usage": Usage(**values["usage"]), "likelihoods": likelihoods})
    if not isinstance(reply.text, str):
        raise TypeError(f"its text is {reply.text!r}")
    return reply


def _connect(path: Path | None, read_only: bool) -> sqlite3.Connection:
    name = ":memory:" if path is None else str(path)
    if path is not None and read_only:
        if not path.is_file():
            raise ValueError(f"cassette={name!r} does not exist; mode=record makes one.")
        name = f"{path.resolve().as_uri()}?mode=ro"
    elif path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Made here: sqlite would make it with the permissions of the process, for others to read.
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    # No isolation level: the module would else begin and commit transactions when it thinks fit.
    connection = sqlite3.connect(
        name, timeout=BUSY_S, isolation_level=None, check_same_thread=False, uri=read_only,
        factory=Connection,
    )  # fmt: skip
    connection.path = path
    try:
        _prepare(connection, read_only)
    except (sqlite3.Error, OSError, ValueError):
        connection.close()
        raise
    return connection


def _prepare(connection: sqlite3.Connection, read_only: bool) -> None:
    query = "SELECT user_version, (SELECT count(*) FROM sqlite_master) FROM pragma_user_version"
    if connection.execute(query).fetchone() == (0, 0) and not read_only:
        connection.executescript(SCHEMA)
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version != VERSION:
        raise sqlite3.DatabaseError(f"its version is {version}; this release reads {VERSION}")
    if not read_only:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
