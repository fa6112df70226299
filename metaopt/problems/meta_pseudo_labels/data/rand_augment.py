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

    With a `magnitude` it is the released code of Meta Pseudo Labels: the operations of `FIXED`, all
    at the strength of this magnitude (see `fixed_strengths`), each left out with a probability that
    is uniform in [0.2, 0.8] for an image; after the square a second shift and mirroring.

    Args:
        mean, std: by channel: how the images were normalised.
        count: operations on each image, >= 0.
        cutout: side of the grey square, in pixels, >= 0.
        shift: largest shift of the crop, in pixels.
        flip: whether half of the images are mirrored first.
        magnitude: strength of all operations, in tenths, in [0, 20]; `None` draws strengths.

    References: Cubuk et al., RandAugment, NeurIPS 2020; DeVries and Taylor, arXiv 1708.04552
    (cutout); Sohn et al., FixMatch, NeurIPS 2020 (random strengths); Pham et al., Meta Pseudo
    Labels, CVPR 2021 (magnitude 16).
    """

    mean: Sequence[float]
    std: Sequence[float]
    count: int = 2
    cutout: int = 16
    shift: int = 4
    flip: bool = True
    magnitude: float | None = None

    def __post_init__(self) -> None:
        check_ranges(
            self, "count >= 0", "cutout >= 0", "shift >= 0", "0 <= magnitude <= 20 or null"
        )

    def __call__(self, x: Tensor, generator: Generator) -> Tensor:
        """Return one view of each normalised image of x, (B, 3, H, W)."""
        mean = torch.tensor(self.mean, device=x.device).view(-1, 1, 1)
        std = torch.tensor(self.std, device=x.device).view(-1, 1, 1)
        move = Shift(self.shift, flip=self.flip)
        y = (move(x, generator) * std + mean).clamp(0, 1)
        y = self._drawn(y, generator) if self.magnitude is None else self._fixed(y, generator)
        if self.cutout:
            y = _cut_out(y, self.cutout, torch.rand(2, len(x), 1, generator=generator).to(x))
        y = (y - mean) / std
        return y if self.magnitude is None else move(y, generator)

    def _drawn(self, y: Tensor, generator: Generator) -> Tensor:
        for _ in range(self.count):
            chosen = torch.randint(len(OPERATIONS), (len(y),), generator=generator)
            strength = 2 * torch.rand(len(y), 1, 1, 1, generator=generator).to(y) - 1
            y = _apply(y, OPERATIONS, chosen, strength)
        return y

    def _fixed(self, y: Tensor, generator: Generator) -> Tensor:
        strengths, either_way = (table.to(y) for table in fixed_strengths(self.magnitude or 0.0))
        probability = 0.2 + 0.6 * torch.rand(len(y), generator=generator)
        for _ in range(self.count):
            chosen = torch.randint(len(FIXED), (len(y),), generator=generator)
            sign = torch.randint(2, (len(y),), generator=generator).to(y) * 2 - 1
            centre = torch.rand(2, len(y), 1, generator=generator).to(y)
            chosen[torch.rand(len(y), generator=generator) > probability] = -1
            own = chosen.to(y.device)
            strength = strengths[own] * torch.where(either_way[own] > 0, sign, 1.0)
            square = torch.nonzero(chosen == len(FIXED) - 1).flatten().to(y.device)
            y = _apply(y, FIXED, chosen, strength.view(-1, 1, 1, 1))
            side = 2 * int(4 * (self.magnitude or 0.0) / 10)
            if len(square) and side:
                y[square] = _cut_out(y[square], side, centre[:, square])
        return y


def _apply(x: Tensor, operations: Sequence[Operation], chosen: Tensor, strength: Tensor) -> Tensor:
    """Return the images after each one's chosen operation; none where that is below 0."""
    changed = x.clone()
    for index, operation in enumerate(operations):
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


def invert(x: Tensor, s: Tensor) -> Tensor:
    """Return the negative."""
    return 1 - x


FIXED: tuple[Operation, ...] = (
    autocontrast, equalize, invert, rotate, posterize, solarize, colour, contrast, brightness,
    sharpness, shear_x, shear_y, translate_x, translate_y, identity,
)  # fmt: skip
"""The operations of a fixed magnitude; the last one stands for a cutout, which needs a place."""


def fixed_strengths(magnitude: float) -> tuple[Tensor, Tensor]:
    """Return the strength of each operation of `FIXED` at a magnitude M, and 1 where it has a sign.

    Rotation by 3 M degrees, shear by 0.03 M and translation by M / 80 of the side, either way;
    factors 0.1 + 0.18 M of colour, contrast, brightness and sharpness; int(0.4 M) bits; solarising
    from int(25.6 M) mod 256 of 255 on (a byte in the released code, which overflows above 10).
    """
    tenths = magnitude / 10
    factor = (1.8 * tenths - 0.9) / 0.95
    dropped = (8 - min(8, int(4 * tenths))) / 4
    threshold = (int(256 * tenths) % 256 - 0.5) / 255
    moved = [tenths, tenths, tenths / 2.4, tenths / 2.4]
    strengths = [0.0, 0.0, 0.0, tenths, dropped, 1 - threshold, *4 * [factor], *moved, 0.0]
    signed = [0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 0]
    return torch.tensor(strengths), torch.tensor(signed)


def _grey(x: Tensor) -> Tensor:
    weights = torch.tensor([0.299, 0.587, 0.114], device=x.device).view(3, 1, 1)
    return (x * weights).sum(1, keepdim=True).expand_as(x)


def _affine(x: Tensor, entries: list[Tensor]) -> Tensor:
    """Return the images under 2 x 3 matrices in coordinates from -1 to 1; grey outside."""
    theta = torch.stack(entries, -1).view(-1, 2, 3)
    where = affine_grid(theta, list(x.shape), align_corners=False)
    return grid_sample(x - 0.5, where, align_corners=False) + 0.5
