"""RandAugment on a batch: every image gets its own operations and strengths."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.nn.functional import affine_grid, conv2d, grid_sample, pad

from metaopt.engine.ranges import check_ranges
from metaopt.problems.meta_pseudo_labels.data.augment import Shift

Operation = Callable[[Tensor, Tensor], Tensor]
"""Maps images (B, 3, H, W) in [0, 1] and strengths (B, 1, 1, 1) in [-1, 1] to images."""


@dataclass(frozen=True)
class RandAugment:
    """Shift and mirror, then `count` random operations on each image, then cut a square out.

    Each operation is drawn from `OPERATIONS` with a strength uniform in [-1, 1]: rotation to 30
    degrees, shear to 0.3, translation to 0.3 of the side, factors of brightness, contrast, colour
    and sharpness in [0.05, 1.95], 4 to 8 bits, solarising, equalising, stretching the contrast.

    Args:
        mean, std: by channel: how the images were normalised.
        count: operations on each image, >= 0.
        cutout: side of the grey square, in pixels, >= 0.
        shift: largest shift of the crop, in pixels.
        flip: whether half of the images are mirrored first.

    References: Cubuk et al., RandAugment, NeurIPS 2020; DeVries and Taylor, arXiv 1708.04552
    (cutout); Sohn et al., FixMatch, NeurIPS 2020 (random strengths).
    """

    mean: Sequence[float]
    std: Sequence[float]
    count: int = 2
    cutout: int = 16
    shift: int = 4
    flip: bool = True

    def __post_init__(self) -> None:
        check_ranges(self, "count >= 0", "cutout >= 0", "shift >= 0")

    def __call__(self, x: Tensor, generator: Generator) -> Tensor:
        """Return one view of each normalised image of x, (B, 3, H, W)."""
        mean = torch.tensor(self.mean, device=x.device).view(-1, 1, 1)
        std = torch.tensor(self.std, device=x.device).view(-1, 1, 1)
        y = (Shift(self.shift, flip=self.flip)(x, generator) * std + mean).clamp(0, 1)
        for _ in range(self.count):
            chosen = torch.randint(len(OPERATIONS), (len(x),), generator=generator)
            strength = 2 * torch.rand(len(x), 1, 1, 1, generator=generator).to(x) - 1
            y = _apply(y, chosen, strength)
        if self.cutout:
            y = _cut_out(y, self.cutout, torch.rand(2, len(x), 1, generator=generator).to(x))
        return (y - mean) / std


def _apply(x: Tensor, chosen: Tensor, strength: Tensor) -> Tensor:
    """Return the images after each one's chosen operation."""
    changed = x.clone()
    for index, operation in enumerate(OPERATIONS):
        those = torch.nonzero(chosen == index).flatten().to(x.device)
        if len(those):
            changed[those] = operation(x[those], strength[those]).clamp(0, 1)
    return changed


def _cut_out(x: Tensor, side: int, centre: Tensor) -> Tensor:
    """Return the images with a grey square around each centre, (2, B, 1) in [0, 1)."""
    height, width = x.shape[-2:]
    row, column = (torch.arange(n, device=x.device) for n in (height, width))
    top, left = (centre[0] * height).floor() - side // 2, (centre[1] * width).floor() - side // 2
    rows, columns = (row >= top) & (row < top + side), (column >= left) & (column < left + side)
    return x.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], 0.5)


def identity(x: Tensor, s: Tensor) -> Tensor:
    """Return the images."""
    return x


def autocontrast(x: Tensor, s: Tensor) -> Tensor:
    """Stretch each channel to [0, 1]."""
    low, high = x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
    return torch.where(high > low, (x - low) / (high - low).clamp_min(1e-6), x)


def equalize(x: Tensor, s: Tensor) -> Tensor:
    """Make each channel's histogram of 256 levels flat."""
    levels = (x * 255).round().long().flatten(2)
    counts = torch.zeros(*levels.shape[:2], 256, device=x.device)
    counts.scatter_add_(2, levels, torch.ones_like(levels, dtype=counts.dtype))
    below = counts.cumsum(2)
    first = below.gather(2, levels.amin(2, keepdim=True))
    flat = (below - first) / (levels.shape[2] - first).clamp_min(1)
    constant = first == levels.shape[2]
    return torch.where(constant, x.flatten(2), flat.gather(2, levels)).view_as(x)


def brightness(x: Tensor, s: Tensor) -> Tensor:
    """Scale all channels."""
    return x * (1 + 0.95 * s)


def colour(x: Tensor, s: Tensor) -> Tensor:
    """Move each pixel away from its grey, or towards it."""
    return torch.lerp(_grey(x), x, 1 + 0.95 * s)


def contrast(x: Tensor, s: Tensor) -> Tensor:
    """Move each pixel away from the image's mean grey, or towards it."""
    return torch.lerp(_grey(x).mean((2, 3), keepdim=True).expand_as(x), x, 1 + 0.95 * s)


def sharpness(x: Tensor, s: Tensor) -> Tensor:
    """Move each pixel away from the mean of its neighbours, or towards it."""
    kernel = torch.ones(3, 3, device=x.device)
    kernel[1, 1] = 5
    kernel = (kernel / kernel.sum()).expand(x.shape[1], 1, 3, 3)
    smooth = conv2d(pad(x, (1, 1, 1, 1), mode="replicate"), kernel, groups=x.shape[1])
    return torch.lerp(smooth, x, 1 + 0.95 * s)


def posterize(x: Tensor, s: Tensor) -> Tensor:
    """Keep the highest 4 to 8 bits."""
    step = 2 ** (4 * s.abs()).round()
    return torch.floor(x * 255 / step) * step / 255


def solarize(x: Tensor, s: Tensor) -> Tensor:
    """Invert the pixels above a threshold."""
    return torch.where(x <= 1 - s.abs(), x, 1 - x)


def rotate(x: Tensor, s: Tensor) -> Tensor:
    """Turn by up to 30 degrees."""
    angle = s.flatten() * torch.pi / 6
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    return _affine(x, [cos, -sin, zero, sin, cos, zero])


def _entry(row: int, column: int, size: float) -> Operation:
    """Return the affine map that is the identity but for one entry, `size` times the strength."""

    def change(x: Tensor, s: Tensor) -> Tensor:
        s = s.flatten()
        one, zero = torch.ones_like(s), torch.zeros_like(s)
        entries = [one, zero, zero, zero, one, zero]
        entries[3 * row + column] = size * s
        return _affine(x, entries)

    return change


shear_x, shear_y = _entry(0, 1, 0.3), _entry(1, 0, 0.3)
translate_x, translate_y = _entry(0, 2, 0.6), _entry(1, 2, 0.6)  # 0.3 of the side, which is 2

OPERATIONS: tuple[Operation, ...] = (
    identity, autocontrast, equalize, brightness, colour, contrast, sharpness, posterize,
    solarize, rotate, shear_x, shear_y, translate_x, translate_y,
)  # fmt: skip


def _grey(x: Tensor) -> Tensor:
    weights = torch.tensor([0.299, 0.587, 0.114], device=x.device).view(3, 1, 1)
    return (x * weights).sum(1, keepdim=True).expand_as(x)


def _affine(x: Tensor, entries: list[Tensor]) -> Tensor:
    """Return the images under 2 x 3 matrices in coordinates from -1 to 1; grey outside."""
    theta = torch.stack(entries, -1).view(-1, 2, 3)
    where = affine_grid(theta, list(x.shape), align_corners=False)
    return grid_sample(x - 0.5, where, align_corners=False) + 0.5
