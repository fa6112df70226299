"""Keys: the same everywhere, different for different names."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from metaopt.engine import distributed
from metaopt.engine.random import Draw, epoch_batch, fold, generator, replay


def test_fold_is_fixed():
    assert fold(0, 3, "batch") == 8660620238820528268


@pytest.mark.slow
def test_fold_is_the_same_in_another_process():
    code = "from metaopt.engine.random import fold; print(fold(0, 'outer', 1))"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert int(result.stdout) == fold(0, "outer", 1)


def test_keys_differ_by_every_part():
    keys = [fold(s, i, n) for s in range(5) for i in range(20) for n in ("a", "b", 1, "1")]
    keys += [fold(fold(0, 1), "a"), fold(0, 1), fold(0), fold(0, "1"), fold(0, "a", 1)]
    assert len(set(keys)) == len(keys)
    assert all(0 <= k < 2**63 for k in keys)


def test_keys_are_spread_evenly():
    high = sum(fold(0, i) >= 2**62 for i in range(4000))
    assert abs(high - 2000) < 5 * 1000**0.5


def test_generator_is_a_function_of_the_key():
    draws = [torch.rand(3, generator=generator(k)) for k in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_replay_repeats_dropout_and_restores_the_generator():
    dropout, x = nn.Dropout(0.5), torch.ones(100)
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    with replay(5):
        first = dropout(x)
    with replay(5):
        second = dropout(x)
    with replay(6):
        other = dropout(x)
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal(torch.rand(3), expected)


def test_replay_restores_after_an_exception():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    try:
        with replay(5):
            torch.rand(7)
            raise KeyError
    except KeyError:
        result = torch.rand(3)
    assert torch.equal(result, expected)


def test_a_draw_has_one_generator_and_makes_that_of_its_task_each_time():
    inner, outer = Draw(1, run_key=7), Draw(2, inner_step=None, run_key=7, stream="outer batch")
    first, second = (
        torch.rand(3, generator=inner.generator),
        torch.rand(3, generator=inner.generator),
    )
    assert not torch.equal(first, second)
    assert torch.equal(first, torch.rand(3, generator=Draw(1).generator))
    assert not torch.equal(first, torch.rand(3, generator=outer.generator))
    tasks = [torch.rand(3, generator=draw.task) for draw in (inner, inner, outer)]
    assert torch.equal(tasks[0], tasks[1])
    assert torch.equal(tasks[0], tasks[2])
    assert not torch.equal(tasks[0], torch.rand(3, generator=Draw(1, run_key=8).task))


def test_blocks_are_drawn_equally_often():
    draws = [Draw(key) for key in range(600)]
    counts = torch.bincount(torch.tensor([draw.block(3) for draw in draws]))
    assert len(counts) == 3
    assert counts.min() > 150
    assert draws[0].block(3) == draws[0].block(3)


@pytest.mark.parametrize("seed", [None, 0])
def test_ranks_that_draw_their_own_batches_draw_blocks_of_their_own(monkeypatch, seed):
    def drawn(rank):
        monkeypatch.setattr(distributed, "rank", lambda: rank)
        return [Draw(key, total_inner_step=key).block(50, seed) for key in range(50)]

    alone, other = drawn(0), drawn(1)
    assert sum(a == b for a, b in zip(alone, other, strict=True)) < 10
    with distributed.splitting_batches():
        assert drawn(1) == alone


@pytest.mark.parametrize(("n", "batch_size", "whole"), [(12, 4, 3), (14, 4, 3), (5, 5, 1)])
def test_an_epoch_holds_every_example_at_most_once_and_the_next_one_another_order(
    n, batch_size, whole
):
    epochs = [
        torch.cat([epoch_batch(n, batch_size, whole * e + i, seed=3) for i in range(whole)])
        for e in range(2)
    ]
    assert all(len(epoch.unique()) == whole * batch_size for epoch in epochs)
    assert not torch.equal(*epochs)
    assert not torch.equal(epoch_batch(n, batch_size, 0, 3), epoch_batch(n, batch_size, 0, 4))


@pytest.mark.parametrize("batch_size", [0, 6])
def test_a_batch_is_no_larger_than_an_epoch(batch_size):
    with pytest.raises(ValueError, match=f"1 <= batch_size <= n=5; got {batch_size}"):
        epoch_batch(5, batch_size, 0, seed=0)
