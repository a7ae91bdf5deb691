"""DeiT III: a plain vision transformer with LayerScale; no batch norm.

Touvron et al., *DeiT III: Revenge of the ViT*, 2022 (https://arxiv.org/abs/2204.07118), after Dosovitskiy et al., *An
Image is Worth 16x16 Words*, 2020 (https://arxiv.org/abs/2010.11929). A block computes
``y = x + γ₁ ⊙ attention(norm(x))`` and ``y + γ₂ ⊙ mlp(norm(y))``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnfold.models.layers import LayerScale, initialize


class Attention(nn.Module):
    """``W softmax(q kᵀ / √d) v`` in several heads."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(channels, 3 * channels)
        self.project = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, tokens, channels) → the same."""
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v)
        projected: Tensor = self.project(y.transpose(1, 2).flatten(2))
        return projected


class Block(nn.Module):
    """Attention and a two-layer perceptron, each normalized before and scaled after, around a shortcut."""

    def __init__(self, channels: int, heads: int, initial_scale: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, eps=1e-6)
        self.attention = Attention(channels, heads)
        self.scale1 = LayerScale(channels, initial_scale)
        self.norm2 = nn.LayerNorm(channels, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(channels, 4 * channels), nn.GELU(), nn.Linear(4 * channels, channels))
        self.scale2 = LayerScale(channels, initial_scale)

    def forward(self, x: Tensor) -> Tensor:
        """(N, tokens, channels) → the same."""
        x = x + self.scale1(self.attention(self.norm1(x)))
        y: Tensor = x + self.scale2(self.mlp(self.norm2(x)))
        return y


class DeiT(nn.Module):
    """Patches with a learned position, a token for the class, blocks, normalization, linear.

    The defaults fit 8×8 images. The paper's DeiT-S for 224×224 has ``width=384``, ``depth=12``, ``heads=6`` and
    ``patch=16``.

    Args:
        input_shape: (C, H, W) of the image, its sides multiples of ``patch``.
        num_classes: number of classes.
        width: channels of each token, a multiple of ``heads``.
        depth: number of blocks.
        heads: of the attention.
        patch: side of a patch.
        initial_scale: of both branches of a block at the start.
    """

    def __init__(
        self,
        input_shape: Sequence[int] = (1, 8, 8),
        num_classes: int = 10,
        width: int = 32,
        depth: int = 2,
        heads: int = 2,
        patch: int = 2,
        initial_scale: float = 1e-4,
    ) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width is {width}, which {heads} heads cannot share evenly")
        channels, height, breadth = input_shape
        patches = (height // patch) * (breadth // patch)
        self.embed = nn.Conv2d(channels, width, patch, stride=patch)
        self.position = nn.Parameter(torch.zeros(1, patches, width))
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        nn.init.trunc_normal_(self.position, std=0.02)
        nn.init.trunc_normal_(self.token, std=0.02)
        self.blocks = nn.Sequential(*(Block(width, heads, initial_scale) for _ in range(depth)))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.linear = nn.Linear(width, num_classes)
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → logits (N, num_classes)."""
        patches = self.embed(x).flatten(2).transpose(1, 2) + self.position
        tokens = torch.cat([self.token.expand(x.shape[0], -1, -1), patches], dim=1)
        logits: Tensor = self.linear(self.norm(self.blocks(tokens))[:, 0])
        return logits
