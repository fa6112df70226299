"""Data sets with few labels, your own images, and augmentations."""

from metaopt.problems.meta_pseudo_labels.data.augment import GaussianNoise, Shift
from metaopt.problems.meta_pseudo_labels.data.images import cifar10, images
from metaopt.problems.meta_pseudo_labels.data.rand_augment import RandAugment
from metaopt.problems.meta_pseudo_labels.data.semi_supervised import SemiSupervised
from metaopt.problems.meta_pseudo_labels.data.toy import digits, two_moons

__all__ = [
    "GaussianNoise", "RandAugment", "SemiSupervised", "Shift", "cifar10", "digits", "images",
    "two_moons",
]  # fmt: skip
