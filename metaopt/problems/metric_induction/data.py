"""Trajectories of an agent with people's feedback on them: of a file of your own, or of a world."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

from metaopt.data.records import Record, grouped, records
from metaopt.data.row_texts import list_in, text
from metaopt.llm import LM
from metaopt.problems.metric_induction.metric_set import Metric
from metaopt.problems.metric_induction.prompts import Aspect


class Instance(NamedTuple):
    """A run of an agent, and what a person said of it.

    Args:
        trajectory: what the agent did, as text.
        feedback: in the person's words.
        aspects: of the feedback, where they are known; `None` asks the role extractor.
    """

    trajectory: str
    feedback: str
    aspects: tuple[Aspect, ...] | None = None


@runtime_checkable
class FeedbackData(Protocol):
    """What metrics are induced from.

    Attributes:
        instances: in an order that says nothing.
        source: where they come from.
    """

    instances: tuple[Instance, ...]
    source: str

    def roles(self) -> Mapping[str, LM]:
        """Return the language models that come with it, by role; none for a user's own data."""
        ...


@runtime_checkable
class KnownBehaviours(Protocol):
    """Data whose maker knows which behaviours there are."""

    @property
    def planted(self) -> list[Metric]:
        """A metric for each planted behaviour, as somebody would write it who knows them."""
        ...

    def signs(self, trajectory: str) -> list[int]:
        """Return the sign of each planted behaviour in a trajectory: -1, 0 or +1."""
        ...

    def rate(self, metric: Metric, trajectory: str) -> int:
        """Return the rating by a reader that never errs, at no charge."""
        ...

    def behaviour(self, aspect: str) -> int | None:
        """Return which planted behaviour an aspect speaks about; -1 of none, `None` unknown."""
        ...


class FeedbackFile:
    """Your own trajectories with feedback, a line of JSON each, or any other file of records.

        {"trajectory": "1. opens the page ...", "feedback": "It found the page, but never asked."}

    A row may have `aspects`, a list of {"text": "...", "sign": 1 or -1}, as JSON in a cell of CSV,
    and is then not asked about: its feedback may be missing or empty.

    Args:
        source: a file, a folder or a data set of the hub; see `metaopt.data.records.records`.
        trajectory: name of the column with the trajectory.
        feedback: name of the column with the feedback.
        split: part of the hub's data set.
        limit: most rows, the first ones, >= 3; `None` takes all.

    Raises:
        FileNotFoundError: the source is missing.
        ValueError: malformed rows, by reason and with their places, or fewer than three.
    """

    def __init__(
        self,
        source: str,
        trajectory: str = "trajectory",
        feedback: str = "feedback",
        split: str = "train",
        limit: int | None = None,
    ) -> None:
        if limit is not None and limit < 3:
            raise ValueError(f"FeedbackFile needs limit >= 3, or null for all rows; got {limit}.")
        self.source = Path(source).name if Path(source).expanduser().exists() else source
        instances: list[Instance] = []
        wrong: list[tuple[str, str]] = []
        for record in _records(source, split):
            if len(instances) == limit:
                break
            try:
                instances.append(_instance(record.value, trajectory, feedback))
            except ValueError as reason:
                wrong.append((record.place, str(reason)))
        if wrong:
            raise ValueError(
                f"malformed rows of {self.source}, {len(wrong)} in all:{grouped(wrong)}"
            )
        if len(instances) < 3:
            raise ValueError(
                f"{self.source} has {len(instances)} rows; metrics are induced from one part of "
                "them, chosen on another and measured on a third, so give three at least."
            )
        self.instances = tuple(instances)

    def roles(self) -> Mapping[str, LM]:
        """Return no model: a user brings them."""
        return {}


def _records(source: str, split: str) -> Iterator[Record]:
    try:
        return records(source, split=split)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"source={source}: {error}") from error


def _instance(row: Any, trajectory: str, feedback: str) -> Instance:
    if isinstance(row, ValueError):
        raise row
    if not isinstance(row, Mapping):
        raise ValueError("is not an object; a row is {column: value}")
    columns = {"trajectory": trajectory, "feedback": feedback}
    given = row.get("aspects")
    if isinstance(given, str) and given.strip():  # a list in a cell of CSV
        listed = list_in(given)
        given = given if listed is None else listed
    aspects = None if given is None or given == "" else _aspects(given)
    if aspects is not None and not row.get(feedback):
        columns.pop("feedback")
    missing = {name: column for name, column in columns.items() if column not in row}
    if missing:
        names = " ".join(f"{name}=NAME" for name in missing)
        raise ValueError(
            f"has no column {' and '.join(map(repr, missing.values()))}; columns are "
            f"{', '.join(map(str, row))}. Give the names: {names}"
        )
    texts = {name: text(row, column).strip() for name, column in columns.items()}
    for name, value in texts.items():
        if not value:
            raise ValueError(f"{columns[name]!r} is empty")
    return Instance(texts["trajectory"], texts.get("feedback", ""), aspects)


def _aspects(value: Any) -> tuple[Aspect, ...]:
    if not isinstance(value, list):
        raise ValueError('\'aspects\' must be a list of {"text": "...", "sign": 1 or -1}')
    aspects = []
    for item in value:
        said = item.get("text") if isinstance(item, Mapping) else None
        sign = item.get("sign") if isinstance(item, Mapping) else None
        if not isinstance(said, str) or not said.strip() or sign not in (1, -1):
            raise ValueError(
                f'an aspect must be {{"text": "...", "sign": 1 or -1}}; got {repr(item)[:60]}'
            )
        aspects.append(Aspect(" ".join(said.split()), int(sign)))
    return tuple(aspects)
