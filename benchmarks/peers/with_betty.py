"""betty (Choe et al., ICLR 2023): its engine, its problems and its Neumann series."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks.peers.case import TERM_STEP, TERMS, Reweighting
from benchmarks.peers.peer import Peer, Weights


def levels(problem: Reweighting, outer_lr: float) -> tuple[Any, Any]:
    """Return betty's two problems."""
    problems: Any = importlib.import_module("betty.problems")
    configs: Any = importlib.import_module("betty.configs")

    class Outer(problems.ImplicitProblem):
        def get_batch(self) -> Tensor:
            return problem.batch_of(self._count - 1)

        def training_step(self, batch: Tensor) -> Tensor:
            return problem.meta_loss(self.inner, batch)

    class Inner(problems.ImplicitProblem):
        def get_batch(self) -> Tensor:
            return problem.batch_of((self._count - 1) // problem.inner_steps)

        def training_step(self, batch: Tensor) -> Tensor:
            return problem.training_loss(self.outer.module.phi, self.module, batch)

    weights, model = Weights(problem.rows), problem.model
    series = configs.Config(
        type="neumann", unroll_steps=problem.inner_steps,
        neumann_iterations=TERMS - 1, neumann_alpha=TERM_STEP,
    )  # fmt: skip
    outer = Outer(
        name="outer", config=configs.Config(), module=weights,
        optimizer=torch.optim.SGD(weights.parameters(), lr=outer_lr),
    )  # fmt: skip
    inner = Inner(
        name="inner", config=series, module=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=problem.lr),
    )  # fmt: skip
    return outer, inner


def implicit(problem: Reweighting, outer_lr: float) -> Iterator[Tensor]:
    """Take K inner steps and an outer one by betty's engine."""
    engines: Any = importlib.import_module("betty.engine")
    configs: Any = importlib.import_module("betty.configs")
    outer, inner = levels(problem, outer_lr)
    engine = engines.Engine(
        config=configs.EngineConfig(), problems=[outer, inner],
        dependencies={"u2l": {outer: [inner]}, "l2u": {inner: [outer]}},
    )  # fmt: skip
    engine.train()
    while True:
        for _ in range(problem.inner_steps):
            engine.global_step += 1
            engine.train_step()
        yield outer.module.phi


PEER = Peer("betty", "betty", ("betty-ml==0.2.1",), {"Neumann series": implicit})
