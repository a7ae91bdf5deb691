"""A plain network of 3×3 convolutions that is trained with two more branches beside each.

Ding et al., *RepVGG: Making VGG-style ConvNets Great Again*, 2021 (https://arxiv.org/abs/2101.03697). Each block
computes ``relu(bn₃(conv3×3(x)) + bn₁(conv1×1(x)) + bn₀(x))``, the last where the shape stays; for inference it is one
3×3 convolution and ReLU. RepVGG-A0 of the paper, for 224×224, is ``in_channels=3, num_classes=1000,
widths=(48, 48, 96, 192, 1280), blocks=(1, 2, 4, 14, 1), strides=(2, 2, 2, 2, 2)``.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from bnfold.models.reparameterization import Kernel, NormedConv, Reparameterizable
from bnfold.models.stages import plan_stages


class RepVGGBlock(Reparameterizable):
    """3×3, 1×1 and identity, each with its batch norm, without the ReLU."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.dense = NormedConv(in_channels, out_channels, 3, stride, groups)
        self.point = NormedConv(in_channels, out_channels, 1, stride, groups)
        self.identity = nn.BatchNorm2d(in_channels) if stride == 1 and in_channels == out_channels else None

    def forward(self, x: Tensor) -> Tensor:
        """(N, in, H, W) → (N, out, H / stride, W / stride)."""
        y: Tensor = self.dense(x) + self.point(x)
        return y if self.identity is None else y + self.identity(x)

    def merged(self) -> nn.Conv2d:
        """One 3×3 convolution."""
        conv = self.dense.conv
        kernel = self.dense.kernel() + self.point.kernel()
        if self.identity is not None:
            kernel += Kernel.identity(conv.out_channels, conv.groups).normalized(self.identity)
        return kernel.as_conv(conv)


class RepVGG(nn.Module):
    """Blocks and ReLUs, mean, linear.

    Args:
        in_channels: channels of the image.
        num_classes: number of classes.
        widths: channels of each stage.
        blocks: blocks of each stage; one number serves all stages.
        strides: stride of the first block of each stage; where none are given, each stage but the first has 2.
        groups: of the convolutions of every other block, from the third on; 2 and 4 are the g2 and g4 of the paper.
    """

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 10,
        widths: Sequence[int] = (16, 32, 64),
        blocks: int | Sequence[int] = 2,
        strides: Sequence[int] | None = None,
        groups: int = 1,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        plan = [block for stage in plan_stages(in_channels, widths, blocks, strides) for block in stage]
        for index, block in enumerate(plan):
            grouped = groups if index >= 2 and index % 2 == 0 else 1
            layers += [RepVGGBlock(*block, groups=grouped), nn.ReLU()]
        self.features = nn.Sequential(*layers)
        self.linear = nn.Linear(widths[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) → logits (N, num_classes)."""
        logits: Tensor = self.linear(self.features(x).mean(dim=(2, 3)))
        return logits
