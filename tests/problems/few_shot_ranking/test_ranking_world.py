"""Generated queries, the pair scorer on them, and the rankings that are not trained."""

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cosine_similarity

from metaopt.engine.random import generator
from metaopt.problems.few_shot_ranking import PairScorer, ranking_world
from metaopt.problems.few_shot_ranking.rankings import ranked

SMALL = {"queries": 80, "documents": 300, "pool": 60, "shots": 3}
POOLS = ranking_world(**SMALL)


def test_intents_are_of_each_query_or_shared():
    def correlation(shared):
        pools = ranking_world(**SMALL, shared=shared, seed=2)
        # Of the intents of two queries, over documents that are in both pools.
        values = torch.full((2, SMALL["documents"]), torch.nan)
        for query in range(2):
            values[query, pools.pool[query]] = pools.intent[query]
        both = values[:, values.isfinite().all(0)]
        assert both.shape[1] >= 5
        return float(torch.corrcoef(both)[0, 1])

    assert correlation(1.0) == pytest.approx(1.0, abs=1e-5)
    assert abs(correlation(0.0)) < 0.9


def test_vectors_are_one_rotation_of_intents_and_topics():
    longer = POOLS.queries.norm(dim=1)
    assert torch.allclose(longer, torch.tensor((0.3**2 + 2**2) ** 0.5).expand(len(longer)))
    variances = torch.linalg.eigvalsh(torch.cov(ranking_world(documents=4000).documents.T))
    assert variances[:4].mean() == pytest.approx(1.0, rel=0.1)
    assert variances[4:].mean() == pytest.approx(4.0, rel=0.05)


def test_the_intent_ranks_relevant_documents_first():
    intent, order = (POOLS.ndcg(ranked(POOLS, name, 3)).mean() for name in ("intent", "order"))
    by_chance = POOLS.ndcg(torch.rand(POOLS.pool.shape, generator=generator(0))).mean()
    assert intent > 0.9 * order
    assert by_chance < 0.5 * order


def test_a_seed_makes_the_same_world_and_another_one_another():
    again, other = ranking_world(**SMALL), ranking_world(**SMALL, seed=1)
    assert torch.equal(again.documents, POOLS.documents)
    assert torch.equal(again.pool, POOLS.pool)
    assert not torch.equal(other.documents, POOLS.documents)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shared": 1.5}, r"shared in \[0, 1\]; got 1.5"),
        ({"lexical": -1.0}, "lexical >= 0; got -1.0"),
        ({"queries": 0}, "queries >= 1; got 0"),
        ({"shots": 0}, "shots >= 1; got 0"),
        ({"pool": 300}, "2 [*] shots <= pool < documents; got shots=3, pool=300"),
        ({"relevant": 0.01}, "relevant [*] documents > shots and relevant < 1; got relevant=0.01"),
        (
            {"pool": 6, "shots": 1, "relevant": 0.99},
            "3 relevant and 2 irrelevant documents in its pool",
        ),
        ({"pool": 6, "shots": 3}, "change pool=6 or relevant=0.1, or lower shots=3"),
    ],
)
def test_bad_worlds_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ranking_world(**{**SMALL, **settings})


def test_features_are_what_is_said():
    scorer = PairScorer(document=True)
    query, documents = torch.randn(3), torch.randn(5, 3)
    x = scorer.features(query, documents, torch.arange(5.0))
    q, d = query / query.norm(), documents / documents.norm(dim=1, keepdim=True)
    assert x.shape == (5, 11)
    torch.testing.assert_close(x[:, :3], 3**0.5 * d)
    torch.testing.assert_close(x[:, 3:6], 3 * q * d)
    torch.testing.assert_close(x[:, 6:9], 3**0.5 * (q - d).abs())
    torch.testing.assert_close(x[:, 9], cosine_similarity(query[None], documents))
    assert torch.equal(x[:, 10], torch.arange(5.0))
    assert torch.equal(PairScorer().features(query, documents, torch.arange(5.0)), x[:, 3:])


def test_a_residual_scorer_starts_as_the_cosine_and_a_plain_one_does_not():
    positions = torch.arange(60)
    for residual in (True, False):
        scorer = PairScorer(residual=residual)
        scorer.read(POOLS)
        phi = scorer.init(24, generator(0))
        x = scorer.pairs(POOLS, torch.tensor(7), positions, 2)
        cosines = cosine_similarity(
            POOLS.queries[7][None].expand(60, -1), POOLS.documents[POOLS.pool[7]]
        )
        gap = float((scorer(phi, x) - (12 * cosines - 5)).abs().max())
        assert (gap < 0.02) == residual


def test_several_queries_with_weights_of_their_own_are_each_alone():
    scorer = PairScorer(widths=(6, 4))
    phi = [scorer.init(24, generator(i)) for i in range(3)]
    queries = torch.tensor([1, 5, 2])
    x = scorer.pairs(POOLS, queries, torch.arange(60).expand(3, -1), 2)
    together = scorer({k: torch.stack([p[k] for p in phi]) for k in phi[0]}, x)
    for i, query in enumerate(queries):
        alone = scorer.pairs(POOLS, query, torch.arange(60), 2)
        torch.testing.assert_close(together[i], scorer(phi[i], alone))


def test_settings_make_the_same_scorer():
    scorer = PairScorer((6,), residual=False, scale=3.0)
    assert PairScorer(**scorer.settings).settings == scorer.settings


def test_a_scorer_without_vectors_is_refused():
    empty = replace(POOLS, queries=POOLS.queries[:, :0], documents=POOLS.documents[:, :0])
    with pytest.raises(ValueError, match="those of these pools have no entries"):
        PairScorer().read(empty)
    with pytest.raises(ValueError, match=r"widths to be integers >= 1; got \[0\]"):
        PairScorer(widths=(0,))


def test_knn_is_the_cosine_with_the_sum_of_query_and_relevant_documents():
    scores = ranked(POOLS, "knn", 2)
    unit = torch.nn.functional.normalize(POOLS.documents, dim=1)
    pool = unit[POOLS.pool[11]]
    centre = POOLS.queries[11] / POOLS.queries[11].norm() + pool[POOLS.feedback[11, 0, :2]].sum(0)
    torch.testing.assert_close(scores[11], pool @ centre)
    assert not torch.equal(scores, ranked(POOLS, "knn", 3))
    cosines = cosine_similarity(POOLS.queries[11][None], POOLS.documents[POOLS.pool[11]])
    torch.testing.assert_close(ranked(POOLS, "cosine", 2)[11], cosines)


def test_rankings_of_other_pools_are_refused():
    with pytest.raises(ValueError, match="ranking=expanded is none of these pools"):
        ranked(POOLS, "expanded", 2)
    expanded = torch.stack([POOLS.first_stage * k for k in (1, 2, 3)])
    assert torch.equal(ranked(replace(POOLS, expanded=expanded), "expanded", 2), expanded[1])
