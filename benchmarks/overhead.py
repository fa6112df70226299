"""Time of an outer step beside loops by hand, higher, TorchOpt and betty, at three sizes.

`pip install higher torchopt graphviz` in an environment that has metaopt adds the first two
libraries; what is not installed is left out. The ratios are to the loop by hand with
`torch.func.functional_call`, as papers write it.
"""

from __future__ import annotations

import importlib.util
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.mlp import RowWeights
from metaopt.backends.betty import BettyEngine
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

Steps = Iterator[object]
"""A loop that takes one outer step each time it is asked for the next item."""

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


def unroll_by_higher(problem: RowWeights, algorithm: str) -> Steps:
    """Unroll with higher (Grefenstette et al., arXiv 1910.01727, 2019)."""
    higher: Any = importlib.import_module("higher")
    phi, _, outer = start(problem)
    batches, model = Batches(problem), problem.model
    kind: Any = torch.optim.SGD if algorithm == "sgd" else torch.optim.Adam
    inner = kind(model.parameters(), lr=RATES[algorithm])
    while True:
        # Adam's moments start from 0 in each outer step: higher reads them from a torch optimizer.
        with higher.innerloop_ctx(model, inner) as (functional, differentiable):
            for _ in range(INNER):
                differentiable.step(batches.inner(phi, functional))
            loss = batches.outer(functional)
            phi["weight"].grad = torch.autograd.grad(loss, phi["weight"])[0]
            outer.step()
            with torch.no_grad():
                for p, fast in zip(model.parameters(), functional.fast_params, strict=True):
                    p.copy_(fast)
        yield None


def unroll_by_torchopt(problem: RowWeights, algorithm: str) -> Steps:
    """Unroll with TorchOpt (Ren et al., JMLR 2023)."""
    torchopt: Any = importlib.import_module("torchopt")
    phi, _, outer = start(problem)
    batches, model = Batches(problem), problem.model
    kind = torchopt.MetaSGD if algorithm == "sgd" else torchopt.MetaAdam
    inner = kind(model, lr=RATES[algorithm])
    while True:
        for _ in range(INNER):
            inner.step(batches.inner(phi, model))
        phi["weight"].grad = torch.autograd.grad(batches.outer(model), phi["weight"])[0]
        outer.step()
        torchopt.stop_gradient(model)
        torchopt.stop_gradient(inner)
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


def engine(kind: Any, problem: RowWeights, estimator: Any) -> Steps:
    """Return the outer steps of an engine, metaopt's or betty's."""
    return iter(kind(problem, estimator, Descent("sgd", lr=OUTER_RATE), outer_steps=10**6))


def loops(case: str, make: Callable[[], RowWeights]) -> dict[str, Steps]:
    """Return what is compared in a case, each on a problem of its own."""
    algorithm = "adam" if case.endswith("adam") else "sgd"
    by_hand: Callable[[RowWeights, str, Call], Steps] = unroll_by_hand
    estimator: Any = Unroll(INNER, schedule="whole")
    others: dict[str, Steps] = {}
    if case.startswith("unroll"):
        for name, unroll in (("higher", unroll_by_higher), ("torchopt", unroll_by_torchopt)):
            if importlib.util.find_spec(name):
                others[name] = unroll(make(), algorithm)
    elif case == "soba":
        by_hand, estimator = soba_by_hand, Soba()
    else:
        by_hand, estimator = identity_by_hand, Implicit(Identity(), inner_steps=INNER)
        others["betty's engine"] = engine(BettyEngine, make(), estimator)
    return {
        "by hand": by_hand(make(), algorithm, torch.func.functional_call),
        "by hand, metaopt.functional_call": by_hand(make(), algorithm, functional_call),
        "metaopt": engine(Engine, make(), estimator),
        **others,
    }


def ratios(
    compared: Mapping[str, Steps], turns: int, steps: int
) -> dict[str, tuple[float, float, float]]:
    """Return milliseconds of an outer step, its ratio to the first loop's, and the ratio's error.

    The loops take turns; times and ratios are medians over turns, the error is the standard error
    of such a median. CPU time, with one thread, leaves out what other programs on the machine take,
    and a ratio within a turn how fast the machine is at the moment.

    Args:
        compared: the loops.
        turns: how many are timed.
        steps: of an outer loop in a turn. One more comes first and is not timed: it runs with the
            CPU's caches full of another loop's code, as no step of a run does.
    """
    seconds: dict[str, list[float]] = {name: [] for name in compared}
    for turn in range(turns + 3):
        for name, loop in compared.items():
            next(loop)
            started = time.thread_time()
            for _ in range(steps):
                next(loop)
            if turn >= 3:  # the first turns warm up
                seconds[name].append((time.thread_time() - started) / steps)
    first = next(iter(seconds.values()))
    result = {}
    for name, each in seconds.items():
        shares = [a / b for a, b in zip(each, first, strict=True)]
        # By the spread of the middle half, which outliers leave alone, as of a normal distribution.
        low, middle, high = statistics.quantiles(shares, n=4)
        error = 1.253 * (high - low) / 1.349 / len(shares) ** 0.5
        result[name] = 1e3 * statistics.median(each), middle, error
    return result


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
            for name, (ms, ratio, error) in ratios(loops(case, make), turns, several).items():
                print(f"  {name:<34}{ms:9.2f} ms {ratio:7.3f} +- {error:.3f}", flush=True)


if __name__ == "__main__":
    main()
