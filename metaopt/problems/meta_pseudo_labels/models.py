"""Networks, each made from the shape of one input and the number of classes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu

from metaopt.nn import MLP, Architecture


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


class WideResNet(nn.Module):
    """Pre-activation residual network WRN-depth-width (Zagoruyko and Komodakis, BMVC 2016).

    A 3 x 3 convolution to 16 channels, three groups of (depth - 4) / 6 blocks with 16, 32 and 64
    times `width` channels, the last two groups at half the resolution of the one before, BatchNorm,
    average pooling, a linear classifier. WRN-28-2 has 1,467,610 parameters on 3 channels and 10
    classes.

    Args:
        shape: shape (C, H, W) of one image.
        classes: number of outputs.
        depth: 6 n + 4 layers.
        width: factor on the channels.
        dropout: probability of dropping a feature before the classifier, in [0, 1).
        slope: negative slope of the activations; 0 is ReLU, 0.1 usual in semi-supervised learning.
        momentum: share of a new batch in BatchNorm's running statistics.
        eps: what BatchNorm adds to a variance.
    """

    def __init__(
        self,
        shape: Sequence[int],
        classes: int,
        depth: int = 28,
        width: int = 2,
        dropout: float = 0.0,
        slope: float = 0.1,
        momentum: float = 0.01,
        eps: float = 1e-5,
    ) -> None:
        if depth < 10 or (depth - 4) % 6:
            raise ValueError(f"WideResNet needs depth = 6 n + 4 with n >= 1; got {depth}.")
        if len(shape) != 3:
            raise ValueError(f"WideResNet needs images (C, H, W); got shape {list(shape)}.")
        super().__init__()
        channels, self.slope = [16, 16 * width, 32 * width, 64 * width], slope
        self.stem = nn.Conv2d(shape[0], channels[0], 3, padding=1, bias=False)
        blocks: list[nn.Module] = []
        for group in range(3):
            for i in range((depth - 4) // 6):
                fan_in = channels[group + (i > 0)]
                stride = 2 if group > 0 and i == 0 else 1
                blocks.append(_Block(fan_in, channels[group + 1], stride, slope, momentum, eps))
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.BatchNorm2d(channels[3], eps, momentum)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(channels[3], classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, slope, "fan_out")
        nn.init.xavier_normal_(self.classifier.weight)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, classes) of images (B, C, H, W)."""
        x = leaky_relu(self.norm(self.blocks(self.stem(x))), self.slope)
        result: Tensor = self.classifier(self.dropout(x.mean((2, 3))))
        return result


class _Block(nn.Module):
    """Two 3 x 3 convolutions; where the shape changes, the shortcut sees the activation too."""

    def __init__(
        self, fan_in: int, fan_out: int, stride: int, slope: float, momentum: float, eps: float
    ) -> None:
        super().__init__()
        self.slope = slope
        self.norm1 = nn.BatchNorm2d(fan_in, eps, momentum)
        self.conv1 = nn.Conv2d(fan_in, fan_out, 3, stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(fan_out, eps, momentum)
        self.conv2 = nn.Conv2d(fan_out, fan_out, 3, padding=1, bias=False)
        same = fan_in == fan_out and stride == 1
        self.shortcut = None if same else nn.Conv2d(fan_in, fan_out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = leaky_relu(self.norm1(x), self.slope)
        shortcut = x if self.shortcut is None else self.shortcut(h)
        h = leaky_relu(self.norm2(self.conv1(h)), self.slope)
        result: Tensor = shortcut + self.conv2(h)
        return result


class Reduced(nn.Module):
    """The teacher of Reduced Meta Pseudo Labels: a fixed network and a trained correction.

    logits(x) = log p(x) + head(p(x)),  p = softmax(base(x)).

    The head's last layer starts at zero, so that the first labels are the base's own. `base` is
    frozen: `Network` counts its weights as buffers, and pretraining trains it.

    Args:
        shape: shape of one input.
        classes: number of outputs.
        base: architecture of the fixed network.
        widths: hidden layers of the head.

    Reference: Pham et al., Meta Pseudo Labels, CVPR 2021, section 4 (memory of a large teacher).
    """

    def __init__(
        self,
        shape: Sequence[int],
        classes: int,
        base: Architecture,
        widths: Sequence[int] = (32,),
    ) -> None:
        super().__init__()
        self.base = base(shape, classes).requires_grad_(False)
        self.head = MLP([classes], classes, widths)
        for parameter in self.head[-1].parameters():
            nn.init.zeros_(parameter)

    def train(self, mode: bool = True) -> Reduced:
        """Set the mode; the base is in training mode only where it has been unfrozen."""
        super().train(mode)
        self.base.train(mode and any(p.requires_grad for p in self.base.parameters()))
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, classes)."""
        logits = torch.log_softmax(self.base(x), -1)
        return logits.add(self.head(logits.exp()))
