"""What a user says of the first documents of BM25, simulated by a collection's judgements.

The first k relevant and the first k irrelevant documents of a pool are feedback; a document that
nobody judged is irrelevant. See `metaopt.problems.few_shot_ranking.pools.Pools`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from metaopt.data.origin import origin
from metaopt.nn.encoder import Encoder
from metaopt.problems.few_shot_ranking.bm25 import BM25, K1, B
from metaopt.problems.few_shot_ranking.collections import Collection
from metaopt.problems.few_shot_ranking.metrics import dcg
from metaopt.problems.few_shot_ranking.pools import CUTOFF, MIN_TEST_QUERIES, Pools

Encode = Callable[[Sequence[str]], Tensor]
"""Vectors (n, D) of texts."""


PROBE = "Which documents are relevant?"
"""A text whose vector tells one encoder from another."""


class RankedTexts(NamedTuple):
    """The queries that have enough feedback, and the documents of their pools.

    Args:
        queries: texts of Q queries.
        documents: texts of the N documents that are in a pool.
        fields: what `Pools` takes but for the vectors.
    """

    queries: Sequence[str]
    documents: Sequence[str]
    fields: Mapping[str, Tensor]


def relevance_pools(
    collection: Collection, encoder: Encode | None, shots: int = 4, size: int = 200,
    terms: int = 32, weight: float = 0.25,
) -> Pools:  # fmt: skip
    """Return a collection's queries with BM25's pools, feedback and the vectors of an encoder.

    Args:
        collection: texts and judgements.
        encoder: returns the vectors of texts; called twice, for queries and for pooled documents.
            `None` for a scorer that reads the texts themselves: vectors then have no entries.
        shots, size, terms, weight: see `ranked_texts`.

    Cost: mostly the encoder's: for Cranfield's 1,400 abstracts and MiniLM a CPU minute, once where
    it has a cache.
    """
    texts = ranked_texts(collection, shots, size, terms, weight)
    if encoder is None:
        encoder = _no_vectors
    *queries, probe = encoder([*texts.queries, PROBE])
    made_of = None
    if isinstance(encoder, Encoder):
        made_of = {
            "collection": collection.name, "notes": list(collection.notes),
            "encoder": dict(encoder.settings), "probe": probe.tolist(),
            **origin(encoder.source)._asdict(),
            "first_stage": {"k1": K1, "b": B, "size": size, "terms": terms, "weight": weight},
        }  # fmt: skip
    return Pools(
        queries=torch.stack(queries), documents=encoder(texts.documents), **texts.fields,
        texts=(texts.queries, texts.documents), made_of=made_of,
    )  # fmt: skip


def _no_vectors(texts: Sequence[str]) -> Tensor:
    return torch.zeros(len(texts), 0)


def ranked_texts(
    collection: Collection, shots: int = 4, size: int = 200, terms: int = 32, weight: float = 0.25
) -> RankedTexts:
    """Return the queries whose pool has 2 `shots` relevant documents: feedback and as many others.

    It has `shots` + 1 irrelevant ones, too.

    Args:
        collection: texts and judgements.
        shots: K, the largest number of documents of each kind that a method is given, >= 1. All
            smaller k then have the same queries and the same test.
        size: documents of a pool, > 2 `shots`.
        terms, weight: of the expanded query, see `BM25.expanded`.

    Raises:
        ValueError: an argument outside its range, or fewer than 20 such queries.
    """
    check_first_stage(size, terms, weight)
    if shots < 1 or size <= 2 * shots:
        raise ValueError(f"shots >= 1 and size > 2 shots are needed; got {shots} and {size}.")
    rows = {document: row for row, document in enumerate(collection.documents)}
    index = BM25(list(collection.documents.values()))
    vectors = index.vectors(list(collection.queries.values()))
    usable: list[str] = []
    columns: dict[str, list[Any]] = {}
    for i, query in enumerate(collection.queries):
        gains = np.zeros(len(rows))
        for document, gain in collection.gains[query].items():
            gains[rows[document]] = gain
        # One query at a time: the scores of all are a dense matrix, too large for a large corpus.
        pool, scores = first_stage(index, vectors[i], size)
        chosen = _feedback(gains[pool], shots)
        if chosen is None:
            continue
        usable.append(collection.queries[query])
        rest = np.delete(gains, pool[chosen.ravel()])
        best = torch.from_numpy(np.sort(rest)[::-1][:CUTOFF].copy())
        parts = {
            "pool": pool, "first_stage": standardized(scores), "grades": gains[pool],
            "feedback": chosen, "ideal": float(dcg(best)),
            "expanded": _expanded(index, vectors[i], pool, chosen[0], terms, weight),
        }  # fmt: skip
        for name, value in parts.items():
            columns.setdefault(name, []).append(value)
    if len(usable) < MIN_TEST_QUERIES:
        raise ValueError(
            f"{len(usable)} of {len(collection.queries)} queries of {collection.name} have "
            f"{2 * shots} relevant documents, and {shots + 1} irrelevant ones, among the first "
            f"{size} of BM25, and a test needs {MIN_TEST_QUERIES}. Lower shots={shots}."
        )
    return _assembled(collection, usable, columns)


def check_first_stage(size: Any, terms: Any, weight: Any) -> None:
    """Check size of a pool, number of terms of an expanded query and their weight.

    Raises:
        ValueError: one outside its range.
    """
    whole = type(size) is int and size >= 1 and type(terms) is int and terms >= 0
    if not whole or not isinstance(weight, (int, float)) or not 0 <= weight < float("inf"):
        raise ValueError(
            f"the first stage needs integers size >= 1 and terms >= 0, and weight >= 0; got "
            f"size={size}, terms={terms}, weight={weight}."
        )


def first_stage(index: BM25, query: Any, size: int) -> tuple[Any, Any]:
    """Return the rows of the `size` best documents of a query (1, terms), and their scores.

    Documents of equal score stay in the order of the collection.
    """
    scores = index.scores(query)[0]
    pool = np.argsort(-scores, kind="stable")[:size]
    return pool, scores[pool]


def standardized(scores: Any) -> Any:
    """Return scores with mean 0 and deviation 1; zeros where all are equal."""
    deviation = scores.std()
    return (scores - scores.mean()) / (deviation if deviation > 0 else 1.0)


def _feedback(gains: Any, shots: int) -> Any:
    """Return the positions (2, K) of feedback; `None` where a pool has too little."""
    relevant, irrelevant = (np.flatnonzero(mask) for mask in (gains > 0, gains == 0))
    if len(relevant) < 2 * shots or len(irrelevant) <= shots:  # F needs one of each kind, too
        return None
    return np.stack([relevant[:shots], irrelevant[:shots]])


def _expanded(index: BM25, query: Any, pool: Any, relevant: Any, terms: int, weight: float) -> Any:
    """Return the standardised scores of the pool by the first 1, ..., K relevant documents."""
    weights, rows = index.weights[pool], []
    for k in range(1, len(relevant) + 1):
        longer = index.expanded(query, pool[relevant[:k]], terms, weight)
        rows.append(standardized((longer @ weights.T).toarray()[0]))
    return np.stack(rows)


def _assembled(
    collection: Collection, usable: Sequence[str], columns: Mapping[str, list[Any]]
) -> RankedTexts:
    texts = list(collection.documents.values())
    used, pool = np.unique(np.stack(columns["pool"]), return_inverse=True)
    fields = {
        name: torch.from_numpy(np.stack(columns[name])).float()
        for name in ("first_stage", "grades", "ideal", "expanded")
    }
    fields["expanded"] = fields["expanded"].transpose(0, 1).contiguous()
    fields["pool"] = torch.from_numpy(pool.reshape(len(usable), -1))
    fields["feedback"] = torch.from_numpy(np.stack(columns["feedback"]))
    return RankedTexts(usable, [texts[row] for row in used], fields)
