"""What makes one reward of an ensemble's, against numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from metaopt.engine.random import generator
from metaopt.problems.reward_model.feature_task import AGGREGATES, combine


@pytest.mark.parametrize("how", AGGREGATES)
def test_the_combination_is_numpy_s(how):
    x = torch.randn(3, 4, 8, 2, generator=generator(9))
    each = x.numpy()
    expected = {
        "mean": each.mean(1), "worst": each.min(1), "lower": each.mean(1) - each.std(1),
    }[how]  # fmt: skip
    np.testing.assert_allclose(combine(x, how), expected, atol=1e-6)
    assert torch.equal(combine(x[:, :1], how), x[:, 0])
