"""A residual network with batch norm.

He et al., *Deep Residual Learning for Image Recognition*, 2015 (https://arxiv.org/abs/1512.03385). Each block computes
``relu(bn2(conv2(relu(bn1(conv1(x))))) + shortcut(x))``; a bottleneck has a 1×1, a 3×3 and a 1×1 convolution, the
3×3 with the stride, as in torchvision.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from bnfold.models.layers import ConvNorm, for_each_stage, initialize


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut, which is a 1×1 convolution where the shape changes."""

    expansion = 1  # channels of the output for each of the width

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False),
                nn.BatchNorm2d(out_channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        """(N, in, H, W) → (N, out, H / stride, W / stride)."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.relu(y + self.shortcut(x))


class Bottleneck(nn.Module):
    """A 1×1, a 3×3 and a 1×1 convolution to four times the width, and a shortcut as in :class:`BasicBlock`."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        out_channels = self.expansion * width
        self.layers = nn.Sequential(
            ConvNorm(in_channels, width),
            ConvNorm(width, width, 3, stride),
            ConvNorm(width, out_channels, activation=None),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = ConvNorm(in_channels, out_channels, stride=stride, activation=None)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in, H, W) → (N, 4·width, H / stride, W / stride)."""
        y: Tensor = self.layers(x)
        return F.relu(y + self.shortcut(x))


class ResNet(nn.Module):
    """Stem, one stage of blocks for each width (each but the first halves the image), mean, linear.

    The defaults fit 8×8 and 32×32 images. ResNet-18 for 224×224 has ``widths=(64, 128, 256, 512)``, ``blocks=2`` and
    ``large_stem=True``; ResNet-50 has ``blocks=(3, 4, 6, 3)`` and ``bottleneck=True`` besides.

    Args:
        in_channels: channels of the image.
        num_classes: number of classes.
        widths: channels of each stage.
        blocks: blocks of each stage; one number serves all stages.
        bottleneck: whether blocks are bottlenecks, which give four times their width.
        large_stem: whether the stem is 7×7 at stride 2 with a maximum over 3×3 at stride 2 behind it, rather than one
            3×3 convolution.
    """

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 10,
        widths: Sequence[int] = (16, 32, 64),
        blocks: int | Sequence[int] = 1,
        bottleneck: bool = False,
        large_stem: bool = False,
    ) -> None:
        super().__init__()
        depths = for_each_stage("blocks", blocks, widths)
        block = Bottleneck if bottleneck else BasicBlock
        size, step = (7, 2) if large_stem else (3, 1)
        self.conv = nn.Conv2d(in_channels, widths[0], size, step, size // 2, bias=False)
        self.bn = nn.BatchNorm2d(widths[0])
        self.pool: nn.Module = nn.MaxPool2d(3, stride=2, padding=1) if large_stem else nn.Identity()
        stages: list[nn.Module] = []
        channels = widths[0]
        for index, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            stage: list[nn.Module] = []
            for number in range(depth):
                stage.append(block(channels, width, 2 if index > 0 and number == 0 else 1))
                channels = block.expansion * width
            stages.append(nn.Sequential(*stage))
        self.stages = nn.Sequential(*stages)
        self.linear = nn.Linear(channels, num_classes)
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) → logits (N, num_classes)."""
        y = self.pool(F.relu(self.bn(self.conv(x))))
        y = self.stages(y)
        logits: Tensor = self.linear(y.mean(dim=(2, 3)))
        return logits
