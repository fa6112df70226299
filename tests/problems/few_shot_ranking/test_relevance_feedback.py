"""BM25 against a dense reference, expansion, fusion, and what is feedback and what is ranked."""

import math
import random
import re

import pytest
import torch

from metaopt.problems.few_shot_ranking.bm25 import BM25
from metaopt.problems.few_shot_ranking.collections import Collection
from metaopt.problems.few_shot_ranking.metrics import (
    ndcg,
    reciprocal_rank,
    reciprocal_rank_fusion,
)
from metaopt.problems.few_shot_ranking.relevance_feedback import relevance_pools

WORDS = [f"w{i}" for i in range(30)]


def texts(count, length, seed):
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(1, length))) for _ in range(count)]


def dense(query, documents, k1=1.2, b=0.75):
    """Return BM25 as it is written in books, one document and one word at a time."""
    split = [re.findall(r"\w+", text) for text in documents]
    mean = sum(map(len, split)) / len(split)
    scores = []
    for words in split:
        score = 0.0
        for term in query.split():
            f, n = words.count(term), sum(term in other for other in split)
            idf = math.log(1 + (len(split) - n + 0.5) / (n + 0.5))
            score += idf * f * (k1 + 1) / (f + k1 * (1 - b + b * len(words) / mean))
        scores.append(score)
    return scores


def test_bm25_is_that_of_a_dense_reference():
    documents, queries = texts(20, 40, 0), [*texts(5, 6, 1), "w1 w1 w1"]
    index = BM25(documents)
    scores = index.scores(index.vectors(queries))
    for row, query in zip(scores.tolist(), queries, strict=True):
        assert row == pytest.approx(dense(query, documents))
    other = BM25(documents, k1=0.5, b=0.2)
    assert other.scores(other.vectors(["w3 w4"]))[0].tolist() == pytest.approx(
        dense("w3 w4", documents, 0.5, 0.2)
    )


def test_words_without_meaning_for_retrieval_do_not_count():
    index = BM25(["the wing of it", "The Wing"])
    assert index.vectors(["the of WING"]).toarray().tolist() == [[1.0]]
    with pytest.raises(ValueError, match="BM25 needs documents with words"):
        BM25(["the of", ""])
    with pytest.raises(ValueError, match=r"k1 >= 0 and b in \[0, 1\]; got k1=-1, b=0.75"):
        BM25(["a wing"], k1=-1)


def test_an_expanded_query_has_the_heaviest_terms_of_relevant_documents():
    index = BM25(["wing lift lift drag", "wing wing shock", "heat", "wing", "wing"])
    names = index.vectorizer.get_feature_names_out()
    query = index.vectors(["wing"])
    longer = index.expanded(query, [0], terms=1, weight=0.25).toarray()[0]
    # lift and drag are equally rare, and lift occurs twice; wing is in the query already.
    assert {n: v for n, v in zip(names, longer, strict=True) if v} == {"wing": 1.0, "lift": 0.25}
    every = index.expanded(query, [0, 1]).toarray()[0]
    assert {n for n, v in zip(names, every, strict=True) if v} == {"wing", "lift", "drag", "shock"}


def test_fusion_by_hand():
    first = torch.tensor([[3.0, 2.0, 1.0, -torch.inf]])
    second = torch.tensor([[0.0, 5.0, 5.0, -torch.inf]])  # ranks 3, 1, 2: ties keep their order
    wanted = [1 / 61 + 1 / 63, 1 / 62 + 1 / 61, 1 / 63 + 1 / 62]
    fused = reciprocal_rank_fusion(first, second)
    assert fused[0, :3].tolist() == pytest.approx(wanted)
    assert fused[0, 3] == -torch.inf
    assert torch.equal(reciprocal_rank_fusion(first).argsort(), first.argsort())


def test_reciprocal_rank_by_hand():
    grades = torch.tensor([[0.0, 2.0, 1.0], [0.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    scores = torch.tensor([[3.0, 1.0, 2.0], [1.0, 2.0, 3.0], [-torch.inf, 1.0, 2.0]])
    assert reciprocal_rank(scores, grades).tolist() == [0.5, 0.0, 0.0]


def test_ndcg_is_that_of_scikit_learn_without_ties():
    from sklearn.metrics import ndcg_score

    draw = torch.Generator().manual_seed(0)
    grades = torch.randint(0, 5, (8, 40), generator=draw).double()
    scores = torch.rand(8, 40, generator=draw, dtype=torch.float64)
    best = grades.sort(-1, descending=True).values[:, :20]
    ideal = (best / torch.arange(2, 22).log2()).sum(-1)
    for row in range(8):
        wanted = ndcg_score(grades[row : row + 1].numpy(), scores[row : row + 1].numpy(), k=20)
        assert ndcg(scores[row], grades[row], ideal[row]).item() == pytest.approx(wanted)


def collection(queries=24, documents=60, relevant=12):
    """Return queries of one word each; relevant documents may lack it."""
    draw = random.Random(1)
    content = {f"d{i}": f"{text} w{i % 30}" for i, text in enumerate(texts(documents, 12, 2))}
    asked = {f"q{i}": WORDS[i] for i in range(queries)}
    gains = {
        query: {d: float(draw.randint(1, 3)) for d in draw.sample(sorted(content), relevant)}
        for query in asked
    }
    return Collection("generated", content, asked, gains)


def vectors(some):
    return torch.tensor([[float(len(text)), 1.0] for text in some])


def test_feedback_is_the_first_of_each_kind_and_leaves_ranking_and_judgements():
    given = collection()
    pools = relevance_pools(given, vectors, shots=2, size=50)
    documents, names = list(given.documents.values()), list(given.documents)
    used = torch.tensor([documents.index(t) for t in given.documents.values()])[pools.pool[0]]
    for q, (query, text) in enumerate(given.queries.items()):
        scores = dense(text, documents)
        order = sorted(range(60), key=lambda i: -scores[i])[:50]
        if q == 0:  # all 60 documents are in a pool, so rows are those of the collection
            assert used.tolist() == order
        gains = [given.gains[query].get(names[i], 0.0) for i in order]
        relevant = [i for i, g in enumerate(gains) if g][:2]
        others = [i for i, g in enumerate(gains) if not g][:2]
        assert pools.feedback[q].tolist() == [relevant, others]
        assert pools.grades[q].tolist() == gains
        left = [names[order[i]] for i in relevant]
        rest = sorted((g for d, g in given.gains[query].items() if d not in left), reverse=True)
        ideal = sum(g / math.log2(r + 2) for r, g in enumerate(rest[:20]))
        assert pools.ideal[q].item() == pytest.approx(ideal, rel=1e-6)
    assert bool(pools.left_out.sum(1).eq(4).all())


def test_all_k_have_the_same_test_and_other_expansions():
    pools = relevance_pools(collection(), vectors, shots=3, size=50)
    assert pools.expanded.shape == (3, len(pools.queries), 50)
    # Nothing of the ranked documents or of the ideal depends on which k is used.
    perfect = pools.ndcg(pools.grades.expand(3, -1, -1))
    assert torch.equal(perfect[0], perfect[2])
    assert not torch.equal(pools.expanded[0], pools.expanded[2])


def test_queries_with_too_few_relevant_documents_are_left_out_and_few_are_refused():
    given = collection()
    for query in list(given.gains)[:4]:
        kept = dict(list(given.gains[query].items())[:3])
        given.gains[query] = kept
    assert len(relevance_pools(given, vectors, shots=2, size=60).queries) == 20
    given.gains["q23"] = {}
    with pytest.raises(ValueError, match="19 of 24 queries of generated have 4 relevant documents"):
        relevance_pools(given, vectors, shots=2, size=60)
    every = given._replace(gains={q: dict.fromkeys(given.documents, 1.0) for q in given.queries})
    for row in every.gains.values():
        row.pop("d0"), row.pop("d1")  # both are feedback: none is left for F
    with pytest.raises(ValueError, match=r"0 of 24 queries .* and 3 irrelevant ones, among"):
        relevance_pools(every, vectors, shots=2, size=60)
    with pytest.raises(ValueError, match=r"size >= 1 and terms >= 0.* terms=-1"):
        relevance_pools(given, vectors, shots=2, size=60, terms=-1)
    with pytest.raises(ValueError, match="shots >= 1 and size > 2 shots are needed; got 2 and 4"):
        relevance_pools(given, vectors, shots=2, size=4)
