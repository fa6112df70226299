"""What a command imports when it first needs it, once for all that are forked from here."""

import torch
from hydra import compose

import metaopt.estimators
import metaopt.optimizers
import metaopt.problems.examples.ridge
import metaopt.runs.run
import metaopt.runs.tracking  # noqa: F401
from metaopt.cli.loading import composing

with composing():
    compose("train", ["problem=ridge"])
torch.optim.SGD([torch.zeros(1, requires_grad=True)])
