"""The phases before and after the outer loop: a pretrained teacher, a fine-tuned student."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Generator, Tensor
from torch.nn.functional import cross_entropy

from metaopt.engine import tree
from metaopt.engine.inner_optimizers import InnerOptimizer
from metaopt.engine.protocols import Tree
from metaopt.engine.random import fold, generator, replay
from metaopt.engine.ranges import check_choices, check_ranges
from metaopt.nn import Network
from metaopt.problems.meta_pseudo_labels.data import SemiSupervised

Loss = Callable[[Tree, int, Generator], Tensor]
"""Maps tensors, the number of steps taken and a generator to a scalar."""


@dataclass(frozen=True)
class Pretraining:
    """Train the teacher before the first outer step.

    `examples=labelled` uses what the problem may know, and the teacher's own loss (labelled cross
    entropy plus UDA). `examples=noisy` makes the faulty teacher of a controlled study: it learns
    the unlabelled examples with their hidden classes, of which a share is replaced by wrong ones.

    Args:
        optimizer: how the teacher is stepped.
        steps: number of steps, >= 1.
        examples: labelled or noisy.
        wrong: share of wrong labels with `examples=noisy`, in [0, 1).
        batch: examples in a batch with `examples=noisy`.
    """

    optimizer: InnerOptimizer
    steps: int = 1000
    examples: Literal["labelled", "noisy"] = "labelled"
    wrong: float = 0.0
    batch: int = 128

    def __post_init__(self) -> None:
        check_ranges(self, "steps >= 1", "batch >= 1", "0 <= wrong < 1")
        check_choices(self, examples=("labelled", "noisy"))

    def __call__(self, network: Network, data: SemiSupervised, own_loss: Loss, key: int) -> Tree:
        """Return the trained tensors of `network`.

        Where the network has frozen parameters (Reduced MPL), those are trained and no others.

        Args:
            network: the teacher.
            data: the examples.
            own_loss: the teacher's loss with `examples=labelled`.
            key: fixes the initial values, the wrong labels and the batches.
        """
        tensors = network.init(generator(fold(key, "init")))
        tensors = {k: v.to(data.labels.device) for k, v in tensors.items()}
        loss = own_loss
        if self.examples == "noisy":
            if bool((data.hidden_labels < 0).any()):
                raise ValueError(
                    "Pretraining with examples=noisy needs the classes of all unlabelled examples; "
                    "this data set has some without. Use examples=labelled."
                )
            classes = corrupt(data.hidden_labels, data.classes, self.wrong, fold(key, "wrong"))
            loss = _labelled_loss(network.unfrozen, data.unlabelled, classes, data, self.batch)
        names = network.frozen or network.params
        fit(tensors, names, self.optimizer, self.steps, loss, fold(key, "fit"))
        return tensors


@dataclass(frozen=True)
class FineTuning:
    """Train the student on the labelled examples once the outer loop is over.

    With a handful of labels per class this overfits and lowers the accuracy.

    Args:
        optimizer: how the student is stepped; a small learning rate.
        steps: number of steps, >= 1.
        batch: examples in a batch.
    """

    optimizer: InnerOptimizer
    steps: int = 100
    batch: int = 128

    def __post_init__(self) -> None:
        check_ranges(self, "steps >= 1", "batch >= 1")

    def __call__(self, network: Network, tensors: Tree, data: SemiSupervised, key: int) -> Tree:
        """Return the tensors of `network` after training from `tensors`, which stay."""
        tensors = tree.clone({k: tensors[k] for k in (*network.params, *network.buffers)})
        loss = _labelled_loss(network, data.labelled, data.labels, data, self.batch)
        fit(tensors, network.params, self.optimizer, self.steps, loss, key)
        return tensors


def fit(
    tensors: Tree, names: Sequence[str], optimizer: InnerOptimizer, steps: int, loss: Loss, key: int
) -> None:
    """Minimise `loss` over the tensors called `names`, in place."""
    params = {k: tensors[k] for k in names}
    moments = optimizer.init(params)
    for step in range(steps):
        leaves = tree.leaves(params)
        with replay(fold(key, step, "noise")):
            value = loss(tensors | leaves, step, generator(fold(key, step, "batch")))
        grads = torch.autograd.grad(value, list(leaves.values()), materialize_grads=True)
        optimizer.update_(params, tree.like(params, grads), moments, step)


def corrupt(classes: Tensor, count: int, share: float, key: int) -> Tensor:
    """Return `classes` with a share of them, chosen at random, replaced by another class.

    Args:
        classes: (n,), each below `count`.
        count: number of classes.
        share: in [0, 1); exactly round(share * n) labels change.
        key: fixes the choice.
    """
    draw = generator(key)
    chosen = torch.randperm(len(classes), generator=draw)[: round(share * len(classes))]
    away = torch.randint(1, count, (len(chosen),), generator=draw)
    changed = classes.clone()
    changed[chosen] = (classes[chosen] + away.to(classes)) % count
    return changed


def _labelled_loss(
    network: Network, x: Tensor, classes: Tensor, data: SemiSupervised, batch: int
) -> Loss:
    def loss(tensors: Tree, step: int, draw: Generator) -> Tensor:
        chosen = torch.randint(len(x), (batch,), generator=draw) if batch < len(x) else slice(None)
        return cross_entropy(network.train(tensors, data.weak(x[chosen], draw)), classes[chosen])

    return loss
