"""What a language model is trained on: queries with a first rubric, and what is known of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol, runtime_checkable

from metaopt.llm import LM
from metaopt.problems.meta_policy_optimization.policy import Truth


class World(Protocol):
    """What a language model is trained on.

    Attributes:
        queries: what it responds to.
        rubric: the first rubric.
    """

    queries: Sequence[str]
    rubric: str

    def roles(self) -> Mapping[str, LM]:
        """Return the language models that come with it: judge, meta, or none."""
        ...

    def words(self) -> Iterable[str]:
        """Return texts that a tokenizer of words must know, where the model has none."""
        ...


@runtime_checkable
class Measurable(Truth, Protocol):
    """A world whose maker knows what its responses are worth, and which of them abuse the judge."""

    def abuse_rate(self, query: str, response: str) -> float:
        """Return the share of the world's abuses that a response shows."""
        ...


@runtime_checkable
class Taught(Protocol):
    """A world with template responses, on which a model of random weights learns to respond."""

    queries: Sequence[str]

    def texts(self, query: str, count: int, key: int) -> list[str]:
        """Return template responses to a query."""
        ...
