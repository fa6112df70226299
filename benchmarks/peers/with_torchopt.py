"""TorchOpt (Ren et al., JMLR 2023): unrolling by meta-optimizers, and implicit meta-gradients."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks.peers.case import TERM_STEP, TERMS, UNROLLS, Reweighting
from benchmarks.peers.peer import Peer, Weights


def unroll(problem: Reweighting, outer_lr: float) -> Iterator[Tensor]:
    """Differentiate through `MetaSGD` or `MetaAdam`; `recover_state_dict` restarts both."""
    torchopt: Any = importlib.import_module("torchopt")
    model = problem.model
    phi = torch.zeros(problem.rows, dtype=torch.float64, requires_grad=True)
    outer = torch.optim.SGD([phi], lr=outer_lr)
    if problem.algorithm == "sgd":
        inner = torchopt.MetaSGD(model, lr=problem.lr)
    else:
        inner = torchopt.MetaAdam(model, lr=problem.lr, eps=problem.eps)
    start = [
        torchopt.extract_state_dict(x, by="reference", detach_buffers=True) for x in (model, inner)
    ]
    for step in range(10**6):
        rows = problem.batch_of(step)
        for _ in range(problem.inner_steps):
            inner.step(problem.training_loss(phi, model, rows))
        (phi.grad,) = torch.autograd.grad(problem.meta_loss(model, rows), phi)
        outer.step()
        if problem.warm_start:
            torchopt.stop_gradient(model)
            torchopt.stop_gradient(inner)
        else:
            for part, state in zip((model, inner), start, strict=True):
                torchopt.recover_state_dict(part, state)
        yield phi


def inner_module(problem: Reweighting, phi: torch.nn.Module) -> Any:
    """Return the inner level as a module with implicit meta-gradients by a Neumann series."""
    torchopt: Any = importlib.import_module("torchopt")
    series = torchopt.linear_solve.solve_inv(ns=True, maxiter=TERMS - 1, alpha=TERM_STEP)

    class Inner(torchopt.nn.ImplicitMetaGradientModule, linear_solve=series):
        def __init__(self, outer: torch.nn.Module) -> None:
            super().__init__()
            # What comes as an argument is the outer level, what is made here the inner one.
            self.outer, self.net = outer, copy.deepcopy(problem.model)

        def forward(self, x: Tensor) -> Any:
            return self.net(x)

        def objective(self, rows: Tensor) -> Tensor:
            return problem.training_loss(self.outer.phi, self.net, rows)

        def solve(self, rows: Tensor) -> Any:
            parameters = tuple(self.parameters())
            optimizer = torch.optim.SGD(parameters, lr=problem.lr)
            with torch.enable_grad():
                for _ in range(problem.inner_steps):
                    optimizer.zero_grad()
                    self.objective(rows).backward(inputs=parameters)
                    optimizer.step()
            return self

    return Inner(phi)


def implicit(problem: Reweighting, outer_lr: float) -> Iterator[Tensor]:
    """Differentiate a solution that is found by `torch.optim`."""
    torchopt: Any = importlib.import_module("torchopt")
    level = Weights(problem.rows)
    inner = inner_module(problem, level)
    outer = torch.optim.SGD(level.parameters(), lr=outer_lr)
    for step in range(10**6):
        rows = problem.batch_of(step)
        inner.solve(rows)
        (level.phi.grad,) = torch.autograd.grad(problem.meta_loss(inner, rows), level.phi)
        outer.step()
        torchopt.stop_gradient(inner)  # leaves again
        yield level.phi


PEER = Peer(
    "TorchOpt",
    "torchopt",
    ("torchopt==0.7.3", "optree", "graphviz"),
    {**dict.fromkeys(UNROLLS, unroll), "Neumann series": implicit},
)
