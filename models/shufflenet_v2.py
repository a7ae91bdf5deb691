"""ShuffleNet V2: half of the channels pass by untouched, and the halves are shuffled.

Ma et al., *ShuffleNet V2: Practical Guidelines for Efficient CNN Architecture Design*, 2018
(https://arxiv.org/abs/1807.11164). With ``a, b`` the halves of the channels, a block computes
``shuffle([a, relu(bn(conv1(bn(depthwise(relu(bn(conv1(b))))))))])``; at stride 2, both branches see all channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bnfold.models.layers import ConvNorm, for_each_stage, initialize


class ShuffleBlock(nn.Module):
    """Split the channels, convolve one half, shuffle; at stride 2, convolve all channels in both branches."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.split = stride == 1
        half = out_channels // 2
        self.left: nn.Module = nn.Identity()
        if not self.split:
            self.left = nn.Sequential(
                ConvNorm(in_channels, in_channels, 3, stride, groups=in_channels, activation=None),
                ConvNorm(in_channels, half),
            )
        self.right = nn.Sequential(
            ConvNorm(half if self.split else in_channels, half),
            ConvNorm(half, half, 3, stride, groups=half, activation=None),
            ConvNorm(half, half),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, in, H, W) → (N, out, H / stride, W / stride)."""
        left, right = x.chunk(2, dim=1) if self.split else (x, x)
        return shuffled(torch.cat([self.left(left), self.right(right)], dim=1))


def shuffled(x: Tensor) -> Tensor:
    """(N, C, H, W) → the same, the channels of the two halves in turn."""
    _, channels, height, width = x.shape
    return x.reshape(-1, 2, channels // 2, height, width).transpose(1, 2).reshape(-1, channels, height, width)


class ShuffleNetV2(nn.Module):
    """Stem, stages of blocks, 1×1 convolution, mean, linear.

    The defaults fit 8×8 and 32×32 images. The paper's ×1 network for 224×224 has ``widths=(116, 232, 464)``,
    ``blocks=(4, 8, 4)``, ``stem=24``, ``large_stem=True`` and ``head=1024``.

    Args:
        in_channels: channels of the image.
        num_classes: number of classes.
        widths: channels of each stage, even numbers.
        blocks: blocks of each stage, the first at stride 2; one number serves all stages.
        stem: channels of the stem.
        large_stem: whether the stem has stride 2 and a maximum over 3×3 at stride 2 behind it.
        head: channels before the mean.
    """

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 10,
        widths: Sequence[int] = (24, 48),
        blocks: int | Sequence[int] = 2,
        stem: int = 12,
        large_stem: bool = False,
        head: int = 64,
    ) -> None:
        super().__init__()
        depths = for_each_stage("blocks", blocks, widths)
        if any(width % 2 for width in widths):
            raise ValueError("widths must be even numbers")
        layers: list[nn.Module] = [ConvNorm(in_channels, stem, 3, stride=2 if large_stem else 1)]
        if large_stem:
            layers.append(nn.MaxPool2d(3, stride=2, padding=1))
        channels = stem
        for width, depth in zip(widths, depths, strict=True):
            for block in range(depth):
                layers.append(ShuffleBlock(channels, width, 2 if block == 0 else 1))
                channels = width
        layers.append(ConvNorm(channels, head))
        self.features = nn.Sequential(*layers)
        self.linear = nn.Linear(head, num_classes)
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) → logits (N, num_classes)."""
        logits: Tensor = self.linear(self.features(x).mean(dim=(2, 3)))
        return logits
