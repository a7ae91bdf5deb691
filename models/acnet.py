"""A plain network whose 3×3 convolutions are trained with a cross laid over them.

Ding et al., *ACNet: Strengthening the Kernel Skeletons for Powerful CNN via Asymmetric Convolution Blocks*, 2019
(https://arxiv.org/abs/1908.03930). Each block computes ``bn(conv3×3(x)) + bn(conv1×3(x)) + bn(conv3×1(x))``; for
inference it is one 3×3 convolution, whose middle row and column were strengthened. The network is VGG's, as in the
paper: stages of blocks with a maximum over 2×2 after each.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from bnfold.models.reparameterization import NormedConv, Reparameterizable


class ACBlock(Reparameterizable):
    """k×k, 1×k and k×1, each with its batch norm."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int = 3, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__()
        self.square = NormedConv(in_channels, out_channels, kernel_size, stride, groups)
        self.row = NormedConv(in_channels, out_channels, (1, kernel_size), stride, groups)
        self.column = NormedConv(in_channels, out_channels, (kernel_size, 1), stride, groups)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in, H, W) → (N, out, H / stride, W / stride)."""
        y: Tensor = self.square(x) + self.row(x) + self.column(x)
        return y

    def merged(self) -> nn.Conv2d:
        """One k×k convolution."""
        kernel = self.square.kernel() + self.row.kernel() + self.column.kernel()
        return kernel.as_conv(self.square.conv)


class ACNet(nn.Module):
    """For each width, ``depth`` times block and ReLU, then a 2×2 maximum; mean; linear.

    Args:
        in_channels: channels of the image.
        num_classes: number of classes.
        widths: channels of each stage; the image's sides must be at least 2 to the power of their number.
        depth: blocks of each stage.
        kernel_size: of each block, odd.
    """

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 10,
        widths: Sequence[int] = (16, 32, 64),
        depth: int = 1,
        kernel_size: int = 3,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = in_channels
        for width in widths:
            for _ in range(depth):
                layers += [ACBlock(channels, width, kernel_size), nn.ReLU()]
                channels = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.linear = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) → logits (N, num_classes)."""
        logits: Tensor = self.linear(self.features(x).mean(dim=(2, 3)))
        return logits
