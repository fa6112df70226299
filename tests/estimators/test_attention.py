"""Second derivatives through torch's transformer layers, where fused attention has none."""

import pytest
import torch
from torch import nn

from metaopt.engine.gradient_problem import GradientProblem, split_module
from metaopt.engine.inner_loop import InnerLoop
from metaopt.engine.inner_optimizers import SGD
from metaopt.estimators import ConjugateGradient, Implicit, Unroll


class Reweighting(GradientProblem):
    """Row weights for a one-layer transformer that regresses the mean of a sequence."""

    def __init__(self):
        self.inner_optimizer = SGD(lr=0.1)
        torch.manual_seed(0)
        self.model = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True).double()
        self.x = torch.randn(6, 5, 8, dtype=torch.float64)

    def init_outer(self, generator):
        return {"weight": torch.zeros(6, dtype=torch.float64)}

    def init_params(self, outer, generator):
        return split_module(self.model)[0]

    def inner_batch(self, draw):
        return self.x

    def outer_batch(self, draw):
        return self.x.flip(1)

    def losses(self, inner, x):
        return (
            (torch.func.functional_call(self.model, inner, x) - x.mean(1, True))
            .square()
            .mean((1, 2))
        )

    def inner_loss(self, outer, inner, x):
        return (outer["weight"].sigmoid() * self.losses(inner, x)).mean()

    def outer_loss(self, outer, inner, x):
        return self.losses(inner, x).mean()


@pytest.mark.parametrize("segments", [1, 2])
def test_unroll_through_attention_equals_a_finite_difference(segments):
    problem = Reweighting()
    outer = problem.init_outer(None)
    inner = InnerLoop(problem).start(outer, None, 0)
    estimator = Unroll(3, segments=segments)
    grad = estimator(InnerLoop(problem), outer, inner, 0)[1].grad["weight"]
    step = 1e-5 * torch.linspace(1, 2, 6, dtype=torch.float64)
    up, down = (
        estimator(InnerLoop(problem), {"weight": sign * step}, inner, 0)[1].value
        for sign in (1, -1)
    )
    torch.testing.assert_close(grad @ step, (up - down) / 2, rtol=1e-6, atol=0)


def test_conjugate_gradient_solves_with_attention_in_the_graph():
    problem = Reweighting()
    outer = problem.init_outer(None)
    inner = InnerLoop(problem).start(outer, None, 0)
    estimator = Implicit(ConjugateGradient(iterations=3), inner_steps=2)
    _, feedback = estimator(InnerLoop(problem), outer, inner, 0)
    assert feedback.metrics["solve/residual"] < 1
