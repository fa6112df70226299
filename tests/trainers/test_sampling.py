"""Rows drawn in proportion to their weights."""

from __future__ import annotations

import pytest
import torch

from metaopt.trainers import Resampled, Weighted, WeightedSampler

WEIGHTS = [0.0, 2.5, 0.5, 1.0, 0.0]


def test_rows_are_drawn_in_proportion_to_their_weights():
    sampler = WeightedSampler(WEIGHTS * 4000, seed=1)
    rows = torch.tensor(list(sampler))
    assert len(rows) == len(sampler) == 20_000
    assert rows.max() > 19_000
    shares = torch.bincount(rows % 5, minlength=5) / len(rows)
    torch.testing.assert_close(shares, torch.tensor(WEIGHTS) / 4, atol=0.02, rtol=0)
    assert shares[0] == shares[4] == 0


def test_an_epoch_is_a_function_of_seed_and_epoch():
    first, second = WeightedSampler(WEIGHTS * 9, seed=1), WeightedSampler(WEIGHTS * 9, seed=1)
    assert list(first) == list(first) == list(second)
    first.set_epoch(3)
    assert list(first) != list(second)
    second.set_epoch(3)
    assert list(first) == list(second)
    assert list(WeightedSampler(WEIGHTS * 9, seed=2)) != list(WeightedSampler(WEIGHTS * 9, seed=1))


def test_what_is_no_weight_is_refused():
    with pytest.raises(ValueError, match="1 of 2 are not, the first is -1 at position 1"):
        WeightedSampler([1.0, -1.0])
    with pytest.raises(ValueError, match="needs a row with a weight above 0"):
        WeightedSampler([0.0])
    with pytest.raises(TypeError, match="weights would count twice"):
        type("Both", (Weighted, Resampled), {})
