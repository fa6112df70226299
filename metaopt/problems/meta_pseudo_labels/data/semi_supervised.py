"""A data set with few labels: what every loader of one returns."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor

Augmentation = Callable[[Tensor, Generator], Tensor]
"""Maps a batch of inputs to a random view of it; the draw is a function of the generator."""


def identity(x: Tensor, generator: Generator) -> Tensor:
    """Return the batch as it is."""
    return x


@dataclass(frozen=True)
class SemiSupervised:
    """Labelled, unlabelled and test examples of one classification task.

    Args:
        labelled, labels: inputs (n, *shape) and classes (n,): all that training may know.
        unlabelled: inputs without labels; loaders include the labelled inputs among them.
        hidden_labels: the classes of `unlabelled`, for measuring only; -1 where one is not known.
        test, test_labels: examples that training never sees.
        classes: number of classes.
        weak, strong: augmentations; the strong one is what a consistency loss asks for.
        resplit: test examples for each other one where the test is a random part of one data set;
            0 where it is a set of its own.
        names: what the source calls each class, by its number; empty where it only has numbers.
        prepare: files to inputs (n, *shape), as those of training were made: what a trained student
            needs to classify new ones; `None` where inputs are not read from files.
    """

    labelled: Tensor
    labels: Tensor
    unlabelled: Tensor
    hidden_labels: Tensor
    test: Tensor
    test_labels: Tensor
    classes: int
    weak: Augmentation = identity
    strong: Augmentation = identity
    resplit: float = 0.0
    names: Sequence[Any] = ()
    prepare: Callable[[Sequence[str | Path]], Tensor] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one input."""
        return tuple(self.labelled.shape[1:])

    def to(self, device: torch.device | str) -> SemiSupervised:
        """Return the same data on a device."""
        tensors: dict[str, Any] = {
            k: v.to(device) for k, v in vars(self).items() if isinstance(v, Tensor)
        }
        return dataclasses.replace(self, **tensors)


def few_labels(
    x: Tensor, y: Tensor, test: Tensor, test_labels: Tensor, classes: int, per_class: int | None,
    draw: Generator, unlabelled: tuple[Tensor, Tensor] | None = None, **further: Any,
) -> SemiSupervised:  # fmt: skip
    """Return a data set with `per_class` random labels of each class; the others are hidden.

    Args:
        x, y: inputs (n, *shape) and their classes (n,); all of them are among the unlabelled.
        test, test_labels: examples that training never sees.
        classes: number of classes.
        per_class: labels of each class, or `None` for all.
        draw: where the choice of labels comes from.
        unlabelled: further inputs, and their classes, -1 where one is not known.
        further: other arguments of `SemiSupervised`, by name.

    Raises:
        ValueError: a class has too few examples.
    """
    chosen = torch.arange(len(y)) if per_class is None else _chosen(y, per_class, classes, draw)
    u, hidden = x, y
    if unlabelled is not None:
        u, hidden = torch.cat([x, unlabelled[0]]), torch.cat([y, unlabelled[1]])
    return SemiSupervised(x[chosen], y[chosen], u, hidden, test, test_labels, classes, **further)


def _chosen(labels: Tensor, per_class: int, classes: int, draw: Generator) -> Tensor:
    """Return the indices of `per_class` random examples of each class, class by class."""
    chosen = []
    for c in range(classes):
        members = torch.nonzero(labels == c).flatten()
        if not 1 <= per_class <= len(members):
            raise ValueError(
                f"labels_per_class must be between 1 and {len(members)}, the size of class {c}; "
                f"got {per_class}."
            )
        chosen.append(members[torch.randperm(len(members), generator=draw)[:per_class]])
    return torch.cat(chosen)
