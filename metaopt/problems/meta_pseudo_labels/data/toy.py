"""Small data sets that come with scikit-learn: nothing is downloaded."""

from __future__ import annotations

import torch
from torch import Tensor

from metaopt.problems.meta_pseudo_labels.data.augment import GaussianNoise, Shift
from metaopt.problems.meta_pseudo_labels.data.semi_supervised import SemiSupervised, few_labels


def two_moons(
    points: int = 2000,
    labels_per_class: int = 3,
    test_points: int = 1000,
    noise: float = 0.1,
    sigma: float = 0.2,
    seed: int = 0,
) -> SemiSupervised:
    """Return two interleaved half circles, standardised, with a few labels on each.

    Args:
        points: training points, all of them among the unlabelled.
        labels_per_class: labelled points on each moon.
        test_points: points of a separate draw.
        noise: standard deviation of the points around the half circles.
        sigma: standard deviation of the strong view's noise, in standardised units.
        seed: seed of the points and of the choice of labels.

    Reference: Pham et al., Meta Pseudo Labels, CVPR 2021, section 3.1 (2,000 points, 6 labels).
    """
    from sklearn.datasets import make_moons

    def draw(n: int, state: int) -> tuple[Tensor, Tensor]:
        x, y = make_moons(n, noise=noise, random_state=state)
        return torch.from_numpy(x), torch.from_numpy(y).long()

    (x, y), (test, test_labels) = draw(points, 2 * seed), draw(test_points, 2 * seed + 1)
    mean, std = x.mean(0), x.std(0)
    x, test = ((x - mean) / std).float(), ((test - mean) / std).float()
    choice = torch.Generator().manual_seed(seed)
    strong = GaussianNoise(sigma)
    return few_labels(x, y, test, test_labels, 2, labels_per_class, choice, strong=strong)


def digits(
    labels_per_class: int = 5,
    test_points: int = 500,
    sigma: float = 0.3,
    shift: int = 1,
    seed: int = 0,
) -> SemiSupervised:
    """Return scikit-learn's 1,797 handwritten digits, 8 x 8 pixels in [0, 1].

    Args:
        labels_per_class: labelled examples of each digit.
        test_points: examples for the test; the rest is unlabelled.
        sigma: standard deviation of the strong view's noise.
        shift: largest shift of the strong view, in pixels.
        seed: seed of the split and of the choice of labels.
    """
    from sklearn.datasets import load_digits

    images, classes = load_digits(return_X_y=True)
    x = torch.from_numpy(images).float().view(-1, 1, 8, 8) / 16
    y = torch.from_numpy(classes).long()
    draw = torch.Generator().manual_seed(seed)
    if not 1 <= test_points <= len(x) - 10:
        raise ValueError(f"test_points must be between 1 and {len(x) - 10}; got {test_points}.")
    order = torch.randperm(len(x), generator=draw)
    test, train = order[:test_points], order[test_points:]
    return few_labels(
        x[train], y[train], x[test], y[test], 10, labels_per_class, draw,
        resplit=len(test) / len(train), strong=Shift(shift, sigma),
    )  # fmt: skip
