"""GhostNet: half of the channels are made from the other half, by cheap filters.

Han et al., *GhostNet: More Features from Cheap Operations*, 2019 (https://arxiv.org/abs/1911.11907). A ghost module
computes ``[p, g]`` with ``p = relu(bn(conv1(x)))`` and ``g = relu(bn(depthwise(p)))``; a bottleneck is two of them,
the second without ReLU, with a depthwise convolution at stride 2 and squeeze-and-excitation in between, around a
shortcut.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from bnfold.models.layers import ConvNorm, SqueezeExcitation, for_each_stage, initialize


class GhostModule(nn.Module):
    """A 1×1 convolution to half the channels, and a depthwise 3×3 convolution of its result for the rest."""

    def __init__(self, in_channels: int, out_channels: int, activation: Callable[[], nn.Module] | None) -> None:
        super().__init__()
        primary = (out_channels + 1) // 2
        self.out_channels = out_channels
        self.primary = ConvNorm(in_channels, primary, activation=activation)
        self.cheap = ConvNorm(primary, primary, 3, groups=primary, activation=activation)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in, H, W) → (N, out, H, W)."""
        primary = self.primary(x)
        return torch.cat([primary, self.cheap(primary)], dim=1)[:, : self.out_channels]


class GhostBottleneck(nn.Module):
    """Widen and narrow by ghost modules; the shortcut is depthwise and 1×1 where the shape changes."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: int, weighed: bool) -> None:
        super().__init__()
        hidden = in_channels * expansion
        layers: list[nn.Module] = [GhostModule(in_channels, hidden, nn.ReLU)]
        if stride != 1:
            layers.append(ConvNorm(hidden, hidden, 3, stride, groups=hidden, activation=None))
        if weighed:
            layers.append(SqueezeExcitation(hidden, max(1, hidden // 4), gate=nn.Hardsigmoid))
        layers.append(GhostModule(hidden, out_channels, None))
        self.layers = nn.Sequential(*layers)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                ConvNorm(in_channels, in_channels, 3, stride, groups=in_channels, activation=None),
                ConvNorm(in_channels, out_channels, activation=None),
            )

    def forward(self, x: Tensor) -> Tensor:
        """(N, in, H, W) → (N, out, H / stride, W / stride)."""
        y: Tensor = self.layers(x) + self.shortcut(x)
        return y


class GhostNet(nn.Module):
    """Stem, stages of bottlenecks, 1×1 convolution, mean, linear.

    The defaults fit 8×8 and 32×32 images. For 224×224, ``widths=(16, 24, 40, 80, 112, 160)``, ``blocks=(1, 2, 2, 4, 2,
    5)``, ``strides=(1, 2, 2, 2, 1, 2)``, ``expansion=(1, 3, 3, 3, 6, 6)``, ``stem=16``, ``stem_stride=2`` and
    ``head=960`` come near the paper's network.

    Args:
        in_channels: channels of the image.
        num_classes: number of classes.
        widths: channels of each stage.
        blocks: blocks of each stage; one number serves all stages, here and below.
        strides: of the first block of each stage; None halves the image in each stage but the first.
        expansion: how many times wider a block is inside.
        stem: channels of the stem.
        stem_stride: stride of the stem.
        head: channels before the mean.
    """

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 10,
        widths: Sequence[int] = (8, 16, 32),
        blocks: int | Sequence[int] = (1, 2, 2),
        strides: Sequence[int] | None = None,
        expansion: int | Sequence[int] = (1, 3, 3),
        stem: int = 8,
        stem_stride: int = 1,
        head: int = 64,
    ) -> None:
        super().__init__()
        depths = for_each_stage("blocks", blocks, widths)
        factors = for_each_stage("expansion", expansion, widths)
        steps = for_each_stage("strides", strides or (1, *[2] * (len(widths) - 1)), widths)
        layers: list[nn.Module] = [ConvNorm(in_channels, stem, 3, stem_stride)]
        channels = stem
        for index, (width, depth, stride, factor) in enumerate(zip(widths, depths, steps, factors, strict=True)):
            for block in range(depth):
                step = stride if block == 0 else 1
                layers.append(GhostBottleneck(channels, width, step, factor, weighed=index % 2 == 1))
                channels = width
        layers.append(ConvNorm(channels, head))
        self.features = nn.Sequential(*layers)
        self.linear = nn.Linear(head, num_classes)
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) → logits (N, num_classes)."""
        logits: Tensor = self.linear(self.features(x).mean(dim=(2, 3)))
        return logits
