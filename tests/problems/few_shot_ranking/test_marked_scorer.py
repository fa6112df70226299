"""A scorer that is told of the relevant feedback begins as kNN; a document is not its own mark."""

import torch
from torch.nn.functional import cosine_similarity

from metaopt.engine.random import generator
from metaopt.problems.few_shot_ranking import PairScorer, ranking_world
from metaopt.problems.few_shot_ranking.rankings import ranked

POOLS = ranking_world(queries=30, documents=200, pool=40, shots=3)


def test_the_cosine_is_the_mean_with_query_and_other_marked_documents():
    scorer = PairScorer(marked=True)
    for k in (1, 3):
        query = torch.arange(5)
        x = scorer.pairs(POOLS, query, torch.arange(40).expand(5, -1), k)
        plain = PairScorer().pairs(POOLS, query, torch.arange(40).expand(5, -1), k)
        assert torch.equal(x[..., :-2], plain[..., :-2])
        assert torch.equal(x[..., -1], plain[..., -1])
        for q in range(5):
            marked = POOLS.feedback[q, 0, :k].tolist()
            for i in range(40):
                vectors = [POOLS.queries[q]]
                vectors += [POOLS.documents[POOLS.pool[q, j]] for j in marked if j != i]
                document = POOLS.documents[POOLS.pool[q, i]]
                mean = torch.stack([cosine_similarity(document, v, 0) for v in vectors]).mean()
                assert torch.allclose(x[q, i, -2], mean, atol=1e-6)


def test_without_its_network_it_ranks_as_knn():
    scorer = PairScorer(marked=True)
    phi = {k: torch.zeros_like(v) for k, v in scorer.init(24, generator(0)).items()}
    query = torch.arange(len(POOLS.queries))
    x = scorer.pairs(POOLS, query, torch.arange(40).expand(len(query), -1), 2)
    knn, left_out = ranked(POOLS, "knn", 2), POOLS.left_out
    expected = (12 * knn / 3 - 5)[~left_out]  # its sum is over the query and two documents
    assert torch.allclose(scorer(phi, x)[~left_out], expected, atol=1e-5)
