"""EfficientNet: inverted residuals with squeeze-and-excitation and SiLU.

Tan and Le, *EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks*, 2019
(https://arxiv.org/abs/1905.11946). Each block is one of MobileNetV2 whose widened channels are weighed by what all of
them hold on average: ``x + bn3(narrow(se(silu(bn2(depthwise(silu(bn1(widen(x)))))))))``.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from bnfold.models.layers import ConvNorm, SqueezeExcitation, for_each_stage, initialize


class MBConv(nn.Module):
    """Widen, filter each channel by itself, weigh the channels, narrow; a shortcut where the shape stays."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = in_channels * expansion
        layers: list[nn.Module] = []
        if expansion != 1:
            layers.append(ConvNorm(in_channels, hidden, activation=nn.SiLU))
        layers += [
            ConvNorm(hidden, hidden, kernel, stride, groups=hidden, activation=nn.SiLU),
            SqueezeExcitation(hidden, max(1, in_channels // 4), activation=nn.SiLU),
            ConvNorm(hidden, out_channels, activation=None),
        ]
        self.layers = nn.Sequential(*layers)
        self.residual = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        """(N, in, H, W) → (N, out, H / stride, W / stride)."""
        y: Tensor = self.layers(x)
        return x + y if self.residual else y


class EfficientNet(nn.Module):
    """3×3 stem, stages of blocks, 1×1 convolution, mean, dropout, linear.

    The defaults fit 8×8 and 32×32 images. The paper's B0 for 224×224 has ``widths=(16, 24, 40, 80, 112, 192, 320)``,
    ``blocks=(1, 2, 2, 3, 3, 4, 1)``, ``kernels=(3, 3, 5, 3, 5, 5, 3)``, ``strides=(1, 2, 2, 2, 1, 2, 1)``,
    ``expansion=(1, 6, 6, 6, 6, 6, 6)``, ``stem=32``, ``stem_stride=2``, ``head=1280`` and ``dropout=0.2``.

    Args:
        in_channels: channels of the image.
        num_classes: number of classes.
        widths: channels of each stage.
        blocks: blocks of each stage; one number serves all stages, here and below.
        kernels: side of the depthwise kernels of each stage.
        strides: of the first block of each stage; None halves the image in each stage but the first.
        expansion: how many times wider a block is inside.
        stem: channels of the stem.
        stem_stride: stride of the stem.
        head: channels before the mean.
        dropout: probability of setting a value before the last layer to zero in training.
    """

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 10,
        widths: Sequence[int] = (8, 16, 32),
        blocks: int | Sequence[int] = (1, 2, 2),
        kernels: int | Sequence[int] = (3, 3, 5),
        strides: Sequence[int] | None = None,
        expansion: int | Sequence[int] = (1, 4, 4),
        stem: int = 16,
        stem_stride: int = 1,
        head: int = 64,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        depths = for_each_stage("blocks", blocks, widths)
        sides = for_each_stage("kernels", kernels, widths)
        factors = for_each_stage("expansion", expansion, widths)
        steps = for_each_stage("strides", strides or (1, *[2] * (len(widths) - 1)), widths)
        layers: list[nn.Module] = [ConvNorm(in_channels, stem, 3, stem_stride, activation=nn.SiLU)]
        channels = stem
        for width, depth, kernel, stride, factor in zip(widths, depths, sides, steps, factors, strict=True):
            for block in range(depth):
                layers.append(MBConv(channels, width, kernel, stride if block == 0 else 1, factor))
                channels = width
        layers.append(ConvNorm(channels, head, activation=nn.SiLU))
        self.features = nn.Sequential(*layers)
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(head, num_classes)
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) → logits (N, num_classes)."""
        y = self.features(x).mean(dim=(2, 3))
        logits: Tensor = self.linear(self.dropout(y))
        return logits
