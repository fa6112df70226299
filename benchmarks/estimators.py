"""Cost of one call of each estimator in gradient evaluations of g, 1.3 M parameters, K = 1."""

from __future__ import annotations

from collections.abc import Callable

import torch

from benchmarks.mlp import RowWeights, least_seconds
from metaopt.engine import tree
from metaopt.engine.inner_loop import InnerLoop
from metaopt.engine.protocols import Estimator
from metaopt.engine.random import generator
from metaopt.estimators import (
    ConjugateGradient,
    FiniteDifference,
    Identity,
    Implicit,
    Neumann,
    OneStep,
    Penalty,
    Sama,
    Soba,
    Unroll,
)

ESTIMATORS: dict[str, Estimator] = {
    "Unroll(1)": Unroll(1),
    "Unroll(10)": Unroll(10),
    'Unroll(10, schedule="segments")': Unroll(10, schedule="segments"),
    "OneStep()": OneStep(),
    "Implicit(Identity())": Implicit(Identity()),
    "Implicit(Neumann(10))": Implicit(Neumann(10)),
    "Implicit(ConjugateGradient(5))": Implicit(ConjugateGradient(5, tolerance=0.0)),
    "FiniteDifference()": FiniteDifference(),
    "Sama()": Sama(),
    "Soba()": Soba(),
    "Penalty()": Penalty(),
}


def main() -> None:
    torch.set_num_threads(1)
    problem = RowWeights()
    phi = problem.init_outer(generator(0))
    loop = InnerLoop(problem)
    start = loop.start(phi, None, 0)
    theta = tree.leaves(tree.clone(start.params))
    inputs = list(theta.values())
    spare = tree.clone(start)

    def call(estimator: Estimator) -> Callable[[], object]:
        estimator(loop, phi, spare, 0)
        return lambda: estimator(loop, phi, spare, 1)

    def gradient() -> object:
        value = loop.inner_value(phi, start._replace(params=theta), loop.draw(start, 0, 0))
        return torch.autograd.grad(value, inputs)

    calls = {name: call(estimator) for name, estimator in ESTIMATORS.items()}
    seconds = least_seconds({"G": gradient, **calls})
    one = seconds.pop("G")
    print(f"G = {1e3 * one:.2f} ms, one gradient of g; time of a later outer step")
    for name, duration in seconds.items():
        print(f"{name:<34}{1e3 * duration:8.2f} ms {duration / one:6.2f} G")


if __name__ == "__main__":
    main()
