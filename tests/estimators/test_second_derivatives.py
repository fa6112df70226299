"""The look at second derivatives before a run, where rounding is larger than what it measures."""

import pytest
import torch

from metaopt import SGD, GradientProblem
from metaopt.engine import tree
from metaopt.engine.inner_loop import InnerLoop
from metaopt.engine.random import generator
from metaopt.estimators.second_derivatives import check_second_derivatives


class _Square(torch.autograd.Function):
    """x^2, whose backward pass is cut off the graph where `differentiable` is false."""

    @staticmethod
    def forward(ctx, x, differentiable):
        ctx.save_for_backward(x)
        ctx.differentiable = differentiable
        return x * x

    @staticmethod
    def backward(ctx, adjoint):
        (x,) = ctx.saved_tensors
        slope = 2 * x if ctx.differentiable else (2 * x).detach()
        return adjoint * slope, None


class Cancelling(GradientProblem):
    """Weights of mean 1 on losses of 30,000: dg/dphi, of order 1, is a sum of terms of that size.

    g = mean of (1 + phi z_i) (30,000 + (x_i theta)^2), the z_i of mean 0.
    """

    inner_optimizer = SGD(lr=0.01)

    def __init__(self, seed, differentiable=True):
        draw = generator(seed)
        self.x, z = torch.randn(500, 4, generator=draw), torch.randn(500, generator=draw)
        self.z, self.differentiable = z - z.mean(), differentiable

    def init_outer(self, generator):
        return {"slope": torch.zeros(())}

    def init_params(self, outer, generator):
        return {"theta": torch.ones(4)}

    def inner_batch(self, draw):
        return self.x

    outer_batch = inner_batch

    def inner_loss(self, outer, inner, x):
        squares = _Square.apply(x @ inner["theta"], self.differentiable)
        return ((1 + outer["slope"] * self.z) * (30_000 + squares)).mean()

    def outer_loss(self, outer, inner, x):
        return (inner["theta"] ** 2).sum()


def look(problem):
    loop = InnerLoop(problem)
    phi = tree.leaves(problem.init_outer(generator(0)))
    check_second_derivatives(loop, "Unroll", phi, loop.start(phi, None, 0))


@pytest.mark.parametrize("seed", range(8))
def test_a_gradient_in_phi_of_terms_that_cancel_is_not_refused(seed):
    look(Cancelling(seed))


@pytest.mark.parametrize("seed", range(8))
def test_a_missing_derivative_is_found_in_spite_of_the_rounding(seed):
    with pytest.raises(ValueError, match="would be wrong: the second derivative of Cancelling"):
        look(Cancelling(seed, differentiable=False))
