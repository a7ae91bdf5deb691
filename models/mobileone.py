"""Depthwise and pointwise convolutions, each trained as several that are added up.

Vasu et al., *MobileOne: An Improved One Millisecond Mobile Backbone*, 2022 (https://arxiv.org/abs/2206.04040). With
``k`` branches, over-parameterized, a block computes ``Σᵢ bnᵢ(convᵢ(x)) + bn(conv1×1(x)) + bn(x)``: the 1×1, a scale
for each channel where the block is depthwise, where the ``k`` are larger than that, and the last where the shape
stays. For inference it is one convolution. MobileOne-S0, for 224×224, is ``in_channels=3, num_classes=1000,
widths=(48, 48, 128, 256, 1024), blocks=(1, 2, 8, 10, 1), strides=(2, 2, 2, 2, 2)``; S4 is ``widths=(64, 192, 448, 896,
2048), branches=1, squeeze_excite=6`` with the same blocks and strides.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from bnfold.models.layers import SqueezeExcitation
from bnfold.models.reparameterization import Kernel, NormedConv, Reparameterizable, total
from bnfold.models.stages import plan_stages


class MobileOneBlock(Reparameterizable):
    """``branches`` convolutions, a 1×1 if they are larger, and the identity, each with its batch norm."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, groups: int = 1, branches: int = 4
    ) -> None:
        super().__init__()
        sizes = [kernel_size] * branches + ([1] if kernel_size > 1 else [])
        self.out_channels = out_channels
        self.branches = nn.ModuleList(NormedConv(in_channels, out_channels, size, stride, groups) for size in sizes)
        self.skip = nn.BatchNorm2d(in_channels) if stride == 1 and in_channels == out_channels else None

    def forward(self, x: Tensor) -> Tensor:
        """(N, in, H, W) → (N, out, H / stride, W / stride)."""
        first, *others = self.branches
        y: Tensor = first(x)
        for branch in others:
            y = y + branch(x)
        return y if self.skip is None else y + self.skip(x)

    def merged(self) -> nn.Conv2d:
        """One convolution."""
        branches = [branch for branch in self.branches if isinstance(branch, NormedConv)]
        conv = branches[0].conv
        kernel = total(branch.kernel() for branch in branches)
        if self.skip is not None:
            kernel += Kernel.identity(conv.out_channels, conv.groups).normalized(self.skip)
        return kernel.as_conv(conv)


class MobileOne(nn.Module):
    """A 3×3 block for each block of the first stage, then pairs of a depthwise 3×3 and a 1×1; mean, linear.

    Args:
        in_channels: channels of the image.
        num_classes: number of classes.
        widths: channels of each stage; the first is the stem.
        blocks: blocks of each stage; one number serves all stages.
        strides: stride of the first block of each stage; where none are given, each stage but the first has 2.
        branches: the ``k`` of each block after the stem, which has one.
        squeeze_excite: how many of the last pairs weigh their channels before each ReLU.
    """

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 10,
        widths: Sequence[int] = (16, 32, 64),
        blocks: int | Sequence[int] = 1,
        strides: Sequence[int] | None = None,
        branches: int = 4,
        squeeze_excite: int = 0,
    ) -> None:
        super().__init__()
        stem, *stages = plan_stages(in_channels, widths, blocks, strides)
        layers: list[nn.Module] = []
        for block in stem:
            layers += [MobileOneBlock(block.in_channels, block.out_channels, 3, block.stride, branches=1), nn.ReLU()]
        pairs = [block for stage in stages for block in stage]
        for index, (channels, out_channels, stride) in enumerate(pairs):
            weighed = index >= len(pairs) - squeeze_excite
            for mixer in (
                MobileOneBlock(channels, channels, 3, stride, groups=channels, branches=branches),
                MobileOneBlock(channels, out_channels, 1, branches=branches),
            ):
                layers.append(mixer)
                if weighed:
                    layers.append(SqueezeExcitation(mixer.out_channels, max(1, mixer.out_channels // 16)))
                layers.append(nn.ReLU())
        self.features = nn.Sequential(*layers)
        self.linear = nn.Linear(widths[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) → logits (N, num_classes)."""
        logits: Tensor = self.linear(self.features(x).mean(dim=(2, 3)))
        return logits
