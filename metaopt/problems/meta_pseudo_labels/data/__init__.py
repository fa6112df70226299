"""Data sets with few labels, one's own images, and augmentations."""

from metaopt.problems.meta_pseudo_labels.data.augment import GaussianNoise, Shift
from metaopt.problems.meta_pseudo_labels.data.cifar10 import cifar10
from metaopt.problems.meta_pseudo_labels.data.images import images
from metaopt.problems.meta_pseudo_labels.data.rand_augment import RandAugment
from metaopt.problems.meta_pseudo_labels.data.semi_supervised import (
    Augmentation,
    SemiSupervised,
    identity,
)
from metaopt.problems.meta_pseudo_labels.data.toy import digits, two_moons

__all__ = [
    "Augmentation",
    "GaussianNoise",
    "RandAugment",
    "SemiSupervised",
    "Shift",
    "cifar10",
    "digits",
    "identity",
    "images",
    "two_moons",
]
