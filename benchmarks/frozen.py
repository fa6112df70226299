"""Memory of adapters on a frozen base (LoRA), in copies of the base.

Each row is one outer step of K inner steps of SGD on one row, made with the base already in memory:
the peak of the storage of live tensors at K = 1 and at K = 8, and their difference. The row by hand
unrolls the same steps with torch alone, the base in its module. The last line is a checkpoint's
size.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.func import functional_call

from metaopt.engine import Engine, tree
from metaopt.engine.gradient_problem import GradientProblem, InnerTensors, split_module
from metaopt.engine.inner_loop import InnerLoop
from metaopt.engine.inner_optimizers import SGD
from metaopt.engine.protocols import Estimator, Tree
from metaopt.engine.random import Draw, generator
from metaopt.estimators import FiniteDifference, Forward, Implicit, OneStep, Sama, Unroll
from metaopt.optimizers import Descent
from metaopt.testing.meter import PeakMemory

WIDTH, LAYERS, RANK, LR = 2048, 4, 2, 0.1
SHORT, LONG = 1, 8

ESTIMATORS: dict[str, Callable[[int], Estimator]] = {
    "Unroll(K)": Unroll,
    'Unroll(K, schedule="segments")': lambda steps: Unroll(steps, schedule="segments"),
    "Forward(K)": Forward,
    "OneStep(K)": OneStep,
    "FiniteDifference(inner_steps=K)": lambda steps: FiniteDifference(inner_steps=steps),
    "Sama(inner_steps=K)": lambda steps: Sama(inner_steps=steps),
    "Implicit(inner_steps=K)": lambda steps: Implicit(inner_steps=steps),
}


class LoRA(nn.Module):
    """x -> tanh(W x + B A x) with W frozen (Hu et al., LoRA, ICLR 2022)."""

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.base = nn.Linear(width, width, bias=False).requires_grad_(False)
        self.a = nn.Parameter(torch.randn(rank, width) * width**-0.5)
        self.b = nn.Parameter(torch.zeros(width, rank))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.base(x) + x @ self.a.T @ self.b.T)


class Adapters(GradientProblem):
    """Adapters trained on rows of which each has a weight, phi.

    Args:
        width, layers: of the frozen base.
        rows: rows of a batch.
    """

    inner_optimizer = SGD(lr=LR)

    def __init__(self, width: int = WIDTH, layers: int = LAYERS, rows: int = 1) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.module = nn.Sequential(*[LoRA(width, RANK) for _ in range(layers)])
        self.params, _, self.frozen = split_module(self.module)
        draw = generator(0)
        self.x, self.y = (torch.randn(4, width, generator=draw) for _ in range(2))
        self.rows = rows

    def init_outer(self, generator: Generator) -> Tree:
        return {"weights": torch.zeros(4)}

    def init_params(self, outer: Tree, generator: Generator) -> Tree:
        return self.params

    def inner_batch(self, draw: Draw) -> Tensor:
        return torch.randint(4, (self.rows,), generator=draw.generator)

    outer_batch = inner_batch

    def losses(self, inner: Mapping[str, Tensor], rows: Tensor) -> Tensor:
        outputs: Tensor = functional_call(self.module, dict(inner), (self.x[rows],))
        return (outputs - self.y[rows]).square().mean(1)

    def inner_loss(self, outer: Tree, inner: InnerTensors, batch: Tensor) -> Tensor:
        return (outer["weights"][batch].sigmoid() * self.losses(inner, batch)).mean()

    def outer_loss(self, outer: Tree, inner: InnerTensors, batch: Tensor) -> Tensor:
        return self.losses(inner, batch).mean()


def by_hand(problem: Adapters, steps: int) -> None:
    """Unroll with the frozen base left in the module."""
    phi, theta = tree.leaves(problem.init_outer(generator(0))), tree.leaves(problem.params)
    for k in range(steps):
        batch = problem.inner_batch(Draw(k))
        weights = phi["weights"][batch].sigmoid()
        loss = (weights * problem.losses(theta, batch)).mean()
        grads = torch.autograd.grad(loss, list(theta.values()), create_graph=True)
        theta = {k: p - LR * g for (k, p), g in zip(theta.items(), grads, strict=True)}
    loss = problem.losses(theta, problem.inner_batch(Draw(steps))).mean()
    torch.autograd.grad(loss, phi["weights"])


def estimate(problem: Adapters, estimator: Estimator) -> None:
    loop, outer = InnerLoop(problem), problem.init_outer(generator(0))
    estimator(loop, outer, loop.start(outer, None, 0), 0)


def peak(call: Callable[[], Any]) -> int:
    with PeakMemory() as meter:
        call()
    return meter.peak


def base_bytes(problem: Adapters) -> int:
    return sum(t.numel() * t.element_size() for t in problem.frozen.values())


def growth(problem: Adapters, make: Callable[[int], Estimator] | None) -> tuple[float, float]:
    """Return the peaks at K = 1 and K = 8, in copies of the base; by hand without an estimator."""
    peaks = []
    for steps in (SHORT, LONG):
        call = functools.partial(by_hand, problem, steps)
        if make is not None:
            call = functools.partial(estimate, problem, make(steps))
        peaks.append(peak(call) / base_bytes(problem))
    return peaks[0], peaks[1]


def checkpoint_bytes(problem: Adapters) -> int:
    engine = Engine(problem, Unroll(2), Descent("adam", lr=0.1), outer_steps=1)
    assert len(list(engine)) == 1
    file = io.BytesIO()
    torch.save(engine.state_dict(), file)
    return len(file.getvalue())


def main() -> None:
    torch.set_num_threads(1)
    problem = Adapters()
    print(f"copies of the base ({base_bytes(problem) / 2**20:.0f} MiB)   K = 1   K = 8   growth")
    for name, make in {"by hand": None, **ESTIMATORS}.items():
        short, long = growth(problem, make)
        print(f"{name:<32}{short:8.3f}{long:8.3f}{long - short:9.3f}")
    print(f"{'a checkpoint':<32}{checkpoint_bytes(problem) / base_bytes(problem):8.3f}")


if __name__ == "__main__":
    main()
