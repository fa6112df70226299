"""Queries and documents that are generated: what a user means is known, and is not in the query."""

from __future__ import annotations

import torch
from torch import Tensor

from metaopt.engine.random import generator
from metaopt.problems.few_shot_ranking.metrics import dcg
from metaopt.problems.few_shot_ranking.pools import CUTOFF, Pools

SIZE, INTENT = 24, 4
"""Dimensions of all vectors, and of the subspace of intents."""

TOPIC_SCALE = 2.0
"""Standard deviation of a document's topic along one axis, that of its aspects being 1."""

NAMED = 0.3
"""Length of the part of a query's vector that tells the intent; that of its topic is 2."""

JUDGING_NOISE = 0.2
"""Standard deviation of the noise in what is relevant, where an intent's affinity has 1."""


def ranking_world(
    queries: int = 600, documents: int = 4000, pool: int = 200, shots: int = 8,
    relevant: float = 0.1, shared: float = 0.0, lexical: float = 0.4, seed: int = 0,
) -> Pools:  # fmt: skip
    """Return queries whose intent lies in one subspace of four dimensions out of 24.

    A document has aspects a ~ N(0, I_4) and a topic t ~ N(0, 4 I_20), a query an intent z of length
    1 and a topic m of length 1; both are seen through one random rotation, a query as
    (.3 z, 2 m). Relevant are the documents with the largest <z, a> + noise. The first stage ranks
    by lexical <z, a> + <m, t> / 2 + noise of deviation 1: by the topic for the most part, which has
    no bearing on relevance.

    Args:
        queries: number Q of queries that are drawn; those with fewer than shots + 2 relevant
            documents in their pool, or shots + 1 irrelevant ones, are left out.
        documents: number N of documents.
        pool: documents P that the first stage returns.
        shots: K, feedback documents of each kind.
        relevant: share of all documents that are relevant for a query.
        shared: share in [0, 1] of the intents' variance that all queries have in common: 0 draws
            each intent by itself, 1 the same for all, so that there is nothing to adapt to.
            The common part's own length is drawn, once in a world.
        lexical: weight of the intent in the first stage's scores, >= 0.
        seed: of all of it.

    Returns:
        Pools with `intent`, the true affinities <z, a>.

    Raises:
        ValueError: an argument outside its range.
    """
    _check(queries, documents, pool, shots, relevant, shared, lexical)
    draw = generator(seed)
    rotation = torch.linalg.qr(torch.randn(SIZE, SIZE, generator=draw)).Q
    aspects, topics = torch.randn(documents, SIZE, generator=draw).split([INTENT, SIZE - INTENT], 1)
    common, own = torch.randn(1 + queries, INTENT, generator=draw).split([1, queries])
    intents = _unit(shared**0.5 * common + (1 - shared) ** 0.5 * own)
    wanted = _unit(torch.randn(queries, SIZE - INTENT, generator=draw))
    affinity = intents @ aspects.T
    noise = torch.randn(2, queries, documents, generator=draw)
    scores, rows = (lexical * affinity + wanted @ topics.T + noise[0]).topk(pool)
    judged = affinity + JUDGING_NOISE * noise[1]
    count = round(relevant * documents)
    bar = judged.topk(count).values[:, -1:]
    grades = (judged.gather(1, rows) >= bar).float()
    usable = (grades.sum(1) >= shots + 2) & ((1 - grades).sum(1) > shots)
    if not usable.any():
        raise ValueError(
            f"No query of ranking_world has {shots + 2} relevant and {shots + 1} irrelevant "
            f"documents in its pool; change pool={pool} or relevant={relevant}, or lower "
            f"shots={shots}."
        )
    ideal = dcg(torch.ones(min(CUTOFF, count - shots)))
    return Pools(
        queries=torch.cat([NAMED * intents, TOPIC_SCALE * wanted], 1)[usable] @ rotation,
        documents=torch.cat([aspects, TOPIC_SCALE * topics], 1) @ rotation,
        pool=rows[usable],
        first_stage=_standardised(scores)[usable],
        grades=grades[usable],
        feedback=torch.stack([_first(grades > 0, shots), _first(grades == 0, shots)], 1)[usable],
        ideal=ideal.expand(int(usable.sum())).clone(),
        intent=affinity.gather(1, rows)[usable],
    )


def _unit(vectors: Tensor) -> Tensor:
    return torch.nn.functional.normalize(vectors, dim=-1)


def _standardised(scores: Tensor) -> Tensor:
    return (scores - scores.mean(1, keepdim=True)) / scores.std(1, keepdim=True)


def _first(mask: Tensor, count: int) -> Tensor:
    """Return the positions of the first true entries of each row, (rows, count)."""
    # Stable: those that are true first, in their order.
    return mask.int().argsort(dim=1, descending=True, stable=True)[:, :count]


def _check(
    queries: int, documents: int, pool: int, shots: int, relevant: float, shared: float,
    lexical: float,
) -> None:  # fmt: skip
    ranges = {
        f"queries >= 1; got {queries}": queries >= 1,
        f"2 * shots <= pool < documents; got shots={shots}, pool={pool}, documents={documents}": (
            2 * shots <= pool < documents
        ),
        f"shots >= 1; got {shots}": shots >= 1,
        f"relevant * documents > shots and relevant < 1; got relevant={relevant}": (
            shots < round(relevant * documents) < documents
        ),
        f"shared in [0, 1]; got {shared}": 0 <= shared <= 1,
        f"lexical >= 0; got {lexical}": lexical >= 0,
    }
    for text, holds in ranges.items():
        if not holds:
            raise ValueError(f"ranking_world needs {text}.")
