"""DenseNet: every layer reads the outputs of all layers before it.

Huang et al., *Densely Connected Convolutional Networks*, 2016 (https://arxiv.org/abs/1608.06993), the variant with
bottlenecks (DenseNet-BC). Each layer computes ``[x, conv3(relu(bn2(conv1(relu(bn1(x))))))]``, where ``[ ]`` is
concatenation. Each ``bn1`` scales the same channels in another way, and a ReLU follows it: these are batch norms that
algebra cannot all fold.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnfold.models.layers import for_each_stage, initialize


class DenseLayer(nn.Module):
    """Batch norm, ReLU and 1×1 convolution to ``4 · growth`` channels; the same with 3×3 to ``growth`` channels."""

    def __init__(self, in_channels: int, growth: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, 4 * growth, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in, H, W) → (N, in + growth, H, W)."""
        y = self.conv1(F.relu(self.bn1(x)))
        y = self.conv2(F.relu(self.bn2(y)))
        return torch.cat([x, y], dim=1)


class Transition(nn.Sequential):
    """Batch norm, ReLU, a 1×1 convolution to half the channels, and a mean over 2×2 pixels."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(
            nn.BatchNorm2d(in_channels),
            nn.ReLU(),
            nn.Conv2d(in_channels, out_channels, 1, bias=False),
            nn.AvgPool2d(2),
        )


class DenseNet(nn.Module):
    """Stem, blocks of dense layers with transitions in between, batch norm, ReLU, mean, linear.

    The defaults fit 8×8 and 32×32 images. The paper's DenseNet-121 for 224×224 has ``blocks=(6, 12, 24, 16)``,
    ``growth=32``, ``stem=64`` and ``large_stem=True``.

    Args:
        in_channels: channels of the image.
        num_classes: number of classes.
        blocks: layers of each block.
        growth: channels that each layer adds.
        stem: channels of the stem.
        large_stem: whether the stem is 7×7 at stride 2 with batch norm, ReLU and a maximum over 3×3 at stride 2,
            rather than one 3×3 convolution.
    """

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 10,
        blocks: Sequence[int] = (3, 3),
        growth: int = 8,
        stem: int = 16,
        large_stem: bool = False,
    ) -> None:
        super().__init__()
        depths = for_each_stage("blocks", blocks, blocks)
        layers: list[nn.Module] = [nn.Conv2d(in_channels, stem, 3, padding=1, bias=False)]
        if large_stem:
            layers = [
                nn.Conv2d(in_channels, stem, 7, stride=2, padding=3, bias=False),
                nn.BatchNorm2d(stem),
                nn.ReLU(),
                nn.MaxPool2d(3, stride=2, padding=1),
            ]
        channels = stem
        for index, depth in enumerate(depths):
            if index > 0:
                layers.append(Transition(channels, channels // 2))
                channels //= 2
            for _ in range(depth):
                layers.append(DenseLayer(channels, growth))
                channels += growth
        self.features = nn.Sequential(*layers, nn.BatchNorm2d(channels), nn.ReLU())
        self.linear = nn.Linear(channels, num_classes)
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) → logits (N, num_classes)."""
        logits: Tensor = self.linear(self.features(x).mean(dim=(2, 3)))
        return logits
