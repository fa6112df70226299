"""Overhead of a step on a tiny network: a loop by hand, metaopt, and betty-ml, in one run."""

from __future__ import annotations

import functools

import torch
from torch.func import functional_call

from benchmarks.mlp import RowWeights, least_seconds
from metaopt.backends.betty import BettyEngine
from metaopt.engine import Engine
from metaopt.engine.random import Draw, fold, generator
from metaopt.engine.tree import leaves
from metaopt.estimators import Identity, Implicit, Unroll
from metaopt.optimizers.descent import Descent

INNER, OUTER = 10, 20


def descent() -> Descent:
    return Descent(functools.partial(torch.optim.SGD, lr=1e-2))


def by_hand(problem: RowWeights, unroll: bool) -> None:
    """Do what the engines do, with nothing between the operations."""
    phi = leaves(problem.init_outer(generator(0)))
    theta = leaves(problem.init_params(phi, generator(0)))
    outer = torch.optim.SGD(phi.values(), lr=1e-2)

    def loss_of(phi: dict, theta: dict, rows: torch.Tensor) -> torch.Tensor:
        logits = functional_call(problem.model, theta, problem.x[rows])
        losses = torch.nn.functional.cross_entropy(logits, problem.y[rows], reduction="none")
        return (phi["weight"][rows].sigmoid() * losses).mean()

    for t in range(OUTER):
        for k in range(INNER):
            loss = loss_of(phi, theta, problem.inner_batch(Draw(fold(t, k))))
            grads = torch.autograd.grad(loss, list(theta.values()), create_graph=unroll)
            theta = {k: t - 1e-2 * g for (k, t), g in zip(theta.items(), grads, strict=True)}
            if not unroll:
                theta = leaves(theta)
        value = problem.losses(theta, problem.outer_batch(Draw(fold(t, "outer")))).mean()
        if unroll:
            value.backward(inputs=list(phi.values()))
        else:
            v = torch.autograd.grad(value, list(theta.values()))
            loss = loss_of(phi, theta, problem.inner_batch(Draw(fold(t, "implicit"))))
            slope = torch.autograd.grad(loss, list(theta.values()), create_graph=True)
            (cross,) = torch.autograd.grad(slope, list(phi.values()), v)
            phi["weight"].grad = -cross
        outer.step()
        outer.zero_grad()
        theta = leaves(theta)


def main() -> None:
    torch.set_num_threads(1)
    problem = RowWeights(widths=(8, 16, 4), batch=16)
    steps = INNER * OUTER
    identity, unroll = Implicit(Identity(), inner_steps=INNER), Unroll(INNER)
    cases = {
        "unroll, by hand": lambda: by_hand(problem, unroll=True),
        "unroll, metaopt": lambda: list(
            Engine(problem, unroll, descent(), outer_steps=OUTER)
        ),
        "t1-t2, by hand": lambda: by_hand(problem, unroll=False),
        "t1-t2, metaopt": lambda: list(
            Engine(problem, identity, descent(), outer_steps=OUTER)
        ),
        "t1-t2, betty's engine": lambda: list(
            BettyEngine(problem, identity, descent(), outer_steps=OUTER)
        ),
    }  # fmt: skip
    seconds = least_seconds(cases, repeats=15)
    print(f"{OUTER} outer steps of {INNER} inner steps; time per inner step, outer work included")
    for name, duration in seconds.items():
        floor = seconds[f"{name.split(',')[0]}, by hand"]
        print(f"{name:<24}{1e6 * duration / steps:8.0f} us {duration / floor:6.2f} of by hand")


if __name__ == "__main__":
    main()
