"""The losses of semi-supervised classification that Meta Pseudo Labels is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from metaopt.engine.protocols import Tree
from metaopt.engine.ranges import check_ranges
from metaopt.nn import Network


class Examples(NamedTuple):
    """What a batch holds: labelled inputs, two views of unlabelled ones, decisions on those.

    Args:
        labelled, classes: inputs (n, *shape) and their classes (n,).
        weak, strong: two views (B, *shape) of the same unlabelled inputs.
        labels: pseudo labels: classes (B,), or distributions (B, C), or `None` where the loss asks
            the teacher itself.
        noise: key of the teacher's dropout masks when it decides; `None` where it has none.
        step: steps taken before, for the ramp of the consistency loss.
    """

    labelled: Tensor
    classes: Tensor
    weak: Tensor
    strong: Tensor
    labels: Tensor | None
    noise: int | None
    step: int = 0


@dataclass(frozen=True)
class Consistency:
    """UDA: the strong view should be classified as the weak view is.

    w_t * mean_b 1[max_c q_bc >= threshold] * CE(q_b, p(strong_b)),
    q = softmax(weak / temperature), with no gradient through q,
    w_t = weight * min(1, step / ramp).

    Args:
        weight: factor once the ramp is over, >= 0.
        temperature: sharpens q where it is below 1, > 0.
        threshold: examples whose sharpened q is less certain than this count as 0; in [0, 1).
        ramp: steps of the linear ramp, >= 0.

    Reference: Xie et al., Unsupervised Data Augmentation, NeurIPS 2020.
    """

    weight: float = 8.0
    temperature: float = 0.5
    threshold: float = 0.0
    ramp: int = 1000

    def __post_init__(self) -> None:
        check_ranges(self, "weight >= 0", "ramp >= 0", "temperature > 0", "0 <= threshold < 1")

    def __call__(self, weak: Tensor, strong: Tensor, step: int) -> Tensor:
        """Return the weighted loss of logits (B, C) after `step` steps."""
        target = torch.softmax(weak.detach() / self.temperature, -1)
        if self.threshold > 0:
            losses = cross_entropy(strong, target, reduction="none")
            loss = (losses * (target.amax(-1) >= self.threshold)).mean()
        else:
            loss = cross_entropy(strong, target)
        ramp = min(1.0, step / self.ramp) if self.ramp else 1.0
        return loss * self.weight * ramp


@dataclass(frozen=True)
class DirectLoss:
    """A classifier's own loss: labelled cross entropy plus UDA, in one forward pass.

    supervised * CE(y_l, f(x_l)) + consistency(f(weak), f(strong)).

    Args:
        supervised: weight of the labelled part, >= 0.
        consistency: the unlabelled part, or `None`.
        label_smoothing: share of each label that is spread evenly over all classes, in [0, 1).
    """

    supervised: float = 1.0
    consistency: Consistency | None = None
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        check_ranges(self, "supervised >= 0", "0 <= label_smoothing < 1")

    def __call__(self, network: Network, tensors: Tree, batch: Examples) -> Tensor:
        """Return the loss of `network`, with dropout and batch statistics."""
        if self.consistency is None:
            logits = network.train(tensors, batch.labelled)
            return self.supervised * self._labelled(logits, batch.classes)
        stacked = torch.cat([batch.labelled, batch.weak, batch.strong])
        sizes = [len(batch.labelled), len(batch.weak), len(batch.strong)]
        labelled, weak, strong = network.train(tensors, stacked).split(sizes)
        loss = self.consistency(weak, strong, batch.step)
        if self.supervised:
            loss = loss + self.supervised * self._labelled(labelled, batch.classes)
        return loss

    def _labelled(self, logits: Tensor, classes: Tensor) -> Tensor:
        return cross_entropy(logits, classes, label_smoothing=self.label_smoothing)
