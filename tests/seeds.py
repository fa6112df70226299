"""Compares several seeds that are trained together with runs of one."""

import torch

from metaopt.engine import Engine, tree
from metaopt.optimizers import Descent

SEEDS = (3, 0, 7)


def single(problem, estimator, optimizer, seed, steps):
    """Return the feedback of each step of a run of one seed, and the engine."""
    engine = Engine(problem, estimator, optimizer, outer_steps=steps, seed=seed)
    return [feedback for _, feedback in engine], engine


def assert_as_alone(
    make, estimator, optimizer=lambda: Descent("adam", lr=0.03), steps=6, rtol=1e-10, atol=1e-12
):
    """Compare each replicate of a run of several seeds with the run of its seed."""

    def close(a, b):
        torch.testing.assert_close(a, b, rtol=rtol, atol=atol)

    problems = [make(seed) for seed in SEEDS]
    engine = Engine(problems, estimator(), optimizer(), outer_steps=steps, seeds=SEEDS)
    together = [feedback for _, feedback in engine]
    for i, seed in enumerate(SEEDS):
        alone, other = single(make(seed), estimator(), optimizer(), seed, steps)
        for a, b in zip(together, alone, strict=True):
            close(a.value[i], b.value)
            assert a.metrics.keys() == b.metrics.keys()
            for name, value in b.metrics.items():
                both = torch.as_tensor(a.metrics[name])
                close(both[i] if both.ndim else both, torch.as_tensor(value))
            assert a.cost.keys() == b.cost.keys()
            assert all(a.cost[unit] >= b.cost[unit] for unit in b.cost)
        solution, inner = engine.optimizer.solution, engine.inner
        states = ((solution, other.optimizer.solution), (inner, other.inner))
        for stacked, wanted in states:
            for x, y in zip(tree.tensors(stacked), tree.tensors(wanted), strict=True):
                close(x[i], y)
        for name, value in other.measured().items():
            close(engine.measured()[name][i], value)
