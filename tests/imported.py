"""What a command imports when it first needs it, once for all that are forked from here."""

# ruff: noqa: F401

import matplotlib.figure
import pandas
import safetensors.torch
import scipy.stats
import sklearn.datasets
import sklearn.isotonic
import sklearn.linear_model
import torch
from hydra import compose

import metaopt.estimators
import metaopt.llm
import metaopt.optimizers
import metaopt.problems.examples.ridge
import metaopt.report.figures
import metaopt.runs.run
import metaopt.runs.tracking
from metaopt.cli.loading import composing

with composing():
    compose("train", ["problem=ridge"])
torch.optim.SGD([torch.zeros(1, requires_grad=True)])
