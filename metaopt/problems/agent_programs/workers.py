"""What a program runs on: questions, and workers that solve, revise and judge them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metaopt.llm import LM, Client

Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]

NO_ANSWER = -1
"""The answer of a solution from which none can be read."""


class Workers(ABC):
    """Questions and the workers that answer them.

    A solution is a whole number that the workers give a meaning to, and two solutions of a question
    agree where their `answers` are equal. Every method takes the indices of the questions (N,) that
    a block works on; all randomness is a function of `key`. Each call of `solve`, `refine`,
    `flags`, `revise` and `argue` is one call of a model for each question, one of `choose` is one
    for each question; `metaopt.problems.agent_programs.execution` counts them.

    Attributes:
        names: of the workers.
        features: whole numbers (questions,) by name, which a route compares with a threshold.
        thresholds: of each feature, those that routes are drawn from.
        criteria: of `select`.
        fresh: whether a worker can be asked again.
        size: number of questions.
        resplit: whether seeds split one data set, and do not draw questions of their own.
        lms: language models by role, for the client; none where the workers are not models.
    """

    names: tuple[str, ...]
    features: Mapping[str, Ints]
    thresholds: Mapping[str, Sequence[int]]
    criteria: tuple[str, ...] = ()
    fresh: bool = True
    size: int
    resplit: bool = True

    @property
    def lms(self) -> Mapping[str, LM]:
        """The language models that are asked, by role."""
        return {}

    def bind(self, client: Client) -> None:
        """Keep the client that answers for `lms`; called once, by the problem."""
        return

    @abstractmethod
    def solve(self, worker: str, questions: Ints, key: int) -> Ints:
        """Return a solution of a worker to each question, "" for the only one."""

    @abstractmethod
    def answers(self, questions: Ints, solutions: Ints) -> Ints:
        """Return the answer of each solution, >= 0, or `NO_ANSWER`."""

    @abstractmethod
    def correct(self, questions: Ints, solutions: Ints) -> Flags:
        """Return whether each solution's answer is right."""

    def score(self, criterion: str, questions: Ints, solutions: Ints) -> Ints:
        """Return what `select` maximises by a criterion that asks nobody."""
        raise self._refusal(f"select({criterion}, ...)")

    def refine(self, questions: Ints, solutions: Ints, key: int) -> Ints:
        """Return each solution, looked through once more and perhaps changed."""
        raise self._refusal("refine")

    def flags(self, questions: Ints, solutions: Ints, key: int) -> tuple[Flags, Any]:
        """Return whether a critic finds each solution wrong, and what it says."""
        raise self._refusal("critique")

    def revise(self, questions: Ints, solutions: Ints, notes: Any, key: int) -> Ints:
        """Return each solution as it is after what the critic said, the rows of `notes`."""
        raise self._refusal("critique")

    def argue(self, questions: Ints, own: Ints, other: Ints, key: int) -> Ints:
        """Return the solution that a side of a debate holds after reading the other's."""
        raise self._refusal("debate")

    def choose(self, questions: Ints, candidates: Sequence[Ints], key: int) -> Ints:
        """Return the index of the candidate that a judge picks for each question."""
        raise self._refusal("select(judge, ...)")

    def _refusal(self, block: str) -> ValueError:
        return ValueError(f"{type(self).__name__} cannot run {block}: it asks no model again.")


def everything(size: int) -> Ints:
    """Return the indices of so many questions."""
    return np.arange(size, dtype=np.int64)
