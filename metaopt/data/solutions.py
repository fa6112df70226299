"""Recorded responses with known outcomes: GSM8K model solutions, a file, a folder, the hub."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from metaopt.data.folder import find_data
from metaopt.data.records import Record, grouped, records
from metaopt.data.row_texts import flag, text

GSM8K = "gsm8k/example_model_solutions.jsonl"


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
    questions: int | None = None,
) -> Solutions:
    """Return recorded responses from a file, a folder or a data set of the hub.

    A row is one response, or, as GSM8K publishes them, one question with its responses:

        {"query": "...", "response": "...", "outcome": true}
        {"question": "...", "<system>": {"solution": "...", "is_correct": true}, ...}

    Args:
        source: as `metaopt.data.records.records` reads them: a file, a folder, a data set id of
            the hub (owner/name); or `None` for GSM8K's, gsm8k/example_model_solutions.jsonl in
            the data folder.
        query: name of the column with the query; `None` makes every row a query of its own, with
            an empty text. Rows of equal text, but for spaces at its ends, belong to one query, so a
            split keeps them together.
        response: name of the column with the response.
        outcome: name of the column with the outcome: true or false, yes or no, 1 or 0, or null for
            a response that nobody could decide, which is left out.
        split: part of the hub's data set.
        questions: most different queries, the first ones, >= 2; `None` takes all.

    Raises:
        FileNotFoundError: the source is missing.
        ValueError: questions below 2; malformed rows, by reason and with their places; or no row
            with an outcome.
    """
    if questions is not None and questions < 2:
        raise ValueError(f"questions must be at least 2, or null for all; got {questions}.")
    path = str(find_data(GSM8K, "gsm8k")) if source is None else source
    texts: dict[str, str] = {}
    indices: dict[str, int] = {}
    rows: list[Solution] = []
    wrong: list[tuple[str, str]] = []
    ambiguous = 0
    local = Path(path).expanduser().exists()
    name = GSM8K if source is None else Path(path).name if local else f"{source} ({split})"
    for number, record in enumerate(_records(path, split)):
        try:
            responses = list(_responses(record.value, query, response, outcome))
        except ValueError as reason:
            wrong.append((record.place, str(reason)))
            continue
        for question, answer, success, system in responses:
            # Rows of one text share an index, and with it the side of a split.
            same = str(number) if question is None else question.strip()
            if same not in texts and len(texts) == questions:
                continue
            if success is None:
                ambiguous += 1
                continue
            texts.setdefault(same, question or "")
            index = indices.setdefault(same, len(indices))
            rows.append(Solution(index, answer, success, system))
    if wrong:
        raise ValueError(f"malformed rows of {name}, {len(wrong)} in all:{grouped(wrong)}")
    if not rows:
        raise ValueError(f"{name} holds no response with an outcome.")
    return Solutions(tuple(texts.values()), tuple(rows), ambiguous, name)


def _records(source: str, split: str) -> Iterator[Record]:
    try:
        return records(source, split=split)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"source={source}: {error}") from error


def _responses(
    row: Any, query: str | None, response: str, outcome: str
) -> Iterator[tuple[str | None, str, bool | None, str]]:
    """Yield (query, response, outcome, system) of a row.

    Raises:
        ValueError: says what is wrong with it.
    """
    if isinstance(row, ValueError):
        raise row
    if not isinstance(row, Mapping):
        raise ValueError("is not an object; a row is {column: value}")
    answers = {k: v for k, v in row.items() if isinstance(v, Mapping)}
    if response in row or not answers:
        _require(row, query=query, response=response, outcome=outcome)
        asked = None if query is None else text(row, query)
        system = row.get("system")
        named = system if isinstance(system, str) else ""
        yield asked, text(row, response), flag(row, outcome, optional=True), named
        return
    asked = text(row, "question")
    for system, answer in answers.items():
        if "is_correct" not in answer:
            raise ValueError(f"'is_correct' must be true, false or null; {system!r} has none")
        yield asked, text(answer, "solution"), flag(answer, "is_correct", optional=True), system


def _require(row: Mapping[str, Any], **columns: str | None) -> None:
    """Raise a `ValueError` where columns are missing; it says which argument names another."""
    missing = {k: v for k, v in columns.items() if v is not None and v not in row}
    if missing:
        lacking = " and ".join(map(repr, missing.values()))
        names = " ".join(f"{argument}=NAME" for argument in missing)
        raise ValueError(
            f"has no column {lacking}; columns are {', '.join(map(str, row))}. Give the names in "
            f"the source: {names}"
        )
