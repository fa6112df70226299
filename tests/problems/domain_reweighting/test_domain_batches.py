"""Batches of training examples and of meta examples."""

from __future__ import annotations

import pytest
import torch
from reweighted_regression import Regression, adam, empty, problem

from metaopt.engine import Engine
from metaopt.engine.random import Draw, generator
from metaopt.estimators.direct import Direct


@pytest.mark.slow
def test_each_domain_is_drawn_equally_often_or_in_proportion_to_its_size():
    task = Regression(sizes=(10, 30, 60))
    of = problem(task, batch=9)
    for seed in range(5):
        drawn = task.domain[of.inner_batch(Draw(seed)).rows]
        assert torch.bincount(drawn).tolist() == [3, 3, 3]
    rows = torch.cat([problem(task, batch=1).inner_batch(Draw(s)).rows for s in range(3000)])
    share = torch.bincount(task.domain[rows]) / 3000
    assert share.sub(1 / 3).abs().max() < 0.04
    assert len(rows.unique()) == 100
    of = problem(task, batch=5000, sampling="rows")
    share = torch.bincount(task.domain[of.inner_batch(Draw(0)).rows]) / 5000
    assert share.sub(torch.tensor([0.1, 0.3, 0.6])).abs().max() < 0.03


def test_meta_batches_hold_each_kind_in_its_share_and_each_row_equally_often():
    task = empty(meta_kinds=torch.tensor([0, 1, 1] * 20))
    drawn = [problem(task).sampler.meta(generator(s), 16).rows for s in range(300)]
    counts = torch.stack([torch.bincount(task.meta_kinds[rows], minlength=2) for rows in drawn])
    assert {5, 6} >= set(counts[:, 0].tolist())
    assert float(counts[:, 0].double().mean()) == pytest.approx(16 / 3, abs=0.1)
    often = torch.bincount(torch.cat(drawn), minlength=60) / (300 * 16 / 60)
    assert 0.6 < float(often.min()) < float(often.max()) < 1.4
    plain = problem().sampler.meta(generator(0), 600).rows
    assert torch.bincount(task.meta_kinds[plain])[0] not in (199, 200, 201)


def test_meta_only_training_reads_meta_rows_alone():
    of = problem(train_on="meta", lr=0.1)
    engine = Engine(of, Direct(5), adam(), outer_steps=60)
    assert len(list(engine)) == 60
    assert engine.metrics()["eval/error"] < 1e-3
    assert engine.metrics()["eval/weight/inverted"] == 1
    assert "eval/z/clean" not in engine.metrics()
