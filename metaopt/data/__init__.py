"""Data sets and augmentations."""

from metaopt.data.augment import GaussianNoise, Shift
from metaopt.data.semi_supervised import Augmentation, SemiSupervised, identity
from metaopt.data.toy import digits, two_moons

__all__ = [
    "Augmentation",
    "GaussianNoise",
    "SemiSupervised",
    "Shift",
    "digits",
    "identity",
    "two_moons",
]
