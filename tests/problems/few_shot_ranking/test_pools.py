"""Pools of documents: nDCG without the feedback by hand, and what is refused."""

import dataclasses
import math

import pytest
import torch

from metaopt.problems.few_shot_ranking import Pools
from metaopt.problems.few_shot_ranking.metrics import (
    ndcg,
    reciprocal_rank,
    reciprocal_rank_fusion,
)

LOG3 = math.log2(3)


def pools(count=1, **changes):
    """Return pools of six documents with graded ones at 0, 3 and 5; feedback 0 and 1."""
    values = {
        "queries": torch.ones(count, 2),
        "documents": torch.arange(12.0).view(6, 2),
        "pool": torch.tensor([5, 4, 3, 2, 1, 0]).expand(count, -1),
        "first_stage": torch.tensor([2.0, 1.0, 0.0, 0.0, -1.0, -2.0]).expand(count, -1),
        "grades": torch.tensor([1.0, 0.0, 0.0, 1.0, 0.0, 3.0]).expand(count, -1),
        "feedback": torch.tensor([[[0], [1]]]).expand(count, -1, -1),
        "ideal": torch.full((count,), 3 + 1 / LOG3),
    }
    return Pools(**{**values, **changes})


def test_ndcg_by_hand():
    scores = torch.tensor([[9.0, 8.0, 1.0, 3.0, 0.0, 2.0]])
    # Without documents 0 and 1, the order is 3, 5, 2, 4 with grades 1, 3, 0, 0.
    wanted = (1 + 3 / LOG3) / (3 + 1 / LOG3)
    assert pools().ndcg(scores).tolist() == pytest.approx([wanted])
    assert pools(3).ndcg(scores, torch.tensor([2])).tolist() == pytest.approx([wanted])
    several = torch.stack([scores, pools().grades])
    assert pools().ndcg(several).flatten().tolist() == pytest.approx([wanted, 1.0])


def test_ties_keep_the_order_of_the_first_stage():
    # 2, 3, 4, 5 with grades 0, 1, 0, 3.
    wanted = (1 / LOG3 + 3 / math.log2(5)) / (3 + 1 / LOG3)
    assert pools().ndcg(torch.zeros(1, 6)).tolist() == pytest.approx([wanted])
    assert pools().ndcg(pools().first_stage).tolist() == pytest.approx([wanted])


def test_ranks_beyond_the_cutoff_do_not_count():
    grades = torch.tensor([0.0, 0.0, 1.0])
    assert ndcg(torch.zeros(3), grades, torch.tensor(1.0), cutoff=2) == 0
    assert ndcg(torch.zeros(3), grades, torch.tensor(1.0), cutoff=3) == 0.5


def test_a_query_without_relevant_documents_has_ndcg_0():
    assert ndcg(torch.zeros(3), torch.zeros(3), torch.tensor(0.0)) == 0


def test_scores_that_are_not_numbers_rank_nothing():
    scores = torch.tensor([[1.0, 2.0], [1.0, torch.nan]])
    assert ndcg(scores, torch.ones(2, 2), torch.full((2,), 1 + 1 / LOG3)).tolist() == [1.0, 0.0]
    fused = reciprocal_rank_fusion(scores, torch.zeros(2, 2))
    assert fused.isnan().tolist() == [[False, False], [True, True]]
    assert reciprocal_rank(scores, torch.tensor([1.0, 0.0])).tolist() == [0.5, 0.0]


def test_a_split_has_each_query_once_and_depends_on_the_seed():
    split = pools(60).split(3)
    assert [len(part) for part in split] == [30, 10, 20]
    assert torch.cat(split).sort().values.tolist() == [*range(60)]
    assert torch.equal(split.test, pools(60).split(3).test)
    assert not torch.equal(split.test, pools(60).split(4).test)


def test_the_folds_of_a_cross_validation_test_each_query_once():
    parts = [pools(30).folds(4, seed) for seed in range(8)]
    for repeat in (parts[:4], parts[4:]):
        assert torch.cat([part.test for part in repeat]).sort().values.tolist() == [*range(30)]
    assert not torch.equal(parts[0].test, parts[4].test)
    for part in parts:
        assert torch.cat(part).sort().values.tolist() == [*range(30)]
        assert len(part.test) in (7, 8)
        assert len(part.validation) == round((30 - len(part.test)) / 4)


def test_folds_of_few_queries_are_refused():
    with pytest.raises(ValueError, match=r"folds=4 must be .* queries, 19, of which"):
        pools(19).folds(4, 0)
    with pytest.raises(ValueError, match="folds=1 must be an integer >= 2"):
        pools(30).folds(1, 0)
    with pytest.raises(ValueError, match=r"folds=2\.5 must be an integer"):
        pools(30).folds(2.5, 0)
    with pytest.raises(ValueError, match=r"shares of .* got train=nan, validation=0\.1"):
        pools(30).folds(2, 0, train=math.nan, validation=0.1)
    with pytest.raises(ValueError, match="make 15 and 0 queries of 15; each needs one"):
        pools(30).folds(2, 0, validation=0.001)


def test_few_test_queries_are_refused():
    with pytest.raises(ValueError, match=r"30 for training, 9 for validation and 19 for the test"):
        pools(58).split(0, train=0.51)
    with pytest.raises(ValueError, match=r"shares of .* got train=nan"):
        pools(58).split(0, train=math.nan)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ideal": torch.ones(2)}, r"ideal of \(1,\); got \(2,\)"),
        ({"queries": torch.ones(1, 3)}, r"queries of \(1, 2\); got \(1, 3\)"),
        ({"pool": torch.ones(1, 6)}, "pool to be torch.long; got torch.float32"),
        ({"pool": torch.tensor([[6, 4, 3, 2, 1, 0]])}, "pool to be rows of documents"),
        ({"pool": torch.tensor([[4, 4, 3, 2, 1, 0]])}, "each document at most once"),
        ({"first_stage": torch.arange(6.0)[None]}, "first_stage to fall along each pool"),
        ({"first_stage": torch.full((1, 6), torch.nan)}, "first_stage to be finite"),
        ({"feedback": torch.tensor([[[2], [1]]])}, r"feedback\[:, 0\] to be relevant"),
        ({"feedback": torch.tensor([[[0], [3]]])}, r"feedback\[:, 1\] to be irrelevant"),
        ({"feedback": torch.tensor([[[3, 0], [1, 2]]])}, "feedback in the order of the pool"),
        ({"ideal": torch.tensor([1.0])}, "ideal at least the DCG of the pool's own best order"),
    ],
)
def test_bad_pools_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        pools(**changes)


def test_pools_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        pools().ideal = torch.zeros(1)
