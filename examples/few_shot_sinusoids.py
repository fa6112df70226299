"""Few-shot regression of sinusoids by MAML (Finn et al., ICML 2017): learn where to start.

Run it: python examples/few_shot_sinusoids.py
"""

import math

import torch

from metaopt import SGD, Descent, Engine, GradientProblem, Unroll


class Sinusoids(GradientProblem):
    """phi: the weights that five gradient steps on ten points of a new sinusoid start from."""

    inner_optimizer = SGD(lr=0.01)
    warm_start = False  # each inner run starts from phi

    def init_outer(self, generator):
        shapes = {"w1": (1, 40), "b1": (40,), "w2": (40, 40), "b2": (40,), "w3": (40, 1)}
        return {
            k: shape[0] ** -0.5 * torch.randn(shape, generator=generator)
            for k, shape in shapes.items()
        }

    def init_params(self, outer, generator):
        return {k: v.clone() for k, v in outer.items()}

    def inner_batch(self, draw):
        task, points = draw.task, draw.generator  # the same sinusoid, other points on it
        amplitude = 0.1 + 4.9 * torch.rand((), generator=task)
        phase = math.pi * torch.rand((), generator=task)
        x = 10 * torch.rand(10, 1, generator=points) - 5
        return x, amplitude * torch.sin(x - phase)

    outer_batch = inner_batch

    def inner_loss(self, outer, inner, batch):
        x, y = batch
        hidden = torch.tanh(x @ inner["w1"] + inner["b1"])
        hidden = torch.tanh(hidden @ inner["w2"] + inner["b2"])
        return ((hidden @ inner["w3"] - y) ** 2).mean()

    outer_loss = inner_loss


def main(outer_steps=3000):
    """Print the loss after adaptation along the run; return the first and the last mean of it."""
    engine = Engine(Sinusoids(), Unroll(5), Descent("adam", lr=1e-3), outer_steps=outer_steps)
    losses, means = [], []
    for step, feedback in engine:
        losses.append(float(feedback.value))
        if step % max(1, outer_steps // 10) == 0:
            means.append(sum(losses) / len(losses))
            print(f"step {step:5d}  loss after five steps on ten points {means[-1]:.3f}")
            losses.clear()
    return means[0], means[-1]


if __name__ == "__main__":
    main()
