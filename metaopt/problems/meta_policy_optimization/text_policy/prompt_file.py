"""Queries from a file or the hub, with a first rubric; the truth of responses is not known."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from metaopt.data.records import Record, grouped, records
from metaopt.files.numbers import is_number
from metaopt.llm import LM
from metaopt.problems.meta_policy_optimization.item_scores import render

OVERALL = "The overall quality of the response"
"""The vague item that a run starts from."""


class PromptFile:
    """Queries of a file, for `TextPolicy`; judge and meta judge are the user's.

    Example:
        >>> world = PromptFile("prompts.jsonl", rubric={"Answers the question.": 5.0})

    Args:
        source: see `metaopt.data.records.records`.
        column: of the queries.
        rubric: points of each item of the first rubric, by its text: what is judged, in any words;
            `None` for one vague item, `OVERALL`, of 5 points.
        limit: most queries that are read, or `None`.

    Raises:
        FileNotFoundError, ValueError: there is no such source; rows without a text in the column,
            or with the text or the `id` of another row; no row at all; a rubric without an item.
    """

    def __init__(
        self,
        source: str | Path,
        column: str = "prompt",
        rubric: Mapping[str, float] | None = None,
        limit: int | None = None,
    ) -> None:
        if limit is not None and not (isinstance(limit, int) and limit >= 1):
            raise ValueError(f"limit must be at least 1, or null for every query; got {limit}.")
        if rubric is not None and not (
            isinstance(rubric, Mapping) and all(map(is_number, rubric.values()))
        ):
            raise ValueError(
                "rubric must have a number of points for each item, such as {Answers what is "
                f"asked: 5}}; got {rubric}."
            )
        self.rubric = render({OVERALL: 5.0} if rubric is None else rubric, free=True)
        self.queries: list[str] = []
        places: dict[tuple[str, object], str] = {}
        mistakes: list[tuple[str, str]] = []
        for record in records(source, columns={column: column}):
            if len(self.queries) == limit:
                break
            try:
                self.queries.append(_query(record, column, places))
            except ValueError as error:
                mistakes.append((record.place, str(error)))
        if mistakes:
            count = len(self.queries) + len(mistakes)
            raise ValueError(
                f"{len(mistakes)} of {count} rows of {source} hold no query:{grouped(mistakes)}"
            )
        if not self.queries:
            raise ValueError(f"{source} has no row, and a policy needs queries to respond to.")

    def roles(self) -> Mapping[str, LM]:
        """Return none."""
        return {}

    def words(self) -> Iterable[str]:
        """Return the queries."""
        return self.queries


def _query(record: Record, column: str, places: dict[tuple[str, object], str]) -> str:
    """Return the query of a row, and write down where it stands.

    A row that is there twice would be trained on twice as often as the others.
    """
    row = record.value
    if isinstance(row, ValueError):
        raise row
    text = row[column]
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"column={column} must hold a text; got {text!r}")
    for name, value in ((column, text), ("id", row.get("id"))):
        first = places.setdefault((name, str(value)), record.place)
        if value is not None and first != record.place:
            raise ValueError(f"its {name} is that of another row, {first}; got {str(value)[:40]!r}")
    return text
