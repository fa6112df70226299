"""A small convolutional network."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn


class ConvNet(nn.Sequential):
    """3 x 3 convolutions with BatchNorm and ReLU, halving the image after each but the first.

    Args:
        shape: shape (C, H, W) of one image.
        classes: number of outputs.
        channels: channels of each layer; at least one.
        dropout: probability of dropping a feature before the classifier, in [0, 1).
    """

    def __init__(
        self,
        shape: Sequence[int],
        classes: int,
        channels: Sequence[int] = (32, 64, 128),
        dropout: float = 0.0,
    ) -> None:
        if len(shape) != 3:
            raise ValueError(f"ConvNet needs images (C, H, W); got inputs of shape {list(shape)}.")
        if not channels:
            raise ValueError("ConvNet needs at least one layer; channels is empty.")
        layers: list[nn.Module] = []
        for i, (fan_in, fan_out) in enumerate(zip([shape[0], *channels], channels, strict=False)):
            layers += [
                nn.Conv2d(fan_in, fan_out, 3, stride=1 if i == 0 else 2, padding=1, bias=False),
                nn.BatchNorm2d(fan_out),
                nn.ReLU(),
            ]
        super().__init__(
            *layers,
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(channels[-1], classes),
        )
