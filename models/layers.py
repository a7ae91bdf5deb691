"""Layers that several networks are built of, and what their constructors share."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn


class ConvNorm(nn.Sequential):
    """``act(bn(conv(x)))``: a convolution without a bias, batch norm, and an activation.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel: side of the kernel; the image is padded by ``kernel // 2``.
        stride: of the convolution.
        groups: of the convolution.
        activation: makes the activation; None for none.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int = 1,
        stride: int = 1,
        groups: int = 1,
        activation: Callable[[], nn.Module] | None = nn.ReLU,
    ) -> None:
        layers: list[nn.Module] = [
            nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False),
            nn.BatchNorm2d(out_channels),
        ]
        if activation is not None:
            layers.append(activation())
        super().__init__(*layers)


class SqueezeExcitation(nn.Module):
    """``x · gate(W₂ act(W₁ mean(x)))``: each channel is weighed by what all channels hold on average.

    Hu et al., *Squeeze-and-Excitation Networks*, 2017 (https://arxiv.org/abs/1709.01507).

    Args:
        channels: channels of the input.
        reduced: channels in between.
        activation: makes the activation in between.
        gate: makes the activation that ends in [0, 1].
    """

    def __init__(
        self,
        channels: int,
        reduced: int,
        activation: Callable[[], nn.Module] = nn.ReLU,
        gate: Callable[[], nn.Module] = nn.Sigmoid,
    ) -> None:
        super().__init__()
        self.weigh = nn.Sequential(
            nn.Conv2d(channels, reduced, 1), activation(), nn.Conv2d(reduced, channels, 1), gate()
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) → the same."""
        weights: Tensor = self.weigh(x.mean(dim=(2, 3), keepdim=True))
        return x * weights


class LayerScale(nn.Module):
    """``γ · x``: a learned scale for each channel of the last axis, small at first.

    Touvron et al., *Going deeper with Image Transformers*, 2021 (https://arxiv.org/abs/2103.17239).

    Args:
        channels: length of the last axis.
        initial: value of every γ at the start.
    """

    def __init__(self, channels: int, initial: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((channels,), initial))

    def forward(self, x: Tensor) -> Tensor:
        """(…, channels) → the same."""
        return self.weight * x


def for_each_stage(name: str, given: int | Sequence[int], widths: Sequence[int]) -> list[int]:
    """One number for each stage of a network; a single one serves all.

    Args:
        name: of the argument, for the message.
        given: one number, or one for each of ``widths``.
        widths: channels of each stage.

    Raises:
        ValueError: there is no stage, or there are more or fewer numbers than stages.
    """
    numbers = [given] * len(widths) if isinstance(given, int) else list(given)
    if not widths or len(numbers) != len(widths):
        raise ValueError(f"{name} needs one number for each of the {len(widths)} widths")
    return numbers


def initialize(network: nn.Module) -> None:
    """Draw the weights of all convolutions as He et al. 2015 do (https://arxiv.org/abs/1502.01852)."""
    for module in network.modules():
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
