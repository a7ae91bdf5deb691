"""ConvNeXt: a convolutional network with the habits of a transformer; no batch norm, but a LayerScale in each block.

Liu et al., *A ConvNet for the 2020s*, 2022 (https://arxiv.org/abs/2201.03545). A block computes
``x + γ ⊙ (W₂ gelu(W₁ norm(depthwise(x))))``, where ``norm`` is layer normalization over the channels of each pixel.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from bnfold.models.layers import LayerScale, for_each_stage, initialize


class ChannelNorm(nn.LayerNorm):
    """Layer normalization over the channels of each pixel."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → the same."""
        normalized: Tensor = super().forward(x.permute(0, 2, 3, 1))
        return normalized.permute(0, 3, 1, 2)


class ConvNeXtBlock(nn.Module):
    """Filter each channel by itself, normalize, widen, narrow, scale; around it a shortcut."""

    def __init__(self, channels: int, kernel: int, initial_scale: float) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(channels, 4 * channels), nn.GELU(), nn.Linear(4 * channels, channels))
        self.scale = LayerScale(channels, initial_scale)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) → the same."""
        y = self.depthwise(x).permute(0, 2, 3, 1)
        y = self.scale(self.mlp(self.norm(y)))
        total: Tensor = x + y.permute(0, 3, 1, 2)
        return total


class ConvNeXt(nn.Module):
    """Patches, stages of blocks, each but the first halving the image before it, mean, normalization, linear.

    The defaults fit 8×8 and 32×32 images. The paper's ConvNeXt-T for 224×224 has ``widths=(96, 192, 384, 768)``,
    ``blocks=(3, 3, 9, 3)``, ``kernel=7`` and ``patch=4``.

    Args:
        in_channels: channels of the image.
        num_classes: number of classes.
        widths: channels of each stage.
        blocks: blocks of each stage; one number serves all stages.
        kernel: side of the depthwise kernels, an odd number.
        patch: side of a patch.
        initial_scale: of each block's branch at the start.
    """

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 10,
        widths: Sequence[int] = (16, 32),
        blocks: int | Sequence[int] = 1,
        kernel: int = 5,
        patch: int = 2,
        initial_scale: float = 1e-6,
    ) -> None:
        super().__init__()
        depths = for_each_stage("blocks", blocks, widths)
        if kernel % 2 == 0:
            raise ValueError(f"kernel is {kernel}; an odd number keeps the image's size")
        layers: list[nn.Module] = []
        channels = in_channels
        for index, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            if index == 0:
                layers += [nn.Conv2d(channels, width, patch, stride=patch), ChannelNorm(width, eps=1e-6)]
            else:
                layers += [ChannelNorm(channels, eps=1e-6), nn.Conv2d(channels, width, 2, stride=2)]
            layers += [ConvNeXtBlock(width, kernel, initial_scale) for _ in range(depth)]
            channels = width
        self.features = nn.Sequential(*layers)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.linear = nn.Linear(channels, num_classes)
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) → logits (N, num_classes)."""
        logits: Tensor = self.linear(self.norm(self.features(x).mean(dim=(2, 3))))
        return logits
