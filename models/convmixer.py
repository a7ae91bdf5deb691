"""ConvMixer: patches, then depthwise and 1×1 convolutions in turn, batch norm after each GELU.

Trockman and Kolter, *Patches Are All You Need?*, 2022 (https://arxiv.org/abs/2201.09792). A block computes
``y = x + bn1(gelu(depthwise(x)))`` and ``bn2(gelu(conv1(y)))``. Batch norm comes after the activation here, and a
padded depthwise convolution reads most of it: these are batch norms that algebra cannot all fold.
"""

from __future__ import annotations

from torch import Tensor, nn

from bnfold.models.layers import initialize


class MixerBlock(nn.Module):
    """Mix the pixels of each channel, then the channels of each pixel."""

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        self.pixels = nn.Sequential(
            nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels),
            nn.GELU(),
            nn.BatchNorm2d(channels),
        )
        self.channels = nn.Sequential(nn.Conv2d(channels, channels, 1), nn.GELU(), nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) → the same."""
        y: Tensor = self.channels(x + self.pixels(x))
        return y


class ConvMixer(nn.Module):
    """Patches, GELU, batch norm, blocks, mean, linear.

    The defaults fit 8×8 and 32×32 images. The paper's ConvMixer-768/32 for 224×224 has ``width=768``, ``depth=32``,
    ``kernel=7`` and ``patch=7``.

    Args:
        in_channels: channels of the image.
        num_classes: number of classes.
        width: channels of each patch.
        depth: number of blocks.
        kernel: side of the depthwise kernels, an odd number.
        patch: side of a patch.
    """

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 10,
        width: int = 32,
        depth: int = 3,
        kernel: int = 5,
        patch: int = 2,
    ) -> None:
        super().__init__()
        if kernel % 2 == 0:
            raise ValueError(f"kernel is {kernel}; an odd number keeps the image's size")
        self.features = nn.Sequential(
            nn.Conv2d(in_channels, width, patch, stride=patch),
            nn.GELU(),
            nn.BatchNorm2d(width),
            *(MixerBlock(width, kernel) for _ in range(depth)),
        )
        self.linear = nn.Linear(width, num_classes)
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) → logits (N, num_classes)."""
        logits: Tensor = self.linear(self.features(x).mean(dim=(2, 3)))
        return logits
