"""A classifier whose training loss has learned weights of examples."""

import torch
from torch.func import functional_call
from torch.nn import functional as F

from metaopt.engine.gradient_problem import GradientProblem, split_module
from metaopt.engine.random import generator


class Weighted(GradientProblem):
    """A weight sigmoid(weights[i % 4]) of each example in a classifier's g; F is without.

    Args:
        make: makes the classifier, into three classes.
        optimizer: the inner one.
        outer_mode: of the module in F, train or eval.
        features: of an example.
    """

    def __init__(self, make, optimizer, outer_mode="eval", features=5):
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.module = make().double()
        self.inner_optimizer, self.outer_mode = optimizer, outer_mode
        draw = generator(0)
        self.x, self.xv = torch.randn(2, 40, features, generator=draw, dtype=torch.float64)
        self.y, self.yv = torch.randint(0, 3, (2, 40), generator=draw)

    def init_outer(self, generator):
        return {"weights": torch.linspace(-1, 1, 4, dtype=torch.float64)}

    def init_params(self, outer, generator):
        return split_module(self.module)[0]

    def init_buffers(self, outer, params):
        return split_module(self.module)[1]

    def inner_batch(self, draw):
        return torch.randint(0, 40, (16,), generator=draw.generator)

    def outer_batch(self, draw):
        return None

    def weighted_loss(self, outer, outputs, batch):
        losses = F.cross_entropy(outputs, self.y[batch], reduction="none")
        return (outer["weights"].sigmoid()[batch % 4] * losses).mean()

    def inner_loss(self, outer, inner, batch):
        outputs = functional_call(self.module.train(), inner, (self.x[batch],))
        return self.weighted_loss(outer, outputs, batch)

    def outer_loss(self, outer, inner, batch):
        self.module.train(self.outer_mode == "train")
        return F.cross_entropy(functional_call(self.module, inner, (self.xv,)), self.yv)
