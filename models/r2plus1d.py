"""R(2+1)D: a residual network for video, the network in three dimensions.

Tran et al., *A Closer Look at Spatiotemporal Convolutions for Action Recognition*, 2017
(https://arxiv.org/abs/1711.11248). A convolution over time and space is taken apart into one over space and one over
time, ``time(relu(bn(space(x))))``; a block is ``relu(bn2(conv2(relu(bn1(conv1(x))))) + shortcut(x))`` of two such.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from bnfold.models.layers import for_each_stage, initialize


class Conv2Plus1d(nn.Sequential):
    """1×3×3 over space, batch norm, ReLU, 3×1×1 over time; as many weights as one of 3×3×3."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        between = 27 * in_channels * out_channels // (9 * in_channels + 3 * out_channels)
        super().__init__(
            nn.Conv3d(in_channels, between, (1, 3, 3), (1, stride, stride), (0, 1, 1), bias=False),
            nn.BatchNorm3d(between),
            nn.ReLU(),
            nn.Conv3d(between, out_channels, (3, 1, 1), (stride, 1, 1), (1, 0, 0), bias=False),
        )


class VideoBlock(nn.Module):
    """Two convolutions and a shortcut, which is a 1×1×1 convolution where the shape changes."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = Conv2Plus1d(in_channels, out_channels, stride)
        self.bn1 = nn.BatchNorm3d(out_channels)
        self.conv2 = Conv2Plus1d(out_channels, out_channels, 1)
        self.bn2 = nn.BatchNorm3d(out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv3d(in_channels, out_channels, 1, stride=stride, bias=False),
                nn.BatchNorm3d(out_channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        """(N, in, T, H, W) → (N, out, T / stride, H / stride, W / stride)."""
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class R2Plus1d(nn.Module):
    """Stem, one stage of blocks for each width (each but the first halves time and image), mean, linear.

    The paper's R(2+1)D-18 for 16 frames of 112×112 has ``widths=(64, 128, 256, 512)``, ``blocks=2`` and a stem of
    7×7 at stride 2. Here the stem is 3×3 at stride 1. An image is read as a video of one frame.

    Args:
        in_channels: channels of the video.
        num_classes: number of classes.
        widths: channels of each stage.
        blocks: blocks of each stage; one number serves all stages.
    """

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 10,
        widths: Sequence[int] = (8, 16),
        blocks: int | Sequence[int] = 1,
    ) -> None:
        super().__init__()
        depths = for_each_stage("blocks", blocks, widths)
        layers: list[nn.Module] = [
            Conv2Plus1d(in_channels, widths[0], 1),
            nn.BatchNorm3d(widths[0]),
            nn.ReLU(),
        ]
        channels = widths[0]
        for index, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            for block in range(depth):
                layers.append(VideoBlock(channels, width, 2 if index > 0 and block == 0 else 1))
                channels = width
        self.features = nn.Sequential(*layers)
        self.linear = nn.Linear(channels, num_classes)
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, T, H, W), or an image (N, in_channels, H, W) → logits (N, num_classes)."""
        video = x.unsqueeze(2) if x.ndim == 4 else x
        logits: Tensor = self.linear(self.features(video).mean(dim=(2, 3, 4)))
        return logits
