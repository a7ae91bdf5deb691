"""Structural re-parameterization: what branches of linear ops compute together, one convolution computes.

A network is trained with several branches where it will be run with one convolution. All is algebra on a kernel
``W`` of shape (out, in / groups, kh, kw) and a bias ``b``, numbered as in Ding et al., *Diverse Branch Block:
Building a Convolution as an Inception-like Unit*, 2021 (https://arxiv.org/abs/2103.13425), section 3.2:

=====  ===========================  =================================================================
I      ``bn(conv(x))``              ``s = γ / √(σ² + ε)``;  ``W' = s·W``,  ``b' = s·(b − μ) + β``
II     ``conv₁(x) + conv₂(x)``      ``W₁ + W₂``,  ``b₁ + b₂``
III    ``conv₂(conv₁(x))``, 1×1     ``W'[o,i,u,v] = Σₘ W₂[o,m,u,v]·W₁[m,i]``,  ``b' = b₂ + Σ W₂[o,m,u,v]·b₁[m]``
       first, then k×k
V      average of k×k               ``1/k²`` where the output channel is the input channel, else 0
VI     a smaller kernel             a larger one, with zeros around it
=====  ===========================  =================================================================

The identity is a 1×1 kernel, with 1 where the output channel is the input channel. In III the first convolution does
the padding and the second does not pad, so that the second sees ``b₁`` at the border, as it does everywhere else.

All is computed in float64 and rounded once, to the type of the network's weights. This is the reference that
bnfold's own merging of exported models is held against, so it shares no code with it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import reduce
from operator import add

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True, eq=False)
class Kernel:
    """What a convolution adds up, whatever its stride.

    Attributes:
        weight: shape (out, in / groups, kh, kw), float64.
        bias: shape (out,), float64.
        groups: of the convolution.
    """

    weight: Tensor
    bias: Tensor
    groups: int

    @staticmethod
    def of(conv: nn.Conv2d) -> Kernel:
        """The kernel of a convolution."""
        weight = exact(conv.weight)
        bias = weight.new_zeros(conv.out_channels) if conv.bias is None else exact(conv.bias)
        return Kernel(weight, bias, conv.groups)

    @staticmethod
    def average(size: int, channels: int, groups: int) -> Kernel:
        """V: the mean of each channel over a window."""
        weight = torch.zeros(channels, channels // groups, size, size, dtype=torch.float64)
        out = torch.arange(channels)
        weight[out, out % (channels // groups)] = 1 / size**2
        return Kernel(weight, weight.new_zeros(channels), groups)

    @staticmethod
    def identity(channels: int, groups: int) -> Kernel:
        """What leaves its input as it is."""
        return Kernel.average(1, channels, groups)

    def normalized(self, bn: nn.BatchNorm2d) -> Kernel:
        """I: followed by a batch norm."""
        scale, shift = scale_and_shift(bn)
        return Kernel(scale.reshape(-1, 1, 1, 1) * self.weight, scale * self.bias + shift, self.groups)

    def then(self, second: Kernel) -> Kernel:
        """III: this 1×1 kernel, whose convolution does the padding, followed by one that does not pad."""
        groups = self.groups
        first = self.weight.reshape(groups, -1, self.weight.shape[1])  # (group, mid, in)
        grouped = second.weight.reshape(groups, -1, *second.weight.shape[1:])  # (group, out, mid, kh, kw)
        weight = torch.einsum("gomhw,gmi->goihw", grouped, first).flatten(0, 1)
        shift = torch.einsum("gomhw,gm->go", grouped, self.bias.reshape(groups, -1)).flatten()
        return Kernel(weight, second.bias + shift, groups)

    def __add__(self, other: Kernel) -> Kernel:
        """II and VI: the sum of two branches whose kernels have one centre; their sides are odd."""
        size = [max(sides) for sides in zip(self.weight.shape[2:], other.weight.shape[2:], strict=True)]
        return Kernel(_padded(self.weight, size) + _padded(other.weight, size), self.bias + other.bias, self.groups)

    def as_conv(self, like: nn.Conv2d) -> nn.Conv2d:
        """A convolution with this kernel; stride, padding, dtype and device are those of ``like``."""
        out_channels, in_channels, *size = self.weight.shape
        assert tuple(size) == like.kernel_size
        conv = nn.Conv2d(
            in_channels * self.groups,
            out_channels,
            _pair(like.kernel_size),
            _pair(like.stride),
            _pair(like.padding),
            groups=self.groups,
            dtype=like.weight.dtype,
            device=like.weight.device,
        )
        set_parameters(conv, self.weight, self.bias)
        return conv


class Reparameterizable(nn.Module, ABC):
    """A module that one simpler module can take the place of, once it is trained."""

    @abstractmethod
    def merged(self) -> nn.Module:
        """The module that computes the same in evaluation mode, with weights of its own."""


class NormedConv(Reparameterizable):
    """``bn(conv(x))``, padded so that at stride 1 the image keeps its size.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: odd, or two odd numbers.
        stride: of the convolution.
        groups: of the convolution.
        padding: another padding than ``kernel_size // 2``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int = 1,
        groups: int = 1,
        padding: int | None = None,
    ) -> None:
        super().__init__()
        size = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
        around = (size[0] // 2, size[1] // 2) if padding is None else (padding, padding)
        self.conv = nn.Conv2d(in_channels, out_channels, size, stride, around, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in, H, W) → (N, out, H / stride, W / stride)."""
        y: Tensor = self.bn(self.conv(x))
        return y

    def kernel(self) -> Kernel:
        """The one kernel of both."""
        return Kernel.of(self.conv).normalized(self.bn)

    def merged(self) -> nn.Conv2d:
        """One convolution with a bias."""
        return self.kernel().as_conv(self.conv)


def reparameterized(network: nn.Module) -> nn.Module:
    """A copy of ``network`` in evaluation mode with every :class:`Reparameterizable` in it merged."""
    copy = deepcopy(network)
    return (copy.merged() if isinstance(copy, Reparameterizable) else _merge_inside(copy)).eval()


def exact(tensor: Tensor) -> Tensor:
    """A tensor as float64, on the CPU, apart from training."""
    return tensor.detach().to("cpu", torch.float64)


def scale_and_shift(bn: nn.BatchNorm1d | nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """What a batch norm does in evaluation mode: ``s = γ / √(σ² + ε)`` and ``t = β − s·μ``, shape (C,), float64."""
    assert bn.running_mean is not None
    assert bn.running_var is not None
    scale = exact(bn.weight) / torch.sqrt(exact(bn.running_var) + bn.eps)
    return scale, exact(bn.bias) - scale * exact(bn.running_mean)


def total(kernels: Iterable[Kernel]) -> Kernel:
    """II over any number of branches, at least one."""
    return reduce(add, kernels)


def set_parameters(layer: nn.Conv2d | nn.Linear, weight: Tensor, bias: Tensor) -> None:
    """Round a weight and a bias to the type of a layer, and write them into it."""
    assert layer.bias is not None
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)


def _merge_inside(module: nn.Module) -> nn.Module:
    for name, child in list(module.named_children()):
        setattr(module, name, child.merged() if isinstance(child, Reparameterizable) else _merge_inside(child))
    return module


def _pair(sides: Sequence[int] | str) -> tuple[int, int]:
    assert not isinstance(sides, str)
    high, wide = sides
    return high, wide


def _padded(weight: Tensor, size: list[int]) -> Tensor:
    """VI: zeros around a kernel."""
    high, wide = ((side - own) // 2 for side, own in zip(size, weight.shape[2:], strict=True))
    return F.pad(weight, (wide, wide, high, high))
