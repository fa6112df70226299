"""A problem that betty-ml and metaopt both run, shared by the tests of the backend."""

from __future__ import annotations

import functools

import torch
from torch import nn
from torch.func import functional_call

from metaopt.engine import tree
from metaopt.engine.gradient_problem import GradientProblem, split_module
from metaopt.engine.inner_loop import InnerLoop
from metaopt.engine.random import generator
from metaopt.optimizers.descent import Descent

ROWS, FEATURES, CLASSES = 40, 6, 3


class Reweighting(GradientProblem):
    """Meta-Weight-Net on noisy labels: a small network weighs each row by its detached loss."""

    def __init__(self, inner_optimizer, dropout=0.0, norm=False, spare=False):
        self.inner_optimizer = inner_optimizer
        draw = generator(1)
        self.x = torch.randn(2 * ROWS, FEATURES, generator=draw, dtype=torch.float64)
        self.y = torch.randint(CLASSES, (2 * ROWS,), generator=draw)
        torch.manual_seed(2)
        middle = [nn.BatchNorm1d(16)] if norm else []
        self.model = nn.Sequential(
            nn.Linear(FEATURES, 16), *middle, nn.Tanh(), nn.Dropout(dropout), nn.Linear(16, CLASSES)
        ).double()
        if spare:
            self.model.register_parameter("spare", nn.Parameter(torch.ones(2).double()))
        self.weigher = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1)).double()

    def init_outer(self, generator):
        return split_module(self.weigher)[0]

    def init_params(self, outer, generator):
        return split_module(self.model)[0]

    def init_buffers(self, outer, params):
        return split_module(self.model)[1]

    def inner_batch(self, draw):
        return torch.randint(ROWS, (20,), generator=draw.generator)

    def outer_batch(self, draw):
        return ROWS + torch.randint(ROWS, (20,), generator=draw.generator)

    def losses(self, inner, rows):
        logits = functional_call(self.model, inner, self.x[rows])
        return nn.functional.cross_entropy(logits, self.y[rows], reduction="none")

    def inner_loss(self, outer, inner, batch):
        losses = self.losses(inner, batch)
        weights = functional_call(self.weigher, outer, losses.detach()[:, None]).sigmoid()
        return (weights[:, 0] * losses).mean()

    def outer_loss(self, outer, inner, batch):
        direct = sum((p**2).sum() for p in outer.values())
        return self.losses(inner, batch).mean() + 1e-3 * direct


def solved(problem, steps):
    """Return phi and the inner solution."""
    phi = problem.init_outer(generator(0))
    return phi, InnerLoop(problem).run(phi, InnerLoop(problem).start(phi, None, 0), 0, steps)


def gradient(estimator, problem, phi, inner, key=3):
    return estimator(InnerLoop(problem), phi, tree.clone(inner), key)[1].grad


def error(grads, exact):
    return float(tree.norm(tree.add(grads, exact, -1.0)) / tree.norm(exact))


def descent(lr=0.05):
    return Descent(functools.partial(torch.optim.Adam, lr=lr))
