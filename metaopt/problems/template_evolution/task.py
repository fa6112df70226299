"""What templates and prompts are evolved on: a task, and one whose truth is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

from metaopt.llm import LM


class Task(Protocol):
    """What is evolved on.

    Attributes:
        queries: the objectives, one text a query.
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
