"""Few-shot regression of sinusoids by MAML (Finn et al., ICML 2017): learn where to start.

Meta-SGD (Li et al., arXiv 1707.09835, 2017) learns how far each weight steps as well.

Run it: python examples/few_shot_sinusoids.py
"""

import math

import torch

from metaopt import SGD, Descent, Engine, GradientProblem, Unroll

SHAPES = {"w1": (1, 40), "b1": (40,), "w2": (40, 40), "b2": (40,), "w3": (40, 1)}


class Sinusoids(GradientProblem):
    """phi: the weights that five gradient steps on ten points of a new sinusoid start from."""

    inner_optimizer = SGD(lr=0.01)
    warm_start = False  # each inner run starts from phi

    def init_outer(self, generator):
        return {
            k: shape[0] ** -0.5 * torch.randn(shape, generator=generator)
            for k, shape in SHAPES.items()
        }

    def init_params(self, outer, generator):
        return {k: outer[k].clone() for k in SHAPES}

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


class LearnedRates(Sinusoids):
    """phi: where the steps start, and a rate for each weight."""

    def init_outer(self, generator):
        start = super().init_outer(generator)
        return start | {f"rate.{k}": torch.full_like(v, 0.01) for k, v in start.items()}

    def inner_optimizer(self, outer, step):
        return SGD(lr={k: outer[f"rate.{k}"] for k in SHAPES})


def main(outer_steps=800, tasks=16, problem=Sinusoids):
    """Print the loss after adaptation along the run; return the first and the last mean of it."""
    estimator = Unroll(inner_steps=5, tasks=tasks)  # the mean over a meta-batch of tasks
    engine = Engine(problem(), estimator, Descent("adam", lr=1e-3), outer_steps=outer_steps)
    losses, means = [], []
    for step, feedback in engine:
        losses.append(float(feedback.value))
        if step % max(1, outer_steps // 10) == 0:
            means.append(sum(losses) / len(losses))
            print(f"step {step:5d}  loss after five steps on ten points {means[-1]:.3f}")
            losses.clear()
    return means[0], means[-1]


if __name__ == "__main__":
    print("MAML")
    main()
    print("Meta-SGD")
    main(problem=LearnedRates)
