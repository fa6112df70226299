"""Cost of a Hessian-vector product in gradient evaluations of g, 1.3 M parameters."""

from __future__ import annotations

import torch

from benchmarks.mlp import RowWeights, least_seconds
from metaopt.engine import tree
from metaopt.engine.inner_loop import InnerLoop
from metaopt.engine.random import generator


def main() -> None:
    torch.set_num_threads(1)
    problem = RowWeights()
    phi = problem.init_outer(generator(0))
    loop = InnerLoop(problem)
    start = loop.start(phi, None, 0)
    theta = tree.leaves(tree.clone(start.params))
    inputs, draw = list(theta.values()), loop.draw(start, 0, 0)
    vector = list(tree.random_like(theta, generator(1)).values())

    def gradient(create_graph: bool = False) -> tuple[torch.Tensor, ...]:
        loss = loop.inner_value(phi, start._replace(params=theta), draw)
        return torch.autograd.grad(loss, inputs, create_graph=create_graph)

    slope = gradient(create_graph=True)
    seconds = least_seconds({
        "a gradient": gradient,
        "a gradient with its graph": lambda: gradient(create_graph=True),
        "a product on the retained graph": lambda: torch.autograd.grad(
            slope, inputs, vector, retain_graph=True
        ),
        "a product on a new graph": lambda: torch.autograd.grad(gradient(True), inputs, vector),
        "an inner step in place": lambda: loop.step_(phi, start, draw),
    })  # fmt: skip
    for name, duration in seconds.items():
        print(f"{name:<34}{1e3 * duration:8.2f} ms {duration / seconds['a gradient']:6.2f} G")


if __name__ == "__main__":
    main()
