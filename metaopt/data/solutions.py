"""Recorded responses with known outcomes: GSM8K model solutions, a file of one's own, the hub."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from metaopt.data.row_texts import shown, text

SHARED = Path("gsm8k") / "example_model_solutions.jsonl"
ORIGIN = "https://github.com/openai/grade-school-math"
FILES = (".jsonl", ".json", ".csv", ".txt")
SHOWN = 10

Row = tuple[str, Any]
"""Where a row comes from, and the row."""


class Solution(NamedTuple):
    """One recorded response.

    Args:
        query: index of its query.
        response: its text.
        outcome: whether it meets the query's objective.
        system: who wrote it; "" where that is not known.
    """

    query: int
    response: str
    outcome: bool
    system: str = ""


@dataclass(frozen=True)
class Solutions:
    """Recorded responses to queries.

    Args:
        queries: the different queries, in the order of their first row.
        rows: the responses with an outcome.
        ambiguous: rows that were left out because their outcome is null.
        source: where they come from.
    """

    queries: tuple[str, ...]
    rows: tuple[Solution, ...]
    ambiguous: int = 0
    source: str = ""

    def split(self, share: float, seed: int) -> tuple[list[int], list[int]]:
        """Return the indices of the training queries and of the others, both in random order.

        Args:
            share: of the queries that train, strictly between 0 and 1; at least one query is on
                either side.
            seed: another seed is another split.

        Raises:
            ValueError: a share that is not between 0 and 1, or fewer than two queries.
        """
        count = len(self.queries)
        if not 0 < share < 1 or count < 2:
            raise ValueError(
                f"a split needs 0 < share < 1 and two queries; got share={share} and {count} "
                f"queries."
            )
        order = np.random.default_rng(seed).permutation(count).tolist()
        training = min(max(round(share * count), 1), count - 1)
        return order[:training], order[training:]


def solutions(
    source: str | None = None,
    query: str | None = "query",
    response: str = "response",
    outcome: str = "outcome",
    split: str = "test",
) -> Solutions:
    """Return recorded responses from a file of JSON lines or from a data set of the hub.

    A row is one response, or, as GSM8K publishes them, one question with its responses:

        {"query": "...", "response": "...", "outcome": true}
        {"question": "...", "<system>": {"solution": "...", "is_correct": true}, ...}

    Args:
        source: a path to a file, a data set id of the hub (owner/name), or `None` for
            gsm8k/example_model_solutions.jsonl in $METAOPT_DATA.
        query: name of the column with the query; `None` makes every row a query of its own, with
            an empty text. Rows of equal text belong to one query, so a split keeps them together.
        response: name of the column with the response.
        outcome: name of the column with the outcome: true or false, 1 or 0, or null for a response
            that nobody could decide, which is left out.
        split: part of the hub's data set.

    Raises:
        FileNotFoundError: the source is missing.
        ValueError: malformed rows, listed with file and line; or no row with an outcome.
    """
    name, found = _rows(source, split)
    texts: dict[str, int] = {}
    rows: list[Solution] = []
    wrong: list[str] = []
    ambiguous = 0
    for number, (where, row) in enumerate(found):
        try:
            given = list(_responses(row, query, response, outcome))
        except ValueError as reason:
            wrong.append(f"{where}: {reason}")
            continue
        for asked, said, success, system in given:
            if success is None:
                ambiguous += 1
                continue
            index = texts.setdefault(str(number) if asked is None else asked, len(texts))
            rows.append(Solution(index, said, success, system))
    if wrong:
        more = f"\n  and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        listed = "\n  ".join(wrong[:SHOWN])
        raise ValueError(f"malformed rows of {name}, {len(wrong)} in all:\n  {listed}{more}")
    if not rows:
        raise ValueError(f"{name} holds no response with an outcome.")
    queries = tuple(texts) if query is not None else ("",) * len(texts)
    return Solutions(queries, tuple(rows), ambiguous, name)


def _responses(
    row: Any, query: str | None, response: str, outcome: str
) -> Iterator[tuple[str | None, str, bool | None, str]]:
    """Yield (query, response, outcome, system) of a row.

    Raises:
        ValueError: says what is wrong with it.
    """
    if isinstance(row, json.JSONDecodeError):
        raise ValueError(f"is no JSON: {row}")
    if not isinstance(row, Mapping):
        raise ValueError("is no object; a row is {column: value}")
    if response in row:
        asked = None if query is None else text(row, query)
        system = row.get("system")
        named = system if isinstance(system, str) else ""
        yield asked, text(row, response), _outcome(row, outcome), named
        return
    answers = {k: v for k, v in row.items() if isinstance(v, Mapping)}
    if not answers:
        raise ValueError(f"has no column {response!r}; columns are {', '.join(map(str, row))}")
    asked = text(row, "question")
    for system, answer in answers.items():
        yield asked, text(answer, "solution"), _outcome(answer, "is_correct"), system


def _outcome(row: Mapping[str, Any], column: str) -> bool | None:
    value = row.get(column, "")
    if value is None:
        return None
    if not isinstance(value, (bool, int)) or value not in (0, 1):
        raise ValueError(f"{column!r} must be true, false, 1, 0 or null; got {shown(row, column)}")
    return bool(value)


def _rows(source: str | None, split: str) -> tuple[str, Iterator[Row] | Sequence[Row]]:
    """Return the source's name and its rows.

    Raises:
        FileNotFoundError: there is no such source.
    """
    if source is None:
        path = Path(os.environ.get("METAOPT_DATA", "../shared/data")) / SHARED
        if not path.is_file():
            raise FileNotFoundError(
                f"GSM8K's recorded solutions are not in {path}. Get the file {SHARED.name} from "
                f"{ORIGIN}, put it into a folder gsm8k/ and set METAOPT_DATA to the folder above; "
                f"or set problem.data.source to a file of your own or to a data set of the hub."
            )
        return str(SHARED), _lines(path)
    path = Path(source).expanduser()
    if path.is_file():
        return path.name, _lines(path)
    if source.count("/") != 1 or source[0] in "./~" or path.suffix in FILES:
        raise FileNotFoundError(
            f"problem.data.source={source} is neither a file nor a data set of the hub "
            f"(owner/name)."
        )
    return f"{source} ({split})", _hub(source, split)


def _lines(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    yield f"{path}:{number}", json.loads(line)
                except json.JSONDecodeError as error:
                    yield f"{path}:{number}", error


def _hub(name: str, split: str) -> Iterator[Row]:
    from datasets import load_dataset
    from datasets.exceptions import DatasetNotFoundError

    try:
        rows = load_dataset(name, split=split)
    except (DatasetNotFoundError, ConnectionError, OSError) as error:
        raise FileNotFoundError(
            f"the hub's data set {name} cannot be read ({type(error).__name__}). Check the name "
            f"and the network, or set problem.data.source to a file."
        ) from error
    return ((f"{name}, {split} row {i}", row) for i, row in enumerate(rows))
