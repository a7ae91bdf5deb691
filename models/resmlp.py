"""ResMLP: linear layers over the patches and over the channels in turn, with affines in place of normalization.

Touvron et al., *ResMLP: Feedforward networks for image classification with data-efficient training*, 2021
(https://arxiv.org/abs/2105.03404). With ``aff(x) = α ⊙ x + β`` on the channels, a block computes
``y = x + γ₁ ⊙ (A aff₁(x) + a)`` over the patches and ``y + γ₂ ⊙ (C gelu(B aff₂(y) + b) + c)`` over the channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bnfold.models.layers import LayerScale, initialize


class Affine(nn.Module):
    """``α ⊙ x + β`` on the last axis."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(…, channels) → the same."""
        return self.weight * x + self.bias


class Block(nn.Module):
    """Mix the patches of each channel, then the channels of each patch."""

    def __init__(self, channels: int, patches: int, initial_scale: float) -> None:
        super().__init__()
        self.affine1 = Affine(channels)
        self.patches = nn.Linear(patches, patches)
        self.scale1 = LayerScale(channels, initial_scale)
        self.affine2 = Affine(channels)
        self.channels = nn.Sequential(nn.Linear(channels, 4 * channels), nn.GELU(), nn.Linear(4 * channels, channels))
        self.scale2 = LayerScale(channels, initial_scale)

    def forward(self, x: Tensor) -> Tensor:
        """(N, patches, channels) → the same."""
        mixed = self.patches(self.affine1(x).transpose(1, 2)).transpose(1, 2)
        x = x + self.scale1(mixed)
        y: Tensor = x + self.scale2(self.channels(self.affine2(x)))
        return y


class ResMLP(nn.Module):
    """Patches, blocks, affine, mean, linear.

    The defaults fit 8×8 images. The paper's ResMLP-S12 for 224×224 has ``width=384``, ``depth=12``, ``patch=16``.

    Args:
        input_shape: (C, H, W) of the image, its sides multiples of ``patch``.
        num_classes: number of classes.
        width: channels of each patch.
        depth: number of blocks.
        patch: side of a patch.
        initial_scale: of both branches of a block at the start.
    """

    def __init__(
        self,
        input_shape: Sequence[int] = (1, 8, 8),
        num_classes: int = 10,
        width: int = 32,
        depth: int = 2,
        patch: int = 2,
        initial_scale: float = 0.1,
    ) -> None:
        super().__init__()
        channels, height, breadth = input_shape
        patches = (height // patch) * (breadth // patch)
        self.embed = nn.Conv2d(channels, width, patch, stride=patch)
        self.blocks = nn.Sequential(*(Block(width, patches, initial_scale) for _ in range(depth)))
        self.affine = Affine(width)
        self.linear = nn.Linear(width, num_classes)
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → logits (N, num_classes)."""
        tokens = self.blocks(self.embed(x).flatten(2).transpose(1, 2))
        logits: Tensor = self.linear(self.affine(tokens).mean(dim=1))
        return logits
