"""Rankings that are not trained: the rows that a learned scorer is measured beside."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import normalize

from metaopt.problems.few_shot_ranking.pools import Pools

Ranking = Literal["first_stage", "expanded", "cosine", "knn", "intent", "order"]
RANKINGS: tuple[Ranking, ...] = get_args(Ranking)


def ranked(pools: Pools, name: Ranking, shots: int) -> Tensor:
    """Return the scores of all pools by a ranking that is given k = `shots` documents, (Q, P).

    Args:
        pools: the queries.
        name: first_stage, or expanded, by the query and words of the k relevant documents; cosine
            of query and document; knn, the cosine with the sum of the directions of query and k
            relevant documents; intent, what a user would rank by; order, the best order of a pool.
        shots: in [1, K].

    Raises:
        ValueError: the pools have no such ranking.
    """
    if name == "first_stage":
        return pools.first_stage
    if name == "order":
        return pools.grades
    if name in ("expanded", "intent"):
        given: Tensor | None = getattr(pools, name)
        if given is None:
            raise ValueError(
                f"ranking={name} is none of these pools: {name} is None. Choose another of "
                f"{', '.join(RANKINGS)}."
            )
        return given[shots - 1] if name == "expanded" else given
    if not pools.queries.shape[-1]:
        raise ValueError(
            f"ranking={name} needs vectors, and these pools have none; give relevance_pools an "
            f"encoder."
        )
    queries = normalize(pools.queries, dim=-1)
    documents = normalize(pools.documents, dim=-1)
    if name == "knn":
        rows = pools.pool.gather(1, pools.feedback[:, 0, :shots])
        queries = queries + documents[rows].sum(1)
    # One query at a time: the pools' vectors all at once are Q P D numbers.
    pairs = zip(pools.pool, queries, strict=True)
    return torch.stack([documents[pool] @ query for pool, query in pairs])
