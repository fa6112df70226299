"""CIFAR-10 with few labels, from the hub or from parquet files."""

from __future__ import annotations

import torch

from metaopt.data.folder import find_data
from metaopt.problems.meta_pseudo_labels.data.augment import Shift
from metaopt.problems.meta_pseudo_labels.data.image_files import read_images, tensors
from metaopt.problems.meta_pseudo_labels.data.rand_augment import RandAugment
from metaopt.problems.meta_pseudo_labels.data.semi_supervised import SemiSupervised, choose_labelled

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


def cifar10(
    source: str | None = None,
    labels_per_class: int = 400,
    count: int = 2,
    cutout: int = 16,
    shift: int = 4,
    limit: int | None = None,
    seed: int = 0,
) -> SemiSupervised:
    """Return CIFAR-10, normalised by channel, with RandAugment as the strong view.

    Args:
        source: a folder with `train*.parquet` and `test*.parquet` (at any depth; columns `img` or
            `image`, and `label`), or a data set id of the hub such as "uoft-cs/cifar10", or `None`
            for the folder cifar10_jpeg in the data folder. JPEG copies of the data set give
            accuracies that differ in the last tenth from its original PNG files.
        labels_per_class: 400 for the usual 4,000 labels.
        count, cutout, shift: see `RandAugment`; the weak view shifts and mirrors only.
        limit: use that many images of each part only, or `None` for all.
        seed: seed of the choice of labels.

    Raises:
        FileNotFoundError: the source is missing.
        ValueError: it lacks a part or a column.
    """
    parts = read_images(find_data("cifar10_jpeg", "cifar10") if source is None else source, limit)
    if not parts["train"] or not parts["test"]:
        raise ValueError(
            f"problem.data.source={source} needs images in train*.parquet and test*.parquet, with "
            "the columns `img` (or `image`) and `label`; use data@problem.data="
            "meta_pseudo_labels/images for other data."
        )
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    x, y = tensors(parts["train"], range(10), 32)
    test, test_labels = tensors(parts["test"], range(10), 32)
    x, test = (x - mean) / std, (test - mean) / std
    chosen = choose_labelled(y, labels_per_class, 10, torch.Generator().manual_seed(seed))
    return SemiSupervised(
        x[chosen], y[chosen], x, y, test, test_labels, 10,
        weak=Shift(shift, flip=True), strong=RandAugment(MEAN, STD, count, cutout, shift),
    )  # fmt: skip
