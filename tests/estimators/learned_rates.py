"""Problems whose inner optimizer is made of phi."""

import torch

from metaopt import SGD, GradientProblem
from metaopt.engine.inner_loop import InnerLoop

STEPS = 4
PHI = {
    "log_rates": torch.tensor([-2.0, -3.0, -2.5], dtype=torch.float64),
    "log_decay": torch.tensor(-2.0, dtype=torch.float64),
    "momentum": torch.tensor(0.5, dtype=torch.float64),
}


class Regression(GradientProblem):
    """A two-layer network; `make(outer, step)` returns how it is trained, phi does nothing else."""

    warm_start = False

    def __init__(self, make, outer):
        self.inner_optimizer, self.first = make, outer
        draw = torch.Generator().manual_seed(0)
        self.x, self.xv = torch.randn(2, 20, 3, generator=draw, dtype=torch.float64)
        self.y, self.yv = torch.randn(2, 20, 1, generator=draw, dtype=torch.float64)
        shapes = {"weight": (3, 4), "bias": (4,), "head": (4, 1)}
        self.theta = {
            k: torch.randn(s, generator=draw, dtype=torch.float64) for k, s in shapes.items()
        }

    def init_outer(self, generator):
        return {k: v.clone() for k, v in self.first.items()}

    def init_params(self, outer, generator):
        return {k: v.clone() for k, v in self.theta.items()}

    def inner_batch(self, draw):
        return self.x, self.y

    def outer_batch(self, draw):
        return self.xv, self.yv

    def inner_loss(self, outer, inner, batch):
        x, y = batch
        return ((torch.tanh(x @ inner["weight"] + inner["bias"]) @ inner["head"] - y) ** 2).mean()

    outer_loss = inner_loss


class Linear(GradientProblem):
    """Meta-SGD (Li et al., 2017): phi is theta_0 and one rate for each of its elements."""

    warm_start = False

    def __init__(self, per_step=False):
        draw = torch.Generator().manual_seed(0)
        self.x, self.xv = torch.randn(2, 30, 4, generator=draw, dtype=torch.float64)
        self.target = torch.randn(4, generator=draw, dtype=torch.float64)
        self.per_step = per_step

    def init_outer(self, generator):
        rates = torch.linspace(-0.05, 0.2, 4 * STEPS, dtype=torch.float64).view(STEPS, 4)
        start = torch.full((4,), 0.1, dtype=torch.float64)
        return {"rates": rates if self.per_step else rates[-1].clone(), "start": start}

    def inner_optimizer(self, outer, step):
        return SGD(lr={"theta": outer["rates"][step] if self.per_step else outer["rates"]})

    def init_params(self, outer, generator):
        return {"theta": outer["start"].clone()}

    def inner_batch(self, draw):
        return self.x

    def outer_batch(self, draw):
        return self.xv

    def inner_loss(self, outer, inner, batch):
        return ((batch @ (inner["theta"] - self.target)) ** 2).mean()

    outer_loss = inner_loss


def hypergradient(problem, estimator):
    loop, outer = InnerLoop(problem), problem.init_outer(None)
    estimator.check(loop)
    return estimator(loop, outer, loop.start(outer, None, 0), 0)[1].grad
