"""Images with few labels or many: CIFAR-10, and your own from a folder, parquet or .npz files."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor

from metaopt.data.folder import find_data
from metaopt.problems.meta_pseudo_labels.data.augment import Shift
from metaopt.problems.meta_pseudo_labels.data.image_files import prepare, read_images, tensors
from metaopt.problems.meta_pseudo_labels.data.rand_augment import RandAugment
from metaopt.problems.meta_pseudo_labels.data.semi_supervised import SemiSupervised, few_labels

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
"""Of CIFAR-10's channels."""

CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
"""CIFAR-10's, by number."""


def images(
    source: str,
    size: int = 32,
    labels_per_class: int | None = None,
    test_share: float = 0.2,
    count: int = 2,
    cutout: int | None = None,
    shift: int | None = None,
    flip: bool = True,
    limit: int | None = None,
    seed: int = 0,
) -> SemiSupervised:
    """Return labelled and unlabelled images, normalised by channel, RandAugment as strong view.

    | source  | labelled                          | unlabelled             | test             |
    |---------|-----------------------------------|------------------------|------------------|
    | folder  | <class>/*.png or train/<class>/*  | unlabelled/*           | test/<class>/*   |
    | parquet | image, label in train*.parquet    | label null, or         | test*.parquet    |
    |         |                                   | unlabelled*.parquet    |                  |
    | .npz    | images, labels                    | label -1, or           | test_images,     |
    |         |                                   | unlabelled_images      | test_labels      |

    Only what is labelled is needed. Images may be grey or in colour, and of any size; a column
    `image` holds encoded files, as bytes or as the hub's {bytes, path}.

    Args:
        source: the folder or the file; or a data set id of the hub (owner/name), with columns as in
            parquet files and a split test.
        size: height and width that all images get, in pixels, >= 8.
        labels_per_class: use that many labels of each class and take the other images for
            unlabelled ones; `None` for all labels.
        test_share: share of the labelled images that is held out where there is no test part, in
            (0, 1); the same share of each class, at least one image.
        count, cutout, shift: see `RandAugment`; `None` is a cutout of half the size and a shift of
            an eighth.
        flip: whether half of the views are mirrored; not for digits or letters.
        limit: read that many images of each part only, or `None` for all.
        seed: seed of the choice of labels and of what is held out.

    Raises:
        FileNotFoundError: there is no such source.
        ValueError: the source or an argument is not as above, or a class has too few images.
    """
    if size < 8 or not 0 < test_share < 1:
        raise ValueError(
            f"images needs size >= 8 and 0 < test_share < 1; got size={size}, "
            f"test_share={test_share}."
        )
    parts, draw = read_images(source, limit), torch.Generator().manual_seed(seed)
    names = sorted({image.label for image in parts["train"]}, key=lambda v: (str(type(v)), v))
    unknown = {image.label for image in parts["test"]} - set(names)
    if len(names) < 2 or unknown:
        raise ValueError(
            f"images needs two or more classes with labelled images in {source}, and no other in "
            f"its test part; found the classes {names} and, in the test part alone, "
            f"{sorted(map(str, unknown))}."
        )
    x, y = tensors(parts["train"], names, size)
    if parts["test"]:
        test, test_labels = tensors(parts["test"], names, size)
    else:
        chosen = _held_out(y, test_share, names, draw)
        test, test_labels, x, y = x[chosen], y[chosen], x[~chosen], y[~chosen]
    resplit = 0.0 if parts["test"] else len(test) / len(x)
    mean, std = x.mean((0, 2, 3)).view(3, 1, 1), x.std((0, 2, 3)).clamp(min=1e-3).view(3, 1, 1)
    further, hidden = tensors(parts["unlabelled"], names, size)
    x, further, test = ((t - mean) / std for t in (x, further, test))
    shift = size // 8 if shift is None else shift
    strong = RandAugment(
        mean.flatten().tolist(),
        std.flatten().tolist(),
        count,
        size // 2 if cutout is None else cutout,
        shift,
        flip,
    )
    return few_labels(
        x, y, test, test_labels, len(names), labels_per_class, draw, unlabelled=(further, hidden),
        resplit=resplit, weak=Shift(shift, flip=flip), strong=strong, names=names,
        prepare=partial(prepare, size=size, mean=mean, std=std),
    )  # fmt: skip


def cifar10(
    source: str | None = None,
    labels_per_class: int = 400,
    count: int = 2,
    cutout: int = 16,
    shift: int = 4,
    limit: int | None = None,
    magnitude: float | None = None,
    seed: int = 0,
) -> SemiSupervised:
    """Return CIFAR-10, normalised by channel, with RandAugment as the strong view.

    Args:
        source: a folder with `train*.parquet` and `test*.parquet` (at any depth; columns `img` or
            `image`, and `label`), or a data set id of the hub such as "uoft-cs/cifar10", or `None`
            for the folder cifar10_jpeg in the data folder. JPEG copies of the data set give
            accuracies that differ in the last tenth from its original PNG files.
        labels_per_class: 400 for the usual 4,000 labels.
        count, cutout, shift, magnitude: see `RandAugment`; the weak view shifts and mirrors only.
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
    return few_labels(
        x, y, test, test_labels, 10, labels_per_class, torch.Generator().manual_seed(seed),
        weak=Shift(shift, flip=True),
        strong=RandAugment(MEAN, STD, count, cutout, shift, magnitude=magnitude), names=CLASSES,
        prepare=partial(prepare, size=32, mean=mean, std=std),
    )  # fmt: skip


def _held_out(classes: Tensor, share: float, names: Sequence[Any], draw: Generator) -> Tensor:
    """Return which labelled images are for the test, (n) booleans: the share of each class."""
    chosen = torch.zeros(len(classes), dtype=torch.bool)
    for c, name in enumerate(names):
        members = torch.nonzero(classes == c).flatten()
        if len(members) < 2:
            raise ValueError(
                f"images holds a part of each class out for the test, and class {name!r} has one "
                "image; give it a second one, or a test part."
            )
        most = min(len(members) - 1, max(1, round(share * len(members))))
        chosen[members[torch.randperm(len(members), generator=draw)[:most]]] = True
    return chosen
