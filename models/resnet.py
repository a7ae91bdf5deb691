"""A residual network with batch norm, sized for small images.

He et al., *Deep Residual Learning for Image Recognition*, 2015 (https://arxiv.org/abs/1512.03385), with the
3×3 stem of its CIFAR variant. Each block computes ``relu(bn2(conv2(relu(bn1(conv1(x))))) + shortcut(x))``.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut, which is a 1×1 convolution where the shape changes."""

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


class ResNet(nn.Module):
    """Stem, one stage of blocks for each width (each but the first halves the image), mean, linear.

    Args:
        in_channels: channels of the image.
        num_classes: number of classes.
        widths: channels of each stage.
        blocks: blocks of each stage; one number serves all stages.
    """

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 10,
        widths: Sequence[int] = (16, 32, 64),
        blocks: int | Sequence[int] = 1,
    ) -> None:
        super().__init__()
        depths = [blocks] * len(widths) if isinstance(blocks, int) else list(blocks)
        if not widths or len(depths) != len(widths):
            raise ValueError(f"blocks needs one number for each of the {len(widths)} widths")
        self.conv = nn.Conv2d(in_channels, widths[0], 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(widths[0])
        stages: list[nn.Module] = []
        channels = widths[0]
        for index, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            stage: list[nn.Module] = []
            for block in range(depth):
                stride = 2 if index > 0 and block == 0 else 1
                stage.append(BasicBlock(channels, width, stride))
                channels = width
            stages.append(nn.Sequential(*stage))
        self.stages = nn.Sequential(*stages)
        self.linear = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) → logits (N, num_classes)."""
        y = F.relu(self.bn(self.conv(x)))
        y = self.stages(y)
        logits: Tensor = self.linear(y.mean(dim=(2, 3)))
        return logits
