"""How good a classifier is, and whether a teacher's labels have collapsed."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from metaopt.engine.protocols import Tree
from metaopt.nn import Network


def outputs(network: Network, tensors: Tree, x: Tensor, part: int = 1024) -> Tensor:
    """Return the logits of x without dropout, `part` examples at a time."""
    return torch.cat([network.evaluate(tensors, examples) for examples in x.split(part)])


def percentage(logits: Tensor, classes: Tensor) -> Tensor:
    """Return the share of examples whose largest logit is that of their class, in %."""
    return 100 * (logits.argmax(-1) == classes).double().mean()


def accuracy(network: Network, tensors: Tree, x: Tensor, classes: Tensor) -> Tensor:
    """Return the accuracy of a network in %."""
    return percentage(outputs(network, tensors, x), classes)


def label_entropy(probabilities: Tensor) -> Tensor:
    """Return the entropy of the average label distribution over log C, in [0, 1].

    1 = all classes used alike; 0 = every example gets the same label, the collapse of a teacher
    that is driven by feedback alone.
    """
    average = probabilities.mean(0)
    entropy: Tensor = torch.special.entr(average).sum()
    return entropy.div(math.log(probabilities.shape[-1])).clamp(0, 1)


def confidence(probabilities: Tensor) -> Tensor:
    """Return the mean probability of the most likely class."""
    return probabilities.amax(-1).mean()
