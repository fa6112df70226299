"""Time of an outer step beside loops by hand, at three sizes; `benchmarks.peers` has libraries.

The ratios are to the loop by hand with `torch.func.functional_call`, as papers write it.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.mlp import RowWeights
from benchmarks.turns import Steps, ratio, seconds
from metaopt.engine import Engine
from metaopt.engine.functional import functional_call
from metaopt.engine.inner_optimizers import SGD, Adam
from metaopt.engine.protocols import Tree
from metaopt.engine.random import generator
from metaopt.engine.tree import leaves
from metaopt.estimators import Identity, Implicit, Soba, Unroll
from metaopt.optimizers.descent import Descent

SIZES = {
    "2.4 k": ((64, 32, 10), 60, 5),
    "94 k": ((64, 272, 272, 10), 30, 2),
    "1.3 M": ((64, 800, 800, 800, 10), 15, 1),
}
"""Widths of the network, how many turns are timed, and how many outer steps a turn takes."""

INNER, OUTER_RATE = 10, 1e-2
RATES = {"sgd": 1e-2, "adam": 1e-3}

Call = Callable[[nn.Module, Tree, Any], Any]
"""Calls a module with other weights."""


class Batches:
    """The losses on the next batches, drawn by one generator, as a loop by hand draws them."""

    def __init__(self, problem: RowWeights) -> None:
        self.problem, self.draw = problem, generator(1)

    def inner(self, phi: Tree, model: Callable[[Tensor], Tensor]) -> Tensor:
        """Return g."""
        rows = self.rows()
        return (phi["weight"][rows].sigmoid() * self.losses(model, rows)).mean()

    def outer(self, model: Callable[[Tensor], Tensor]) -> Tensor:
        """Return F."""
        return self.losses(model, self.rows() + self.problem.rows).mean()

    def rows(self) -> Tensor:
        """Return the numbers of a batch of training rows."""
        problem = self.problem
        return torch.randint(problem.rows, (problem.batch,), generator=self.draw)

    def losses(self, model: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
        """Return the loss of each row."""
        logits = model(self.problem.x[rows])
        return nn.functional.cross_entropy(logits, self.problem.y[rows], reduction="none")


def start(problem: RowWeights) -> tuple[Tree, Tree, torch.optim.Optimizer]:
    """Return phi, theta and what steps phi."""
    phi = leaves(problem.init_outer(generator(0)))
    theta = leaves(problem.init_params(phi, generator(0)))
    return phi, theta, torch.optim.SGD(phi.values(), lr=OUTER_RATE)


def unroll_by_hand(problem: RowWeights, algorithm: str, call: Call) -> Steps:
    """Unroll with torch alone, nothing between the operations."""
    phi, theta, outer = start(problem)
    batches, lr = Batches(problem), RATES[algorithm]
    mean = {k: torch.zeros_like(v) for k, v in theta.items()}
    square, t = dict(mean), 0

    def module(x: Tensor) -> Tensor:
        return call(problem.model, theta, x)

    while True:
        for _ in range(INNER):
            loss, t = batches.inner(phi, module), t + 1
            grads = torch.autograd.grad(loss, list(theta.values()), create_graph=True)
            slopes = dict(zip(theta, grads, strict=True))
            if algorithm == "sgd":
                theta = {k: p - lr * slopes[k] for k, p in theta.items()}
                continue
            mean = {k: 0.9 * m + 0.1 * slopes[k] for k, m in mean.items()}
            square = {k: 0.999 * s + 0.001 * slopes[k] ** 2 for k, s in square.items()}
            theta = {
                k: p - lr * (mean[k] / (1 - 0.9**t))
                / ((square[k] / (1 - 0.999**t)).sqrt() + 1e-8)
                for k, p in theta.items()
            }  # fmt: skip
        phi["weight"].grad = torch.autograd.grad(batches.outer(module), phi["weight"])[0]
        outer.step()
        theta = leaves(theta)
        mean, square = ({k: v.detach() for k, v in m.items()} for m in (mean, square))
        yield None


def soba_by_hand(problem: RowWeights, algorithm: str, call: Call) -> Steps:
    """Step theta, q and phi with the gradients of SOBA, taken by torch alone."""
    phi, theta, outer = start(problem)
    batches, lr = Batches(problem), RATES[algorithm]
    inputs = list(theta.values())
    q = [torch.zeros_like(t) for t in inputs]

    def module(x: Tensor) -> Tensor:
        return call(problem.model, theta, x)

    while True:
        v = torch.autograd.grad(batches.outer(module), inputs)
        slope = torch.autograd.grad(batches.inner(phi, module), inputs, create_graph=True)
        *curved, cross = torch.autograd.grad(slope, [*inputs, phi["weight"]], q)
        with torch.no_grad():
            q = [a - lr * (h - b) for a, h, b in zip(q, curved, v, strict=True)]
            for p, s in zip(inputs, slope, strict=True):
                p -= lr * s
        phi["weight"].grad = -cross
        outer.step()
        yield None


def identity_by_hand(problem: RowWeights, algorithm: str, call: Call) -> Steps:
    """Take T1-T2 after steps of SGD, by torch alone."""
    phi, theta, outer = start(problem)
    batches, lr = Batches(problem), RATES[algorithm]
    inputs = list(theta.values())

    def module(x: Tensor) -> Tensor:
        return call(problem.model, theta, x)

    while True:
        for _ in range(INNER):
            grads = torch.autograd.grad(batches.inner(phi, module), inputs)
            with torch.no_grad():
                for p, g in zip(inputs, grads, strict=True):
                    p -= lr * g
        v = torch.autograd.grad(batches.outer(module), inputs)
        slope = torch.autograd.grad(batches.inner(phi, module), inputs, create_graph=True)
        phi["weight"].grad = -torch.autograd.grad(slope, phi["weight"], v)[0]
        outer.step()
        yield None


def loops(case: str, make: Callable[[], RowWeights]) -> dict[str, Steps]:
    """Return what is compared in a case, each on a problem of its own."""
    algorithm = "adam" if case.endswith("adam") else "sgd"
    by_hand: Callable[[RowWeights, str, Call], Steps] = unroll_by_hand
    estimator: Any = Unroll(INNER, schedule="whole")
    if case == "soba":
        by_hand, estimator = soba_by_hand, Soba()
    elif case == "t1-t2":
        by_hand, estimator = identity_by_hand, Implicit(Identity(), inner_steps=INNER)
    optimizer = Descent("sgd", lr=OUTER_RATE)
    return {
        "by hand": by_hand(make(), algorithm, torch.func.functional_call),
        "by hand, metaopt.functional_call": by_hand(make(), algorithm, functional_call),
        "metaopt": iter(Engine(make(), estimator, optimizer, outer_steps=10**6)),
    }


def main() -> None:
    torch.set_num_threads(1)
    for size, (widths, turns, steps) in SIZES.items():
        for case in ("unroll, sgd", "unroll, adam", "soba", "t1-t2"):

            def make(widths: tuple[int, ...] = widths, case: str = case) -> RowWeights:
                problem = RowWeights(widths)
                name = "adam" if case.endswith("adam") else "sgd"
                problem.inner_optimizer = {"sgd": SGD, "adam": Adam}[name](lr=RATES[name])
                return problem

            print(f"{case}, {size} parameters: an outer step, and its ratio to the loop by hand")
            several = INNER * steps if case == "soba" else steps  # of one inner step each
            times = seconds(loops(case, make), turns, several)
            for name, each in times.items():
                of = ratio(each, times["by hand"])
                ms = 1e3 * statistics.median(each)
                print(f"  {name:<34}{ms:9.2f} ms {of.middle:7.3f} +- {of.error:.3f}", flush=True)


if __name__ == "__main__":
    main()
