"""Inception with batch norm: parallel branches of several sizes, concatenated.

Szegedy et al., *Going Deeper with Convolutions*, 2014 (https://arxiv.org/abs/1409.4842), in the form of Ioffe and
Szegedy, *Batch Normalization*, 2015 (https://arxiv.org/abs/1502.03167), appendix: batch norm after each convolution,
two 3×3 convolutions in place of one 5×5, and modules at stride 2 between the stages. Every convolution computes
``relu(bn(conv(x)))``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bnfold.models.layers import ConvNorm, for_each_stage, initialize


class Inception(nn.Module):
    """1×1; 1×1 and 3×3; 1×1 and twice 3×3; a 3×3 mean and 1×1: a quarter of the channels from each."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        quarter = out_channels // 4
        self.branches = nn.ModuleList(
            [
                ConvNorm(in_channels, quarter),
                nn.Sequential(ConvNorm(in_channels, quarter), ConvNorm(quarter, quarter, 3)),
                nn.Sequential(
                    ConvNorm(in_channels, quarter), ConvNorm(quarter, quarter, 3), ConvNorm(quarter, quarter, 3)
                ),
                nn.Sequential(nn.AvgPool2d(3, stride=1, padding=1), ConvNorm(in_channels, quarter)),
            ]
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, in, H, W) → (N, out, H, W)."""
        return torch.cat([branch(x) for branch in self.branches], dim=1)


class Reduction(nn.Module):
    """1×1 and 3×3; 1×1 and twice 3×3; a 3×3 maximum: each at stride 2, the last with all channels of the input."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        half = (out_channels - in_channels) // 2
        self.branches = nn.ModuleList(
            [
                nn.Sequential(ConvNorm(in_channels, half), ConvNorm(half, half, 3, stride=2)),
                nn.Sequential(ConvNorm(in_channels, half), ConvNorm(half, half, 3), ConvNorm(half, half, 3, stride=2)),
                nn.MaxPool2d(3, stride=2, padding=1),
            ]
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, in, H, W) → (N, out, H / 2, W / 2)."""
        return torch.cat([branch(x) for branch in self.branches], dim=1)


class InceptionNet(nn.Module):
    """Stem, one stage of modules for each width with a reduction before each but the first, mean, linear.

    The defaults fit 8×8 and 32×32 images. For 224×224, ``widths=(256, 576, 1024)``, ``blocks=(2, 4, 2)``, ``stem=192``
    and ``large_stem=True`` come near the paper's network.

    Args:
        in_channels: channels of the image.
        num_classes: number of classes.
        widths: channels of each stage, multiples of four that grow by an even number.
        blocks: modules of each stage; one number serves all stages.
        stem: channels of the stem.
        large_stem: whether the stem is 7×7 at stride 2, a maximum over 3×3 at stride 2, 1×1, 3×3 and another
            maximum, rather than one 3×3 convolution.
    """

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 10,
        widths: Sequence[int] = (32, 64),
        blocks: int | Sequence[int] = 1,
        stem: int = 16,
        large_stem: bool = False,
    ) -> None:
        super().__init__()
        depths = for_each_stage("blocks", blocks, widths)
        if any(width % 4 for width in widths) or list(widths) != sorted(set(widths)):
            raise ValueError("widths must be growing multiples of four")
        layers: list[nn.Module] = [ConvNorm(in_channels, stem, 3)]
        if large_stem:
            layers = [
                ConvNorm(in_channels, stem // 3, 7, stride=2),
                nn.MaxPool2d(3, stride=2, padding=1),
                ConvNorm(stem // 3, stem // 3),
                ConvNorm(stem // 3, stem, 3),
                nn.MaxPool2d(3, stride=2, padding=1),
            ]
        channels = stem
        for index, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            if index > 0:
                layers.append(Reduction(channels, width))
                channels = width
            for _ in range(depth):
                layers.append(Inception(channels, width))
                channels = width
        self.features = nn.Sequential(*layers)
        self.linear = nn.Linear(channels, num_classes)
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) → logits (N, num_classes)."""
        logits: Tensor = self.linear(self.features(x).mean(dim=(2, 3)))
        return logits
