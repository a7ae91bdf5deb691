"""A convolutional network in the form of a vision transformer: mix the pixels, then the channels.

Wang et al., *RepViT: Revisiting Mobile CNN From ViT Perspective*, 2023 (https://arxiv.org/abs/2307.09283). The token
mixer is depthwise, ``bn(bn₃(conv3×3(x)) + conv1×1(x) + x)``, one 3×3 convolution for inference; the channel mixer is
``x + bn(conv1×1(gelu(bn(conv1×1(x)))))``. The head normalizes before it is linear: ``W·bn(x) + b``, one linear layer
for inference, and the mean of two of them where one was taught by another network.

RepViT-M0.9, for 224×224, is ``in_channels=3, num_classes=1000, widths=(48, 96, 192, 384), blocks=(3, 4, 16, 3),
stem_strides=(2, 2), heads=2``.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy

import torch
from torch import Tensor, nn

from bnfold.models.layers import SqueezeExcitation
from bnfold.models.reparameterization import (
    Kernel,
    NormedConv,
    Reparameterizable,
    exact,
    scale_and_shift,
    set_parameters,
)
from bnfold.models.stages import plan_stages


class RepVGGDW(Reparameterizable):
    """The token mixer: depthwise 3×3, 1×1 and identity under one batch norm."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.dense = NormedConv(channels, channels, 3, groups=channels)
        self.point = nn.Conv2d(channels, channels, 1, groups=channels)
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C, H, W)."""
        y: Tensor = self.bn((self.dense(x) + self.point(x)) + x)
        return y

    def merged(self) -> nn.Conv2d:
        """One depthwise 3×3 convolution."""
        conv = self.dense.conv
        kernel = self.dense.kernel() + Kernel.of(self.point) + Kernel.identity(conv.out_channels, conv.groups)
        return kernel.normalized(self.bn).as_conv(conv)


class ChannelMixer(nn.Module):
    """``x + bn(conv(gelu(bn(conv(x)))))`` with 1×1 convolutions by way of twice as many channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.expand = NormedConv(channels, 2 * channels, 1)
        self.gelu = nn.GELU()
        self.project = NormedConv(2 * channels, channels, 1)
        nn.init.zeros_(self.project.bn.weight)  # the mixer begins as the identity

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C, H, W)."""
        y: Tensor = x + self.project(self.gelu(self.expand(x)))
        return y


class Head(Reparameterizable):
    """The mean of ``heads`` layers ``W·bn(x) + b``."""

    def __init__(self, features: int, num_classes: int, heads: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.BatchNorm1d(features) for _ in range(heads))
        self.linears = nn.ModuleList(nn.Linear(features, num_classes) for _ in range(heads))

    def forward(self, x: Tensor) -> Tensor:
        """(N, features) → (N, num_classes)."""
        first, *others = (linear(bn(x)) for bn, linear in zip(self.norms, self.linears, strict=True))
        y: Tensor = first
        for other in others:
            y = y + other
        return y / len(self.norms) if others else y

    def merged(self) -> nn.Linear:
        """One linear layer: of each head ``W' = W·s`` and ``b' = b + W·t``, and the means of both."""
        norms = [bn for bn in self.norms if isinstance(bn, nn.BatchNorm1d)]
        linears = [linear for linear in self.linears if isinstance(linear, nn.Linear)]
        weights: list[Tensor] = []
        biases: list[Tensor] = []
        for bn, linear in zip(norms, linears, strict=True):
            scale, shift = scale_and_shift(bn)
            weights.append(exact(linear.weight) * scale)
            biases.append(exact(linear.bias) + exact(linear.weight) @ shift)
        merged = deepcopy(linears[0])
        set_parameters(merged, torch.stack(weights).mean(dim=0), torch.stack(biases).mean(dim=0))
        return merged


class RepViT(nn.Module):
    """Stem of two 3×3 convolutions, stages of token and channel mixers, mean, head.

    A block that changes the shape mixes its tokens by a depthwise 3×3 and a 1×1 convolution. Of the others, every
    other one weighs its channels, from the first in a stage on, but never the last of the stage.

    Args:
        in_channels: channels of the image.
        num_classes: number of classes.
        widths: channels of each stage, even.
        blocks: blocks of each stage; one number serves all stages.
        strides: stride of the first block of each stage; where none are given, each stage but the first has 2.
        stem_strides: of the two convolutions of the stem.
        squeeze_excite: whether any block weighs its channels.
        heads: linear layers whose mean the logits are.
    """

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 10,
        widths: Sequence[int] = (16, 32),
        blocks: int | Sequence[int] = 3,
        strides: Sequence[int] | None = None,
        stem_strides: tuple[int, int] = (1, 1),
        squeeze_excite: bool = True,
        heads: int = 1,
    ) -> None:
        super().__init__()
        plan = plan_stages(widths[0], widths, blocks, strides)
        self.stem = nn.Sequential(
            NormedConv(in_channels, widths[0] // 2, 3, stem_strides[0]),
            nn.GELU(),
            NormedConv(widths[0] // 2, widths[0], 3, stem_strides[1]),
        )
        layers: list[nn.Module] = []
        for stage in plan:
            alike = 0  # blocks of this stage so far that keep the shape
            for index, (channels, out_channels, stride) in enumerate(stage):
                if stride != 1 or channels != out_channels:
                    depthwise = NormedConv(channels, channels, 3, stride, groups=channels)
                    layers += [depthwise, NormedConv(channels, out_channels, 1)]
                else:
                    layers.append(RepVGGDW(channels))
                    if squeeze_excite and alike % 2 == 0 and index < len(stage) - 1:
                        layers.append(SqueezeExcitation(channels, max(1, channels // 4)))
                    alike += 1
                layers.append(ChannelMixer(out_channels))
        self.blocks = nn.Sequential(*layers)
        self.head = Head(widths[-1], num_classes, heads)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) → logits (N, num_classes)."""
        y = self.blocks(self.stem(x))
        logits: Tensor = self.head(y.mean(dim=(2, 3)))
        return logits
