"""Regression in domains whose labels are right to different degrees, in closed form."""

from __future__ import annotations

import functools

import torch

from metaopt.engine import Engine
from metaopt.engine.inner_loop import InnerLoop
from metaopt.engine.inner_optimizers import SGD
from metaopt.engine.protocols import Tree
from metaopt.engine.random import generator
from metaopt.estimators import FiniteDifference
from metaopt.optimizers import Descent
from metaopt.problems.domain_reweighting import DomainReweighting

KEY = 11
NAMES = ("clean", "inverted", "noisy")


class Regression:
    """y = sign x . truth + noise by domain; prediction f(x . theta); squared error.

    Args:
        link: f, the identity or tanh.
        runs: number of models in one batch, or `None`.
    """

    quality: torch.Tensor | None

    def __init__(self, sizes=(40, 40, 40), features=3, link=None, runs=None, meta_rows=60):
        draw = generator(7)
        self.link, self.runs, self.features = link or (lambda z: z), runs, features
        self.domains = NAMES[: len(sizes)]
        self.domain = torch.cat([torch.full((n,), k) for k, n in enumerate(sizes)])
        self.quality = torch.tensor([1.0, 0.0, 0.0][: len(sizes)])
        self.truth = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)[:features]
        self.x = torch.randn(sum(sizes), features, generator=draw, dtype=torch.float64)
        sign = torch.tensor([1.0, -1.0, 1.0], dtype=torch.float64)[self.domain]
        spread = torch.tensor([0.1, 0.1, 3.0], dtype=torch.float64)[self.domain]
        noise = torch.randn(sum(sizes), generator=draw, dtype=torch.float64)
        self.y = sign * (self.x @ self.truth) + spread * noise
        self.meta_rows, self.resplit = meta_rows, 0.0
        self.meta_x = torch.randn(meta_rows, features, generator=draw, dtype=torch.float64)
        self.meta_y = self.meta_x @ self.truth

    def init(self, generator):
        shape = (self.features,) if self.runs is None else (self.runs, self.features)
        theta = 0.1 * torch.randn(shape, generator=generator, dtype=torch.float64)
        return {"theta": theta}, {}

    def row_losses(self, tensors: Tree, rows, train=True):
        return (self.link(tensors["theta"] @ self.x[rows].T) - self.y[rows]) ** 2

    def meta_losses(self, tensors: Tree, rows, train=True):
        return (self.link(tensors["theta"] @ self.meta_x[rows].T) - self.meta_y[rows]) ** 2

    def metrics(self, tensors: Tree):
        return {"error": (tensors["theta"] - self.truth).norm(dim=-1)}


def problem(task=None, lr=0.05, **options) -> DomainReweighting:
    options = {"batch": 24, "meta_batch": 16} | options
    return DomainReweighting(task or Regression(), SGD(lr=lr), **options)


def adam(lr=0.1):
    return Descent(functools.partial(torch.optim.Adam, lr=lr, eps=1e-12))


def start(of, phi=None):
    outer = of.init_outer(generator(3))
    outer = {k: v.double() for k, v in outer.items()} if phi is None else phi
    return outer, InnerLoop(of).start(outer, None, KEY)


def run(of, steps, estimator=None, optimizer=None):
    estimator = estimator or FiniteDifference(inner_steps=3)
    engine = Engine(of, estimator, optimizer or adam(), outer_steps=steps)
    assert len(list(engine)) == steps
    return engine


def empty(**attributes):
    task = Regression()
    for name, value in attributes.items():
        setattr(task, name, value)
    return task
