"""A pre-activation residual network: batch norm comes before each convolution.

He et al., *Identity Mappings in Deep Residual Networks*, 2016 (https://arxiv.org/abs/1603.05027). Each block
computes ``conv2(relu(bn2(conv1(relu(bn1(x)))))) + shortcut``. The ``bn1`` of a block follows an addition,
not a convolution, and a ReLU follows it: these are batch norms that algebra alone cannot always fold.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from bnfold.models.layers import for_each_stage, initialize


class PreActBlock(nn.Module):
    """Batch norm, ReLU and 3×3 convolution, twice, around a shortcut."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.shortcut: nn.Conv2d | None = None
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in, H, W) → (N, out, H / stride, W / stride)."""
        activated = F.relu(self.bn1(x))
        shortcut = x if self.shortcut is None else self.shortcut(activated)
        y = self.conv1(activated)
        y = self.conv2(F.relu(self.bn2(y)))
        total: Tensor = y + shortcut
        return total


class PreActResNet(nn.Module):
    """Stem, one stage of blocks for each width (each but the first halves the image), batch norm, linear.

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
        self.conv = nn.Conv2d(in_channels, widths[0], 3, padding=1, bias=False)
        layers: list[nn.Module] = []
        channels = widths[0]
        for index, (width, depth) in enumerate(zip(widths, for_each_stage("blocks", blocks, widths), strict=True)):
            for block in range(depth):
                stride = 2 if index > 0 and block == 0 else 1
                layers.append(PreActBlock(channels, width, stride))
                channels = width
        self.blocks = nn.Sequential(*layers)
        self.bn = nn.BatchNorm2d(channels)
        self.linear = nn.Linear(channels, num_classes)
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) → logits (N, num_classes)."""
        y = self.blocks(self.conv(x))
        y = F.relu(self.bn(y))
        logits: Tensor = self.linear(y.mean(dim=(2, 3)))
        return logits
