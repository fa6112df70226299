"""Learn a penalty for every weight of a classifier from its validation loss.

phi holds 640 log-penalties. Five steps of SGD from where the last outer step left the classifier
are one inner run, which `Unroll` differentiates through. Run it:

    python examples/hyperparameters.py
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits

from metaopt import SGD, Descent, GradientProblem, Unroll, run


class Penalties(GradientProblem):
    """g = cross-entropy on 100 training digits + sum of exp(phi) w^2; F = that on 600 others."""

    inner_optimizer = SGD(lr=0.5)

    def __init__(self):
        x, y = (torch.tensor(a) for a in load_digits(return_X_y=True))
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
        x, y = x[order].float() / 16, y[order]
        self.train, self.validation = (x[:100], y[:100]), (x[100:700], y[100:700])
        self.test = x[700:], y[700:]

    def init_outer(self, generator):
        return {"log_penalty": torch.full((10, 64), -7.0)}

    def init_params(self, outer, generator):
        return {"weight": torch.zeros(10, 64), "bias": torch.zeros(10)}

    def inner_batch(self, draw):
        return self.train

    def outer_batch(self, draw):
        return self.validation

    def inner_loss(self, outer, inner, batch):
        penalty = (outer["log_penalty"].exp() * inner["weight"] ** 2).sum()
        return self.outer_loss(outer, inner, batch) + penalty

    def outer_loss(self, outer, inner, batch):
        x, y = batch
        return F.cross_entropy(F.linear(x, inner["weight"], inner["bias"]), y)

    def metrics(self, outer, inner):
        x, y = self.test
        chosen = F.linear(x, inner.params["weight"], inner.params["bias"]).argmax(1)
        return {
            "test_loss": self.outer_loss(outer, inner.params, (x, y)),
            "test_accuracy": (chosen == y).float().mean(),
        }


def main(outer_steps=300, lr=0.05):
    """Return the test loss and accuracy."""
    metrics = run(
        Penalties(), Unroll(inner_steps=5), Descent("adam", lr=lr), outer_steps, progress=False
    ).metrics
    return metrics["eval/test_loss"], metrics["eval/test_accuracy"]


if __name__ == "__main__":
    for name, lr in (("fixed penalties", 0.0), ("learned penalties", 0.05)):
        loss, accuracy = main(lr=lr)
        print(f"{name}: test loss {loss:.4f}, accuracy {accuracy:.3f}")
