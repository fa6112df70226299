"""Data sets and augmentations."""

from metaopt.data.augment import GaussianNoise, Shift
from metaopt.data.cifar10 import cifar10
from metaopt.data.rand_augment import RandAugment
from metaopt.data.semi_supervised import Augmentation, SemiSupervised, identity
from metaopt.data.toy import digits, two_moons

__all__ = [
    "Augmentation",
    "GaussianNoise",
    "RandAugment",
    "SemiSupervised",
    "Shift",
    "cifar10",
    "digits",
    "identity",
    "two_moons",
]
