"""LeViT: a vision transformer with batch norm after each linear layer, after a stem of convolutions.

Graham et al., *LeViT: a Vision Transformer in ConvNet's Clothing for Faster Inference*, 2021
(https://arxiv.org/abs/2104.01136). Every linear layer is ``bn(W x)`` over the channels of all tokens; attention adds a
learned bias for each distance between two tokens, ``softmax(q kᵀ / √d + b) v``, and shrinks the grid of tokens
between stages by asking from every second one only.

Left out: the second head, for distillation. Queries have a linear layer of their own in every block, as in the
paper's shrinking attention.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bnfold.models.layers import ConvNorm, for_each_stage, initialize


class LinearNorm(nn.Module):
    """``bn(W x)`` for each token; batch norm sees the tokens of all images as one batch."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_channels, out_channels, bias=False)
        self.bn = nn.BatchNorm1d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, tokens, in) → (N, tokens, out)."""
        y: Tensor = self.linear(x)
        normalized: Tensor = self.bn(y.flatten(0, 1))
        return normalized.reshape_as(y)


class Attention(nn.Module):
    """Attention over a grid of tokens; with a stride, only every so many tokens of each row and column ask.

    Args:
        in_channels: channels of the tokens.
        out_channels: channels of the result.
        heads: number of heads.
        key_dim: length of a head's keys.
        value_dim: length of a head's values.
        grid: height and width of the grid of tokens.
        stride: of the tokens that ask.
    """

    offsets: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        heads: int,
        key_dim: int,
        value_dim: int,
        grid: tuple[int, int],
        stride: int = 1,
    ) -> None:
        super().__init__()
        self.heads, self.key_dim, self.value_dim, self.grid, self.stride = heads, key_dim, value_dim, grid, stride
        self.query = LinearNorm(in_channels, heads * key_dim)
        self.key_value = LinearNorm(in_channels, heads * (key_dim + value_dim))
        self.project = nn.Sequential(nn.Hardswish(), LinearNorm(heads * value_dim, out_channels))
        self.biases = nn.Parameter(torch.zeros(heads, grid[0] * grid[1]))
        self.register_buffer("offsets", _offsets(grid, stride), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, tokens, in) → (N, tokens / stride², out)."""
        asking = x
        if self.stride > 1:
            on_grid = x.reshape(-1, *self.grid, x.shape[2])
            asking = on_grid[:, :: self.stride, :: self.stride].flatten(1, 2)
        q = self.query(asking).unflatten(2, (self.heads, self.key_dim)).transpose(1, 2)
        k, v = (
            self.key_value(x)
            .unflatten(2, (self.heads, self.key_dim + self.value_dim))
            .split([self.key_dim, self.value_dim], dim=3)
        )
        weights = q @ k.permute(0, 2, 3, 1) * self.key_dim**-0.5 + self.biases[:, self.offsets]
        y = weights.softmax(dim=-1) @ v.transpose(1, 2)
        projected: Tensor = self.project(y.transpose(1, 2).flatten(2))
        return projected


def _offsets(grid: tuple[int, int], stride: int) -> Tensor:
    """For each token that asks and each that is asked, the index of their distance: (tokens / stride², tokens)."""
    rows, columns = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    asking = [t[::stride, ::stride].flatten()[:, None] for t in (rows, columns)]
    asked = [t.flatten()[None] for t in (rows, columns)]
    down, across = ((a - b).abs() for a, b in zip(asking, asked, strict=True))
    return down * grid[1] + across


class Block(nn.Module):
    """``x + attention(x)``, then ``x + mlp(x)``."""

    def __init__(self, channels: int, heads: int, key_dim: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.attention = Attention(channels, channels, heads, key_dim, 2 * key_dim, grid)
        self.mlp = _mlp(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, tokens, channels) → the same."""
        x = x + self.attention(x)
        y: Tensor = x + self.mlp(x)
        return y


class Shrink(nn.Module):
    """Attention in which every second token of each row and column asks, then ``x + mlp(x)``."""

    def __init__(self, in_channels: int, out_channels: int, key_dim: int, grid: tuple[int, int]) -> None:
        super().__init__()
        heads = max(1, in_channels // key_dim)
        self.attention = Attention(in_channels, out_channels, heads, key_dim, 4 * key_dim, grid, stride=2)
        self.mlp = _mlp(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, tokens, in) → (N, tokens / 4, out)."""
        x = self.attention(x)
        y: Tensor = x + self.mlp(x)
        return y


def _mlp(channels: int) -> nn.Sequential:
    return nn.Sequential(LinearNorm(channels, 2 * channels), nn.Hardswish(), LinearNorm(2 * channels, channels))


class LeViT(nn.Module):
    """Convolutions at stride 2, stages of blocks with a shrinking one in between, mean, batch norm, linear.

    The defaults fit 8×8 images; for 32×32, ``stem=2`` keeps the 8×8 grid of tokens. The paper's LeViT-128 for 224×224
    has ``widths=(128, 256, 384)``, ``blocks=4``, ``heads=(4, 8, 12)``, ``key_dim=16`` and ``stem=4``.

    Args:
        input_shape: (C, H, W) of the image.
        num_classes: number of classes.
        widths: channels of each stage.
        blocks: blocks of each stage; one number serves all stages, here and below.
        heads: of the attention of each stage.
        key_dim: length of a head's keys; its values are twice as long.
        stem: convolutions before the tokens, each of which halves the image.
    """

    def __init__(
        self,
        input_shape: Sequence[int] = (1, 8, 8),
        num_classes: int = 10,
        widths: Sequence[int] = (32, 48),
        blocks: int | Sequence[int] = 1,
        heads: int | Sequence[int] = (2, 3),
        key_dim: int = 8,
        stem: int = 1,
    ) -> None:
        super().__init__()
        depths = for_each_stage("blocks", blocks, widths)
        counts = for_each_stage("heads", heads, widths)
        channels, height, width = input_shape
        convolutions: list[nn.Module] = []
        for left in reversed(range(stem)):
            activation = nn.Hardswish if left else None
            convolutions.append(ConvNorm(channels, widths[0] >> left, 3, stride=2, activation=activation))
            channels, height, width = widths[0] >> left, (height + 1) // 2, (width + 1) // 2
        if not convolutions:
            convolutions.append(ConvNorm(channels, widths[0], activation=None))
            channels = widths[0]
        self.stem = nn.Sequential(*convolutions)
        layers: list[nn.Module] = []
        for index, (features, depth, count) in enumerate(zip(widths, depths, counts, strict=True)):
            if index > 0:
                layers.append(Shrink(channels, features, key_dim, (height, width)))
                channels, height, width = features, (height + 1) // 2, (width + 1) // 2
            layers += [Block(features, count, key_dim, (height, width)) for _ in range(depth)]
        self.blocks = nn.Sequential(*layers)
        self.bn = nn.BatchNorm1d(channels)
        self.linear = nn.Linear(channels, num_classes)
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → logits (N, num_classes)."""
        tokens = self.stem(x).flatten(2).transpose(1, 2)
        logits: Tensor = self.linear(self.bn(self.blocks(tokens).mean(dim=1)))
        return logits
