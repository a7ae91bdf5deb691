"""MobileNetV2: inverted residuals with linear bottlenecks.

Sandler et al., *MobileNetV2: Inverted Residuals and Linear Bottlenecks*, 2018 (https://arxiv.org/abs/1801.04381).
Each block widens its input by 1×1, filters each channel by itself, and narrows it again, without an activation at
the end: ``x + bn3(narrow(relu6(bn2(depthwise(relu6(bn1(widen(x))))))))``, the sum only where the shape stays.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from bnfold.models.layers import ConvNorm, for_each_stage, initialize


class InvertedResidual(nn.Module):
    """Widen, filter each channel by itself, narrow; around it a shortcut where the shape stays."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = in_channels * expansion
        layers: list[nn.Module] = []
        if expansion != 1:
            layers.append(ConvNorm(in_channels, hidden, activation=nn.ReLU6))
        layers += [
            ConvNorm(hidden, hidden, 3, stride, groups=hidden, activation=nn.ReLU6),
            ConvNorm(hidden, out_channels, activation=None),
        ]
        self.layers = nn.Sequential(*layers)
        self.residual = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        """(N, in, H, W) → (N, out, H / stride, W / stride)."""
        y: Tensor = self.layers(x)
        return x + y if self.residual else y


class MobileNetV2(nn.Module):
    """3×3 stem, stages of inverted residuals, 1×1 convolution, mean, linear.

    The defaults fit 8×8 and 32×32 images. The paper's network for 224×224 has ``widths=(16, 24, 32, 64, 96, 160,
    320)``, ``blocks=(1, 2, 3, 4, 3, 3, 1)``, ``strides=(1, 2, 2, 2, 1, 2, 1)``, ``expansion=(1, 6, 6, 6, 6, 6, 6)``,
    ``stem=32``, ``stem_stride=2`` and ``head=1280``.

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
        expansion: int | Sequence[int] = (1, 4, 4),
        stem: int = 16,
        stem_stride: int = 1,
        head: int = 64,
    ) -> None:
        super().__init__()
        depths = for_each_stage("blocks", blocks, widths)
        factors = for_each_stage("expansion", expansion, widths)
        steps = for_each_stage("strides", strides or (1, *[2] * (len(widths) - 1)), widths)
        layers: list[nn.Module] = [ConvNorm(in_channels, stem, 3, stem_stride, activation=nn.ReLU6)]
        channels = stem
        for width, depth, stride, factor in zip(widths, depths, steps, factors, strict=True):
            for block in range(depth):
                layers.append(InvertedResidual(channels, width, stride if block == 0 else 1, factor))
                channels = width
        layers.append(ConvNorm(channels, head, activation=nn.ReLU6))
        self.features = nn.Sequential(*layers)
        self.linear = nn.Linear(head, num_classes)
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) → logits (N, num_classes)."""
        logits: Tensor = self.linear(self.features(x).mean(dim=(2, 3)))
        return logits
