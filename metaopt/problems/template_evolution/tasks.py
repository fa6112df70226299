"""Tasks of template evolution: what one states, one whose truth is known, one from a file."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from metaopt.data.records import Record, records
from metaopt.llm import LM
from metaopt.llm.rubric import FOOTER

TEMPLATE = (
    "You grade how well a response meets its objective.\n"
    "Look for what the objective asks for, and take off for what is missing, wrong or evasive.\n"
    f"{FOOTER}"
)
"""A first template for a judge that can read."""


class Task(Protocol):
    """What is evolved on.

    Attributes:
        queries: the objectives, one text per query.
        template: the first scoring template.
    """

    queries: Sequence[str]
    template: str

    def prompts(self, query: int, count: int, key: int) -> list[str]:
        """Return up to `count` first candidates for a query."""
        ...

    def check(self, query: int, response: str, key: int) -> bool | None:
        """Return whether the response meets the query's objective; `None` when ambiguous."""
        ...

    def roles(self) -> Mapping[str, LM]:
        """Return the language models that come with the task, by role."""
        ...


@runtime_checkable
class KnownTruth(Protocol):
    """A simulated task, whose truth can be looked up."""

    def success(self, query: int, prompt: str) -> float:
        """Return the true probability that the prompt meets the query's objective."""
        ...

    def examination(self, query: int) -> Sequence[tuple[str, bool]]:
        """Return (response, outcome) pairs that the search has not seen."""
        ...


class PromptFile:
    """Queries from a file, one record per query; read by `metaopt.data.records.records`.

        {"query": "name the capital of France", "success": "\\\\bParis\\\\b", "prompts": ["..."]}

    `success` is a regular expression (case ignored) that a response meeting the objective
    matches, `failure` one that others match. With both, a response that matches none or both is
    ambiguous and counts as neither. Without `success` the role checker must decide
    (problem.checker=lm). `prompts` are the first candidates; without them the query is the first.

    Args:
        path: the file: JSON lines, a JSON array, parquet; a folder of them, or an id of the hub.
        template: text of the first scoring template, or `None` for a general one.

    Raises:
        OSError: the file cannot be read.
        ValueError: a record is not such an object; names file and line.
    """

    def __init__(self, path: str, template: str | None = None) -> None:
        rows = [_query(record) for record in records(path)]
        self.queries = [row["query"] for row in rows]
        self.template = template or TEMPLATE
        self._prompts = [row.get("prompts") or [row["query"]] for row in rows]
        self._success = [_pattern(row, "success") for row in rows]
        self._failure = [_pattern(row, "failure") for row in rows]

    def prompts(self, query: int, count: int, key: int) -> list[str]:
        """Return up to `count` of the query's prompts, drawn without replacement."""
        known = self._prompts[query]
        return [known[i] for i in np.random.default_rng(key).permutation(len(known))[:count]]

    def check(self, query: int, response: str, key: int) -> bool | None:
        """Return what the query's expressions say of the response."""
        success, failure = self._success[query], self._failure[query]
        if success is None:
            return None
        met = success.search(response) is not None
        if failure is None:
            return met
        missed = failure.search(response) is not None
        return met if met != missed else None

    def roles(self) -> Mapping[str, LM]:
        """Return no language models: the user brings them."""
        return {}


def _query(record: Record) -> Mapping[str, Any]:
    """Return what a record says of a query.

    Raises:
        ValueError: names the file, the line and what is wrong.
    """
    row, where = record.value, record.place
    if isinstance(row, ValueError):
        raise ValueError(f"{where} {row}") from row
    if not isinstance(row, Mapping) or not isinstance(row.get("query"), str) or not row["query"]:
        raise ValueError(f"{where} needs an object with a text under 'query'.")
    prompts = row.get("prompts") or []
    if not isinstance(prompts, list) or not all(isinstance(p, str) and p for p in prompts):
        raise ValueError(f"{where}: 'prompts' must be a list of texts, none of them empty.")
    unknown = sorted(set(row) - {"query", "success", "failure", "prompts"})
    if unknown:
        raise ValueError(
            f"{where} has the unknown key {unknown[0]!r}; legal are query, success, failure, "
            f"prompts."
        )
    for name in ("success", "failure"):
        try:
            _pattern(row, name)
        except (re.error, TypeError) as error:
            raise ValueError(f"{where}: {name!r} is not a regular expression: {error}.") from None
    return row


def _pattern(row: Mapping[str, Any], name: str) -> re.Pattern[str] | None:
    return re.compile(row[name], re.IGNORECASE) if row.get(name) else None
