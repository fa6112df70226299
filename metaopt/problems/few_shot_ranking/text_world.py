"""A generated collection of texts: what a query leaves out is told by the documents marked."""

from __future__ import annotations

import torch
from torch import Generator

from metaopt.engine.random import generator
from metaopt.problems.few_shot_ranking.collections import Collection

WORDS = 8
"""Words of each topic, of each aspect, and without meaning."""


def text_world(
    queries: int = 60, documents: int = 480, topics: int = 8, aspects: int = 6, seed: int = 0
) -> Collection:
    """Return documents about one aspect of one topic, and queries that name the topic alone.

    A document has four words of its topic, four of its aspect and four without meaning. Relevant
    are the documents of the query's topic and of an aspect that no word of the query tells.

    Args:
        queries, documents: numbers, >= 1.
        topics, aspects: numbers, >= 2.
        seed: of all of it.

    Raises:
        ValueError: an argument outside its range.
    """
    numbers = {"queries": queries, "documents": documents, "topics": topics, "aspects": aspects}
    for name, number in numbers.items():
        least = 2 if name in ("topics", "aspects") else 1
        if number < least:
            raise ValueError(f"text_world needs {name} >= {least}; got {number}.")
    draw = generator(seed)
    kinds = [(t, a) for t in range(topics) for a in range(aspects)]
    about = [kinds[i % len(kinds)] for i in torch.randperm(documents, generator=draw).tolist()]
    texts = {
        f"d{i}": " ".join(
            _words("topic", t, 4, draw) + _words("aspect", a, 4, draw) + _words("other", 0, 4, draw)
        )
        for i, (t, a) in enumerate(about)
    }
    wanted = [kinds[i % len(kinds)] for i in torch.randperm(queries, generator=draw).tolist()]
    asked = {f"q{i}": " ".join(_words("topic", t, 3, draw)) for i, (t, _) in enumerate(wanted)}
    gains = {
        f"q{i}": {f"d{j}": 1.0 for j, kind in enumerate(about) if kind == want}
        for i, want in enumerate(wanted)
    }
    gains = {query: row for query, row in gains.items() if row}
    return Collection("generated", texts, {query: asked[query] for query in gains}, gains)


def _words(kind: str, number: int, count: int, draw: Generator) -> list[str]:
    chosen = torch.randint(WORDS, (count,), generator=draw).tolist()
    return [f"{kind}{number}x{i}" for i in chosen]
