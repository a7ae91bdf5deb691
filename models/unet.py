"""U-Net: an encoder, a decoder that doubles the image by transposed convolutions, and shortcuts in between.

Ronneberger et al., *U-Net: Convolutional Networks for Biomedical Image Segmentation*, 2015
(https://arxiv.org/abs/1505.04597), with padded convolutions and batch norm after each convolution, the transposed
ones included: ``relu(bn(conv(x)))`` and ``relu(bn(convtranspose(x)))``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bnfold.models.layers import ConvNorm, initialize


class Up(nn.Module):
    """Double the image, put the encoder's beside it, convolve twice."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.up = nn.Sequential(
            nn.ConvTranspose2d(in_channels, out_channels, 2, stride=2, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(),
        )
        self.layers = _twice(2 * out_channels, out_channels)

    def forward(self, x: Tensor, beside: Tensor) -> Tensor:
        """(N, in, H, W) and (N, out, 2·H, 2·W) → (N, out, 2·H, 2·W)."""
        y: Tensor = self.layers(torch.cat([beside, self.up(x)], dim=1))
        return y


def _twice(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(ConvNorm(in_channels, out_channels, 3), ConvNorm(out_channels, out_channels, 3))


class UNet(nn.Module):
    """Two convolutions for each width, a 2×2 maximum between; the same way back; scores for each pixel.

    The network is made for segmentation: with ``dense`` it returns the scores of each pixel. Without, they are
    averaged over the pixels, which makes it a classifier that the trainer can use.

    Args:
        in_channels: channels of the image.
        num_classes: number of classes.
        widths: channels of each level, the full image first; the paper has ``(64, 128, 256, 512, 1024)``. The image's
            sides must be multiples of 2 to the power of their number less one.
        dense: whether to return the scores of each pixel.
    """

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 10,
        widths: Sequence[int] = (8, 16, 32),
        dense: bool = False,
    ) -> None:
        super().__init__()
        if not widths:
            raise ValueError("widths needs at least one number")
        self.dense = dense
        self.encoder = nn.ModuleList(
            _twice(before, width) for before, width in zip((in_channels, *widths[:-1]), widths, strict=True)
        )
        self.pool = nn.MaxPool2d(2)
        self.decoder = nn.ModuleList(
            Up(deeper, width) for width, deeper in zip(reversed(widths[:-1]), reversed(widths[1:]), strict=True)
        )
        self.scores = nn.Conv2d(widths[0], num_classes, 1)
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) → (N, num_classes), or (N, num_classes, H, W) if dense."""
        levels: list[Tensor] = []
        for index, stage in enumerate(self.encoder):
            x = stage(x if index == 0 else self.pool(x))
            levels.append(x)
        for up, beside in zip(self.decoder, reversed(levels[:-1]), strict=True):
            x = up(x, beside)
        scores: Tensor = self.scores(x)
        return scores if self.dense else scores.mean(dim=(2, 3))
