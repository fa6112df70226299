"""higher (Grefenstette et al., arXiv 1910.01727, 2019): unrolling through patched modules."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks.peers.case import UNROLLS, Reweighting
from benchmarks.peers.peer import Peer


def unroll(problem: Reweighting, outer_lr: float) -> Iterator[Tensor]:
    """Differentiate through `innerloop_ctx`, from the module's weights in each outer step."""
    higher: Any = importlib.import_module("higher")
    model = problem.model
    phi = torch.zeros(problem.rows, dtype=torch.float64, requires_grad=True)
    outer = torch.optim.SGD([phi], lr=outer_lr)
    inner: torch.optim.Optimizer
    if problem.algorithm == "sgd":
        inner = torch.optim.SGD(model.parameters(), lr=problem.lr)
    else:
        inner = torch.optim.Adam(model.parameters(), lr=problem.lr, eps=problem.eps)
    for step in range(10**6):
        rows = problem.batch_of(step)
        with higher.innerloop_ctx(model, inner) as (functional, differentiable):
            for _ in range(problem.inner_steps):
                differentiable.step(problem.training_loss(phi, functional, rows))
            (phi.grad,) = torch.autograd.grad(problem.meta_loss(functional, rows), phi)
            outer.step()
            if problem.warm_start:
                with torch.no_grad():
                    for p, fast in zip(model.parameters(), functional.parameters(), strict=True):
                        p.copy_(fast)
        yield phi


EPS = (
    "higher adds eps before the bias correction, (sqrt(v) + eps) / sqrt(1 - b2^t), Adam as torch "
    "has it after: in the first step higher's eps is 32 times as large. Where |g| is near eps, "
    "Adam's step has a derivative near lr / eps, and few weights decide the hypergradient"
)
"""Why `DifferentiableAdam` differs; a loop by hand with either denominator agrees to 1e-14."""

PEER = Peer(
    "higher",
    "higher",
    ("higher==0.2.1",),
    dict.fromkeys(UNROLLS, unroll),
    {"unroll, Adam": EPS},
)
