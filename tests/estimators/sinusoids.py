"""A few-shot problem, and its hypergradient with a meta-batch and one task at a time."""

import torch

from metaopt import SGD, GradientProblem
from metaopt.engine.inner_loop import InnerLoop
from metaopt.engine.meta_batch import task_key

TASKS, STEPS = 3, 2


class Sinusoids(GradientProblem):
    """MAML on a small network; `rates` makes it Meta-SGD, `proximal` iMAML."""

    warm_start = False

    def __init__(self, optimizer=None, rates=False, proximal=0.0):
        self.inner_optimizer = self.learned if rates else optimizer or SGD(lr=0.1)
        self.rates, self.proximal, self.batches = rates, proximal, {}

    def learned(self, outer, step):
        lr = {k: outer[f"rate.{k}"] for k in ("w", "b", "v")}
        return SGD(lr=lr, momentum=outer["momentum"].sigmoid(), clip_norm=2.0)

    def init_outer(self, generator):
        draw = torch.Generator().manual_seed(0)
        shapes = {"w": (1, 3), "b": (3,), "v": (3, 1)}
        phi = {k: torch.randn(s, generator=draw, dtype=torch.float64) for k, s in shapes.items()}
        if self.rates:
            phi |= {f"rate.{k}": torch.full_like(v, 0.1) for k, v in phi.items()}
            phi["momentum"] = torch.zeros((), dtype=torch.float64)
        return phi

    def init_params(self, outer, generator):
        return {k: outer[k].clone() for k in ("w", "b", "v")}

    def inner_batch(self, draw):
        amplitude = 0.5 + torch.rand((), generator=draw.task, dtype=torch.float64)
        x = 4 * torch.rand(5, 1, generator=draw.generator, dtype=torch.float64) - 2
        batch = x, amplitude * torch.sin(x)
        self.batches[draw.task_index, draw.use, draw.inner_step] = batch
        return batch

    outer_batch = inner_batch

    def inner_loss(self, outer, inner, batch):
        loss = self.distance(inner, batch)
        if self.proximal:
            loss = loss + self.proximal * sum(((inner[k] - outer[k]) ** 2).sum() for k in "wbv")
        return loss

    def outer_loss(self, outer, inner, batch):
        return self.distance(inner, batch)

    def distance(self, theta, batch):
        x, y = batch
        return ((torch.tanh(x @ theta["w"] + theta["b"]) @ theta["v"] - y) ** 2).mean()


def hypergradient(problem, estimator, key=0):
    loop, outer = InnerLoop(problem), problem.init_outer(None)
    estimator.check(loop)
    problem.batches.clear()
    inner, feedback = estimator(loop, outer, loop.start(outer, None, key), key)
    return loop, inner, feedback


def mean_of_singles(problem, make, tasks=TASKS, key=0):
    """Return the means of values and gradients of an estimator's runs, one task at a time."""
    feedbacks = []
    for i in range(tasks):
        loop, outer = InnerLoop(problem), problem.init_outer(None)
        loop.task_index = i
        start = loop.start(outer, None, task_key(key, i))
        feedbacks.append(make()(loop, outer, start, task_key(key, i))[1])
    grad = {
        k: torch.stack([f.grad[k] for f in feedbacks]).mean(0) for k in problem.init_outer(None)
    }
    return torch.stack([f.value for f in feedbacks]).mean(), grad


def assert_near(grad, wanted, rtol=1e-10):
    for name, value in wanted.items():
        torch.testing.assert_close(grad[name], value, rtol=rtol, atol=1e-12)
