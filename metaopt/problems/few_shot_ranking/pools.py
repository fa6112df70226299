"""Queries, the documents that a first stage returns for each, and what a user says of some."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metaopt.engine.random import fold, generator
from metaopt.problems.few_shot_ranking.metrics import ndcg

CUTOFF = 20
"""Ranks that count in nDCG."""

MIN_TEST_QUERIES = 20


class Split(NamedTuple):
    """Queries by what they are for, as rows of `Pools.queries`.

    Args:
        train: meta-training, (n,) long.
        validation: chooses rates and steps of fine-tuning, (n,).
        test: (n,).
    """

    train: Tensor
    validation: Tensor
    test: Tensor


@dataclass(frozen=True)
class Pools:
    """Q queries, each with a pool of P documents of N in a first stage's order.

    The first K relevant and the first K irrelevant documents of each pool are feedback. A method
    that is given k <= K of each leaves all 2K out of what it ranks, so that all k have one test.

    Args:
        queries: vectors of the queries, (Q, D).
        documents: vectors of the documents, (N, D).
        pool: rows of `documents`, best first, (Q, P) long; each at most once in a pool.
        first_stage: the first stage's scores, (Q, P), falling; standardised for each query.
        grades: relevance, (Q, P), >= 0; 0 for irrelevant or not judged.
        feedback: positions in the pool, (Q, 2, K) long: of relevant documents, and of irrelevant
            ones, each in the first stage's order.
        ideal: DCG@20 of the best order of all relevant documents but the feedback, those outside
            the pool included, (Q,).
        expanded: the first stage's scores of the pool for the query expanded by its first 1, ..., K
            relevant documents, (K, Q, P); `None` where there are no words.
        intent: what a user who knows the documents would rank the pool by, (Q, P); `None` outside
            of generated worlds.
        texts: of the queries and of the documents; `None` where there are no words.
        made_of: collection, encoder and first stage, as JSON has them, for a scorer that is to rank
            other documents; `None` where there are none.

    Raises:
        ValueError: a shape, a type or a value outside what is said here.

    Example:
        >>> import torch
        >>> pools = Pools(
        ...     queries=torch.ones(1, 2), documents=torch.eye(5, 2), pool=torch.arange(5)[None],
        ...     first_stage=torch.tensor([[2.0, 1.0, 0.0, -1.0, -2.0]]),
        ...     grades=torch.tensor([[1.0, 0.0, 0.0, 1.0, 0.0]]),
        ...     feedback=torch.tensor([[[0], [1]]]), ideal=torch.tensor([1.0]),
        ... )
        >>> pools.ndcg(pools.first_stage)  # the third document comes first, and is irrelevant
        tensor([0.6309])
    """

    queries: Tensor
    documents: Tensor
    pool: Tensor
    first_stage: Tensor
    grades: Tensor
    feedback: Tensor
    ideal: Tensor
    expanded: Tensor | None = None
    intent: Tensor | None = None
    texts: tuple[Sequence[str], Sequence[str]] | None = None
    made_of: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        self._check_shapes()
        self._check_values()

    @property
    def shots(self) -> int:
        """The largest k, K."""
        return self.feedback.shape[-1]

    @cached_property
    def left_out(self) -> Tensor:
        """Whether a document of the pool is feedback, (Q, P)."""
        mask = torch.zeros_like(self.grades, dtype=torch.bool)
        return mask.scatter(-1, self.feedback.flatten(-2), True)

    def ndcg(self, scores: Tensor, queries: Tensor | None = None) -> Tensor:
        """Return nDCG@20 without the feedback, (..., n), of scores (..., n, P) of n queries.

        Args:
            scores: larger is better; equal ones keep the first stage's order.
            queries: which queries, (n,) long; `None` for all of them.
        """
        some = slice(None) if queries is None else queries
        left_out = self.left_out[some]
        grades = self.grades[some].masked_fill(left_out, 0.0)
        return ndcg(scores.masked_fill(left_out, -torch.inf), grades, self.ideal[some], CUTOFF)

    def split(self, seed: int, train: float = 0.5, validation: float = 1 / 6) -> Split:
        """Return which queries train, validate and test, in an order drawn by the seed.

        Args:
            seed: of the split.
            train, validation: shares of the queries in (0, 1); the rest is for the test.

        Raises:
            ValueError: fewer than 20 queries are left for the test, or none for another part.
        """
        _check_shares(train, validation)
        count = len(self.queries)
        ends = round(train * count), round((train + validation) * count)
        if not 0 < ends[0] < ends[1] <= count - MIN_TEST_QUERIES:
            raise ValueError(
                f"Of {count} queries, train={train} and validation={validation} make {ends[0]} for "
                f"training, {ends[1] - ends[0]} for validation and {count - ends[1]} for the test. "
                f"Each needs one, the test {MIN_TEST_QUERIES}: change the shares, or take a "
                f"smaller k, for which more queries have enough relevant documents."
            )
        order = torch.randperm(count, generator=generator(fold(seed, "queries")))
        return Split(order[: ends[0]], order[ends[0] : ends[1]], order[ends[1] :])

    def folds(self, count: int, seed: int, train: float = 0.5, validation: float = 1 / 6) -> Split:
        """Return one part of `count` as the test; the others in the ratio of train to validation.

        Seeds 0 to count - 1 test each query once; the next ones again, in other parts.

        Args:
            count: number of parts, >= 2.
            seed: of the split.
            train, validation: their ratio counts.

        Raises:
            ValueError: all parts together have fewer than 20 queries, or a part has none.
        """
        _check_shares(train, validation)
        queries = len(self.queries)
        if type(count) is not int or count < 2 or queries < max(count, MIN_TEST_QUERIES):
            raise ValueError(
                f"folds={count} must be an integer >= 2, and at most the number of queries, "
                f"{queries}, of which the test needs {MIN_TEST_QUERIES}."
            )
        order = torch.randperm(queries, generator=generator(fold(seed // count, "queries")))
        parts = list(order.tensor_split(count))
        test = parts.pop(seed % count)
        rest = torch.cat(parts)
        size = round(len(rest) * validation / (train + validation))
        if not 0 < size < len(rest):
            raise ValueError(
                f"train={train} and validation={validation} make {len(rest) - size} and {size} "
                f"queries of {len(rest)}; each needs one."
            )
        return Split(rest[size:], rest[:size], test)

    def _check_shapes(self) -> None:
        count, width = self.pool.shape if self.pool.ndim == 2 else (-1, -1)
        wanted = {
            "queries": (len(self.queries), self.documents.shape[-1]),
            "documents": (len(self.documents), self.queries.shape[-1]),
            "pool": (len(self.queries), width),
            "first_stage": (count, width),
            "grades": (count, width),
            "feedback": (count, 2, self.feedback.shape[-1]),
            "ideal": (count,),
            "expanded": (self.shots, count, width),
            "intent": (count, width),
        }
        for name, shape in wanted.items():
            value = getattr(self, name)
            if value is None and name in ("expanded", "intent"):
                continue
            if tuple(value.shape) != shape:
                raise ValueError(f"Pools needs {name} of {shape}; got {tuple(value.shape)}.")
            integers = name in ("pool", "feedback")
            if integers != (value.dtype == torch.long) or not (
                integers or value.is_floating_point()
            ):
                kind = "torch.long" if integers else "floating point"
                raise ValueError(f"Pools needs {name} to be {kind}; got {value.dtype}.")
            if not value.isfinite().all():
                raise ValueError(f"Pools needs {name} to be finite; it has NaN or infinity.")

    def _check_values(self) -> None:
        checks = {
            "pool to be rows of documents": (self.pool >= 0) & (self.pool < len(self.documents)),
            "each document at most once in a pool": self.pool.sort(-1).values.diff() > 0,
            "first_stage to fall along each pool": self.first_stage.diff() <= 0,
            "grades >= 0": self.grades >= 0,
            "ideal >= 0": self.ideal >= 0,
            "feedback to be positions in a pool": (self.feedback >= 0)
            & (self.feedback < self.pool.shape[1]),
        }
        for text, holds in checks.items():
            _require(text, holds)
        relevant = self.grades.gather(1, self.feedback.flatten(1)).view(self.feedback.shape) > 0
        _require("feedback[:, 0] to be relevant documents", relevant[:, 0])
        _require("feedback[:, 1] to be irrelevant documents", ~relevant[:, 1])
        _require("feedback in the order of the pool", self.feedback.diff() > 0)
        best = self.ndcg(self.grades)
        _require("ideal at least the DCG of the pool's own best order", best <= 1 + 1e-5)


def _check_shares(train: float, validation: float) -> None:
    if not 0 < train < 1 or not 0 < validation < 1:
        raise ValueError(
            f"train and validation are shares of the queries in (0, 1); got train={train}, "
            f"validation={validation}."
        )


def _require(text: str, holds: Tensor) -> None:
    if not holds.all():
        query = int((~holds).nonzero()[0, 0])
        raise ValueError(f"Pools needs {text}; query {query} is the first that has it otherwise.")
