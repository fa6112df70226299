"""A tiny problem with one complication at a time, and the inner optimizers it is trained by."""

import math

import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from metaopt.engine.finite import Finite
from metaopt.engine.gradient_problem import GradientProblem, split_module
from metaopt.engine.inner_optimizers import SGD, Adam, AdamW
from metaopt.engine.random import generator
from metaopt.engine.schedules import Cosine

ROWS, RIDGE = 8, 0.5

OPTIMIZERS = {
    "SGD with decay": lambda lr: SGD(lr=lr, weight_decay=0.2),
    "momentum": lambda lr: SGD(lr=lr, momentum=0.9, nesterov=True),
    "Adam": lambda lr: Adam(lr=0.1 * lr, weight_decay=0.1),
    "AdamW": lambda lr: AdamW(lr=0.1 * lr, weight_decay=0.1),
    "clipping": lambda lr: SGD(lr=lr, clip_norm=0.3),
    "schedule": lambda lr: SGD(lr=lr, schedule=Cosine(total=6, floor=0.1)),
}
"""Name -> learning rate -> inner optimizer."""

COMPLICATIONS = {
    "BatchNorm": "F reads running statistics that inner steps update",
    "average": "F reads a moving average of theta",
    "dropout": "g draws a mask in each step",
    "frozen": "a layer is not trained",
    "tied": "two layers share one weight",
    "unused": "one parameter is read by F alone, another one by no loss",
    "direct": "F holds phi itself",
    "rates": "phi holds the inner learning rate",
}


class Net(nn.Module):
    """A network of two hidden layers of three units."""

    def __init__(self, complication):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2)
        self.dropout = nn.Dropout(0.3 if complication == "dropout" else 0.0)
        self.norm = nn.Identity()
        if complication == "BatchNorm":
            self.norm = nn.BatchNorm1d(3, momentum=0.5)
        if complication == "frozen":
            self.first.requires_grad_(False)
        if complication == "tied":
            self.second.weight = self.first.weight
        if complication == "unused":
            self.late, self.spare = (nn.Parameter(torch.arange(2.0)) for _ in range(2))

    def forward(self, x):
        hidden = torch.tanh(self.norm(self.first(x)))
        out = self.last(self.dropout(torch.tanh(self.second(hidden))))
        return out + self.late if hasattr(self, "late") and not self.training else out


class Combined(GradientProblem):
    """Row weights sigmoid(phi) of a classifier's loss; F is the loss of other rows.

    Args:
        optimizer: a name of `OPTIMIZERS`.
        complication: a name of `COMPLICATIONS`.
        fork: whether theta_0 is part of phi, as for MAML.
        lr: inner learning rate.
    """

    def __init__(self, optimizer, complication, fork=False, lr=0.3):
        self.complication, self.warm_start = complication, not fork
        make = OPTIMIZERS[optimizer]
        self.inner_optimizer = make(lr)
        if complication == "rates":
            self.inner_optimizer = lambda outer, step: make(outer["log_lr"].exp())
        self.log_lr = math.log(lr)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.module = Net(complication).double()
        self.params, self.statistics, self.frozen = split_module(self.module)
        draw = generator(1)
        self.x, self.x_held_out = torch.randn(2, ROWS, 3, generator=draw, dtype=torch.float64)
        self.y, self.y_held_out = torch.randint(2, (2, ROWS), generator=draw)

    def init_outer(self, generator):
        outer = {"weights": torch.linspace(-1, 1, 4, dtype=torch.float64)}
        if self.complication == "rates":
            outer["log_lr"] = torch.full((1,), self.log_lr, dtype=torch.float64)
        return outer if self.warm_start else outer | {k: v.clone() for k, v in self.params.items()}

    def init_params(self, outer, generator):
        return self.params if self.warm_start else {k: outer[k] for k in self.params}

    def init_buffers(self, outer, params):
        return self.statistics

    def inner_batch(self, draw):
        return torch.randperm(ROWS, generator=draw.generator)[:5]

    outer_batch = inner_batch

    def inner_loss(self, outer, inner, batch):
        losses = self.losses(inner, self.x[batch], self.y[batch], training=True)
        # Around theta_0, since around 0 the network would be constant at the solution. A parameter
        # that g does not read is not in it either.
        gaps = (v - self.params[k] for k, v in inner.params.items() if k not in ("late", "spare"))
        ridge = RIDGE / 2 * sum(gap.square().sum() for gap in gaps)
        return (outer["weights"][batch % 4].sigmoid() * losses).mean() + ridge

    def outer_loss(self, outer, inner, batch):
        if self.complication == "average":
            inner = {**inner, **inner.state["average"]}
        loss = self.losses(inner, self.x_held_out[batch], self.y_held_out[batch]).mean()
        if self.complication == "direct":
            loss = loss * (1 + outer["weights"].square().sum())
        return loss

    def losses(self, inner, x, y, training=False):
        out = functional_call(self.module.train(training), dict(inner), (x,))
        return F.cross_entropy(out, y, reduction="none")


class Averaged(Combined):
    """With a moving average of theta in its state."""

    def init_state(self, outer, params):
        return {"average": {k: v.clone() for k, v in params.items()}}

    def update_state(self, outer, inner, step):
        average = inner.state["average"]
        return {"average": {k: v.lerp(inner[k], 0.3) for k, v in average.items()}}


class Sampled(Combined):
    """Trained on two labels that are sampled with probability sigmoid(phi), by row.

    Attributes:
        forced: labels to take in place of sampled ones, or `None`.
    """

    hard_decisions = True
    forced = None

    def inner_batch(self, draw):
        return torch.randperm(ROWS, generator=draw.generator)[:2], None

    def outer_batch(self, draw):
        return torch.randperm(ROWS, generator=draw.generator)[:5]

    def prepare_batch(self, outer, inner, batch, draw):
        labels = self.forced
        if labels is None:
            labels = torch.bernoulli(self.positive(outer, batch), generator=draw.generator).long()
        return batch[0], labels

    def positive(self, outer, batch):
        return outer["weights"][batch[0] % 4].sigmoid()

    def log_prob(self, outer, inner, batch):
        positive = self.positive(outer, batch)
        return torch.where(batch[1] == 1, positive, 1 - positive).log()

    def inner_losses(self, outer, inner, batch):
        return self.losses(inner, self.x[batch[0]], batch[1], training=True)

    def inner_loss(self, outer, inner, batch):
        return self.inner_losses(outer, inner, batch).mean()

    def feedback_loss(self, outer, inner, batch):
        return self.outer_loss(outer, inner, batch)


class SampledAverage(Sampled, Averaged):
    """Both."""


class Blocks(Finite, Combined):
    """On a fixed partition of the rows."""

    inner_batches, outer_batches, epoch_seed = 3, 2, None

    def inner_batch_at(self, index):
        return torch.arange(ROWS)[index :: self.inner_batches][:4]

    def outer_batch_at(self, index):
        return torch.arange(ROWS)[index :: self.outer_batches][:4]


class AveragedBlocks(Blocks, Averaged):
    """Both."""


def problem(optimizer, complication, fork=False, sampled=False, blocks=False):
    """Return a problem of a cell of the table."""
    averaged = complication == "average"
    if blocks:
        return (AveragedBlocks if averaged else Blocks)(optimizer, complication, fork)
    kinds = {False: (Combined, Sampled), True: (Averaged, SampledAverage)}
    return kinds[averaged][sampled](optimizer, complication, fork)
