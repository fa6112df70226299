"""Memory of a bi-level step on a network of 100 M parameters, in copies of the parameters.

Each row runs in a fresh process: three outer steps of two inner steps of AdamW. live: peak of the
storage of tensors; resident: growth of the process's peak resident memory. betty runs as its users
write it: `ImplicitProblem`, type darts, AdamW.
"""

from __future__ import annotations

import argparse
import functools
import gc
import json
import logging
import os
import resource
import subprocess
import sys
import warnings
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Generator, Tensor, nn

from benchmarks.mlp import RowWeights
from metaopt.engine import Engine
from metaopt.engine.inner_loop import InnerLoop
from metaopt.engine.inner_optimizers import AdamW
from metaopt.engine.protocols import Estimator, Tree
from metaopt.engine.random import Draw, generator
from metaopt.estimators import FiniteDifference, Identity, Implicit, OneStep, Penalty, Sama
from metaopt.optimizers import Descent
from metaopt.testing.meter import PeakMemory

WIDTHS = (64, *[3200] * 11, 10)
INNER, OUTER = 2, 3
LR = 1e-5

# Freed tensors go back to the system at once, so that resident memory is what is in use.
RETURNING = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**20)}

ESTIMATORS: dict[str, Callable[[], Estimator]] = {
    "FiniteDifference()": lambda: FiniteDifference(inner_steps=INNER),
    "Sama()": lambda: Sama(inner_steps=INNER),
    "Implicit(Identity())": lambda: Implicit(Identity(), inner_steps=INNER),
    "OneStep()": lambda: OneStep(inner_steps=INNER),
    "Penalty()": lambda: Penalty(inner_steps=INNER),
}


class Large(RowWeights):
    """The shared problem with 100 M parameters, which live in the state alone."""

    def __init__(self) -> None:
        super().__init__(WIDTHS)
        self.inner_optimizer = AdamW(lr=LR)
        self.model.to("meta")

    def init_params(self, outer: Tree, generator: Generator) -> Tree:
        return {
            k: torch.randn(v.shape, generator=generator).mul_(v.shape[-1] ** -0.5)
            for k, v in self.model.named_parameters()
        }


@functools.cache
def large() -> Large:
    return Large()


def plain() -> None:
    problem = RowWeights(WIDTHS)
    optimizer = torch.optim.AdamW(problem.model.parameters(), lr=LR)
    for step in range(INNER * OUTER):
        rows = problem.inner_batch(Draw(step))
        loss = nn.functional.cross_entropy(problem.model(problem.x[rows]), problem.y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def inner_steps() -> None:
    problem = large()
    phi = problem.init_outer(generator(0))
    loop = InnerLoop(problem)
    loop.run(phi, loop.start(phi, None, 0), 0, INNER * OUTER)


def estimate(estimator: Estimator) -> None:
    adam = Descent(functools.partial(torch.optim.Adam, lr=0.05))
    for _ in Engine(large(), estimator, adam, outer_steps=OUTER):
        pass


def betty() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        from betty.configs import Config, EngineConfig
        from betty.engine import Engine as BettyEngine
        from betty.logging.logger_base import get_logger
        from betty.problems import ImplicitProblem
    get_logger().setLevel(logging.WARNING)
    problem = RowWeights(WIDTHS)

    class Weights(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(problem.rows))

        def forward(self, rows: Tensor) -> Tensor:
            return self.weight[rows].sigmoid()

    def losses(network: nn.Module, rows: Tensor) -> Tensor:
        logits = network(problem.x[rows])
        return nn.functional.cross_entropy(logits, problem.y[rows], reduction="none")

    class Upper(ImplicitProblem):  # type: ignore[misc]
        def training_step(self, batch: Tensor) -> Tensor:
            return losses(self.lower.module, batch[0]).mean()

    class Lower(ImplicitProblem):  # type: ignore[misc]
        def training_step(self, batch: Tensor) -> Tensor:
            return (self.upper(batch[0]) * losses(self.module, batch[0])).mean()

    draw = torch.Generator().manual_seed(0)
    train = [(problem.inner_batch(draw),) for _ in range(INNER * OUTER)]
    held = [(problem.outer_batch(draw),) for _ in range(OUTER)]
    weights = Weights()
    # betty rebuilds the optimizer from its defaults, among which torch's AdamW has one too many.
    adamw = torch.optim.Adam(
        problem.model.parameters(), lr=LR, weight_decay=0.01, decoupled_weight_decay=True
    )
    upper = Upper(
        "upper", Config(type="darts", retain_graph=True), module=weights,
        optimizer=torch.optim.Adam(weights.parameters(), lr=0.05), train_data_loader=held,
    )  # fmt: skip
    lower = Lower(
        "lower", Config(type="darts", unroll_steps=INNER), module=problem.model,
        optimizer=adamw, train_data_loader=train,
    )  # fmt: skip
    engine = BettyEngine(
        problems=[upper, lower],
        config=EngineConfig(strategy="cpu", train_iters=INNER * OUTER),
        dependencies={"u2l": {upper: [lower]}, "l2u": {lower: [upper]}},
    )
    engine.run()


CASES: dict[str, Callable[[], None]] = {
    "torch.optim.AdamW, by hand": plain,
    "metaopt, inner steps only": inner_steps,
    **{name: functools.partial(lambda new: estimate(new()), new)
       for name, new in ESTIMATORS.items()},
    "betty, darts": betty,
}  # fmt: skip


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(name: str, path: str) -> None:
    torch.set_num_threads(1)
    size = 4 * sum(a * b + b for a, b in pairwise(WIDTHS))
    before = peak_bytes()
    CASES[name]()
    resident = peak_bytes() - before
    gc.collect()
    with PeakMemory() as meter:
        CASES[name]()
    Path(path).write_text(json.dumps({"live": meter.peak / size, "resident": resident / size}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.measure:
        measure(*chosen.measure)
        return
    print("in copies of the parameters      live  resident")
    with TemporaryDirectory() as folder:
        for i, name in enumerate(CASES):
            path = Path(folder, f"{i}.json")
            command = [sys.executable, "-m", "benchmarks.memory", "--measure", name, str(path)]
            subprocess.run(command, check=True, env=RETURNING, stdout=subprocess.DEVNULL)
            result = json.loads(path.read_text())
            print(f"{name:<28}{result['live']:10.2f}{result['resident']:10.2f}", flush=True)


if __name__ == "__main__":
    main()
