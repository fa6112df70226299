"""Random views of a batch, drawn from a CPU generator and applied on the batch's device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from metaopt.engine.ranges import check_ranges


@dataclass(frozen=True)
class GaussianNoise:
    """Add independent normal noise.

    Args:
        sigma: standard deviation, >= 0.
    """

    sigma: float

    def __post_init__(self) -> None:
        check_ranges(self, "sigma >= 0")

    def __call__(self, x: Tensor, generator: Generator) -> Tensor:
        """Return x + sigma * N(0, 1)."""
        noise = torch.randn(x.shape, generator=generator, dtype=x.dtype)
        return torch.add(x, noise.to(x.device), alpha=self.sigma)


@dataclass(frozen=True)
class Shift:
    """Move each image by up to `pixels` in each direction, fill with zeros, add normal noise.

    Args:
        pixels: largest shift, >= 0.
        sigma: standard deviation of the noise, >= 0.
        flip: whether half of the images are mirrored left to right.
    """

    pixels: int
    sigma: float = 0.0
    flip: bool = False

    def __post_init__(self) -> None:
        check_ranges(self, "pixels >= 0", "sigma >= 0")

    def __call__(self, x: Tensor, generator: Generator) -> Tensor:
        """Return one view of each image of x, (B, C, H, W)."""
        batch, height, width = len(x), x.shape[-2], x.shape[-1]
        p = self.pixels
        offset = torch.randint(-p, p + 1, (2, batch, 1), generator=generator).to(x.device)
        rows = torch.arange(height, device=x.device) + offset[0]
        columns = torch.arange(width, device=x.device) + offset[1]
        if self.flip:
            mirrored = torch.rand(batch, 1, generator=generator).to(x.device) < 0.5
            columns = torch.where(mirrored, width - 1 - columns, columns)
        inside = (
            ((rows >= 0) & (rows < height))[:, None, :, None]
            & ((columns >= 0) & (columns < width))[:, None, None, :]
        )  # fmt: skip
        index = (
            rows.clamp(0, height - 1)[:, :, None] * width + columns.clamp(0, width - 1)[:, None, :]
        )
        flat = x.flatten(-2).gather(-1, index.flatten(1)[:, None].expand(-1, x.shape[1], -1))
        moved = flat.view_as(x) * inside
        return GaussianNoise(self.sigma)(moved, generator) if self.sigma else moved
