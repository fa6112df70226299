"""Find mislabelled examples: a weight for each, learned from a few clean ones.

The same problem under four estimators: exact through the inner steps, implicit, exact through the
last step, and a finite difference that needs first derivatives only. Run it:

    python examples/noisy_labels.py
"""

import torch

from metaopt import (
    SGD,
    Descent,
    FiniteDifference,
    GradientProblem,
    Implicit,
    OneStep,
    Unroll,
    run,
)

ESTIMATORS = {
    "unroll": Unroll(inner_steps=5),
    "implicit": Implicit(inner_steps=5),
    "one_step": OneStep(inner_steps=5),
    "finite_difference": FiniteDifference(inner_steps=5),
}


class NoisyLabels(GradientProblem):
    """g = mean of sigmoid(phi_i) loss_i of 200 examples, 40 % mislabelled; F on 40 clean ones."""

    inner_optimizer = SGD(lr=1.0)

    def __init__(self, seed=0):
        draw = torch.Generator().manual_seed(seed)
        x = torch.randn(240, 5, generator=draw)
        y = (x.sum(1) > 0).float()
        self.wrong = torch.rand(200, generator=draw) < 0.4
        self.train = x[:200], torch.where(self.wrong, 1 - y[:200], y[:200])
        self.clean = x[200:], y[200:]

    def init_outer(self, generator):
        return {"logit": torch.zeros(200)}

    def init_params(self, outer, generator):
        return {"weight": torch.zeros(5)}

    def inner_batch(self, draw):
        return self.train

    def outer_batch(self, draw):
        return self.clean

    def inner_loss(self, outer, inner, batch):
        # The decay gives the inner level a solution, which an implicit estimator assumes.
        decay = 1e-2 * (inner["weight"] ** 2).sum()
        return (outer["logit"].sigmoid() * losses(inner, batch)).mean() + decay

    def outer_loss(self, outer, inner, batch):
        return losses(inner, batch).mean()

    def metrics(self, outer, inner):
        return {"noise_detection_accuracy": ((outer["logit"] < 0) == self.wrong).float().mean()}


def losses(inner, batch):
    """Return the loss of each example."""
    x, y = batch
    return torch.nn.functional.binary_cross_entropy_with_logits(
        x @ inner["weight"], y, reduction="none"
    )


def main(name="unroll", outer_steps=60):
    """Return the share of labels that the weights correctly identify as clean or wrong."""
    result = run(
        NoisyLabels(), ESTIMATORS[name], Descent("adam", lr=0.2), outer_steps, progress=False
    )
    return result.metrics["eval/noise_detection_accuracy"]


if __name__ == "__main__":
    for name in ESTIMATORS:
        print(f"{name}: {100 * main(name):.0f} % of the labels correctly identified")
