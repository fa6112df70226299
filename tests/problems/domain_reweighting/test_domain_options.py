"""Options that are refused, alone and together."""

from __future__ import annotations

import pytest
import torch
from reweighted_regression import Regression, empty, problem

from metaopt.problems.domain_reweighting.weights import (
    LearningToReweight,
    WeightNetwork,
    WeightTable,
)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: problem(objective="best"), "objective to be one of meta, worst_domain, excess"),
        (lambda: problem(sampling="size"), "sampling to be one of domains, rows; got sampling="),
        (lambda: problem(train_on="all"), "train_on to be one of domains, meta"),
        (lambda: problem(initial="equal"), "initial to be one of uniform, oracle, random, fil"),
        (lambda: problem(retrain="last"), "retrain to be one of null, final, average"),
        (lambda: problem(batch=0), "needs batch >= 1; got batch=0"),
        (lambda: problem(meta_batch=0), "needs meta_batch >= 1; got meta_batch=0"),
        (lambda: problem(finetune=-1), "needs finetune >= 0; got finetune=-1"),
        (lambda: problem(reference_steps=0), "needs reference_steps >= 1; got ref"),
        (lambda: problem(keep=0.0), "needs 0 < keep <= 1; got keep=0.0"),
        (lambda: problem(effective_domains=3.5), r"effective_domains must be in \[1, 3\]"),
        (lambda: problem(Regression(meta_rows=0)), "no meta examples, which objective=meta needs"),
        (
            lambda: problem(Regression(meta_rows=0), objective="excess", finetune=2),
            "no meta examples, which finetune needs",
        ),
        (lambda: problem(objective="excess", initial="filter"), "each need a reference"),
        (lambda: problem(initial="filter"), "a weight for each domain cannot. Set weights.per=row"),
        (
            lambda: problem(weights=WeightTable("row", "clamp"), initial="filter", keep=0.25),
            "1 / keep = 4, above weights.bound=2",
        ),
        (
            lambda: problem(weights=WeightNetwork(), retrain="final"),
            "retrain needs a WeightTable or a Rater; WeightNetwork has no weights",
        ),
        (
            lambda: problem(weights=LearningToReweight(), initial="oracle"),
            "LearningToReweight starts from no given weights",
        ),
        (
            lambda: problem(weights=LearningToReweight(), objective="worst_domain"),
            "LearningToReweight descends the meta-loss",
        ),
        (lambda: problem(empty(quality=None), initial="oracle"), "initial=oracle needs the qual"),
        (lambda: problem(empty(quality=None), initial="random"), "initial=random needs the qual"),
        (lambda: problem(empty(domains=("a", "a", "b"))), "domains of different names"),
        (lambda: problem(empty(domains=("a", "b", "c", "d"))), "empty: d, largest index: 2"),
        (lambda: problem(empty(domains=("a", "b"))), "index below 2"),
        (lambda: problem(empty(quality=torch.zeros(3))), "quality must be 3 numbers >= 0"),
    ],
)  # fmt: skip
def test_a_bad_option_is_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make()
