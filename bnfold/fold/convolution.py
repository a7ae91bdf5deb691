"""Convolutions as values: put in a row and added, exactly. Pure numpy, sees no graph.

Along each spatial axis a convolution reads, for output position ``o`` and tap ``j``, the input at position
``stride · o + dilation · j − begin``; positions outside the input are zeros. With the kernel as ``(group, out, in,
*sizes)``, output channel ``o`` of a group is ``y[o] = Σ W[o, i, j] · x[i] + b[o]``. In these terms

* a Gemm or a MatMul by a matrix is a convolution without spatial axes;
* an affine is a depthwise convolution of size 1, an average pool one whose taps are all ``1 / taps``;
* two convolutions in a row are one, if the kernel of one of them has size 1;
* a sum of convolutions of one input is one, whose taps are the union of theirs.

Sources: the ONNX operator specification of Conv and AveragePool; Ding et al., *Diverse Branch Block*, 2021
(https://arxiv.org/abs/2103.13425) and *RepVGG*, 2021 (https://arxiv.org/abs/2101.03697), for the transformations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from bnfold.affine import Float64Array
from bnfold.fold.report import Reason, Refusal


@dataclass(frozen=True)
class Geometry:
    """All of a convolution but its numbers.

    Attributes:
        group: number of groups.
        out: output channels of a group.
        inner: input channels of a group.
        sizes: of the kernel, one for each spatial axis, like the attributes that follow.
        strides: input positions from one output position to the next.
        dilations: input positions from one tap to the next.
        begins: zeros in front of the input.
        ends: zeros behind it.
        transposed: whether it is a transposed convolution, whose attributes then mean what ConvTranspose says.
    """

    group: int
    out: int
    inner: int
    sizes: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    begins: tuple[int, ...] = ()
    ends: tuple[int, ...] = ()
    transposed: bool = False

    @staticmethod
    def depthwise(channels: int, sizes: tuple[int, ...]) -> Geometry:
        """One channel to itself, at stride 1 and without padding."""
        ones, zeros = (1,) * len(sizes), (0,) * len(sizes)
        return Geometry(channels, 1, 1, sizes, ones, ones, zeros, zeros)

    @property
    def in_channels(self) -> int:
        """Of all groups."""
        return self.group * self.inner

    @property
    def out_channels(self) -> int:
        """Of all groups."""
        return self.group * self.out

    @property
    def weights(self) -> int:
        """Number of weights, which is that of multiply-adds for one output position."""
        return self.group * self.out * self.inner * math.prod(self.sizes)

    @property
    def excess(self) -> tuple[int, ...]:
        """By how much padding exceeds what the kernel takes: at stride 1, how much longer the output is."""
        spans = zip(self.begins, self.ends, self.dilations, self.sizes, strict=True)
        return tuple(begin + end - dilation * (size - 1) for begin, end, dilation, size in spans)

    @property
    def pads(self) -> bool:
        """Whether it adds zeros anywhere."""
        return any(self.begins) or any(self.ends)

    @property
    def is_pointwise(self) -> bool:
        """Whether each output position sees one input position."""
        return not self.transposed and all(size == 1 for size in self.sizes)

    @property
    def keeps_positions(self) -> bool:
        """Whether output position and input position are the same."""
        return self.is_pointwise and not self.pads and all(stride == 1 for stride in self.strides)

    def between(self, inputs: int, outputs: int, group: int) -> Geometry:
        """The same window for other channels."""
        return replace(self, group=group, out=outputs // group, inner=inputs // group)

    def lengths(self, lengths: Sequence[int]) -> tuple[int, ...]:
        """Of the output, for those of the input."""
        axes = zip(lengths, self.excess, self.strides, strict=True)
        return tuple((length + excess - 1) // stride + 1 for length, excess, stride in axes)


def in_sequence(first: Geometry, second: Geometry) -> Geometry | Refusal:
    """The geometry of ``second ∘ first``, for a first without a bias or a second without padding."""
    if first.out_channels != second.in_channels or len(first.sizes) != len(second.sizes):
        return Refusal(Reason.AXIS_MISMATCH, "they do not act on the same channels")
    group = math.gcd(first.group, second.group)
    inputs, outputs = first.in_channels, second.out_channels
    if second.keeps_positions:
        return first.between(inputs, outputs, group)
    if first.keeps_positions:
        return second.between(inputs, outputs, group)
    if first.transposed or second.transposed:
        return Refusal(Reason.UNSUPPORTED_OP, "a transposed convolution joins one of size 1 and stride 1 only")
    if second.is_pointwise and not second.pads:
        return replace(first.between(inputs, outputs, group), strides=_products(first.strides, second.strides))
    if first.is_pointwise:
        return replace(
            second.between(inputs, outputs, group),
            strides=_products(first.strides, second.strides),
            dilations=_products(first.strides, second.dilations),
            begins=_sums(first.begins, _products(first.strides, second.begins)),
            ends=_sums(first.ends, _products(first.strides, second.ends)),
        )
    return Refusal(Reason.COST, "neither kernel has size 1, so that one kernel in their place would be larger")


def side_by_side(parts: Sequence[Geometry], lengths: Sequence[int | None]) -> Geometry | Refusal:
    """The smallest geometry that holds all of several, which read one input.

    Args:
        parts: the geometries.
        lengths: of the input's spatial axes, None where unknown.
    """
    first = parts[0]
    channels = {(part.in_channels, part.out_channels, len(part.sizes)) for part in parts}
    if len(channels) != 1:
        return Refusal(Reason.BROADCAST_CHANGES_SHAPE, "the branches do not have the same channels")
    group = math.gcd(*(part.group for part in parts))
    inputs, outputs = first.in_channels, first.out_channels
    common = first.between(inputs, outputs, group)
    if any(part.transposed for part in parts):
        if all(part.between(inputs, outputs, group) == common for part in parts):
            return common
        return Refusal(Reason.UNSUPPORTED_OP, "transposed convolutions join only where their attributes are alike")
    if any(part.strides != first.strides for part in parts):
        return Refusal(Reason.UNKNOWN_SHAPE, "the branches have different strides")
    if not _equally_long(parts, lengths):
        return Refusal(Reason.PADDING, "the branches pad differently, and are not known to be equally long")
    sizes, dilations, begins, ends = [], [], [], []
    for axis in range(len(first.sizes)):
        offsets = {part.dilations[axis] * tap - part.begins[axis] for part in parts for tap in range(part.sizes[axis])}
        lowest, highest = min(offsets), max(offsets)
        step = math.gcd(*(offset - lowest for offset in offsets)) or 1
        sizes.append((highest - lowest) // step + 1)
        dilations.append(step)
        begins.append(-lowest)
        ends.append(highest + max(part.excess[axis] for part in parts))
    return replace(common, sizes=tuple(sizes), dilations=tuple(dilations), begins=tuple(begins), ends=tuple(ends))


def _equally_long(parts: Sequence[Geometry], lengths: Sequence[int | None]) -> bool:
    """Whether all have outputs of one length: by their padding, whatever the input, or for the input's own length."""
    if len({part.excess for part in parts}) == 1:
        return True
    known = [length for length in lengths if length is not None]
    return len(known) == len(lengths) and len({part.lengths(known) for part in parts}) == 1


def _products(left: tuple[int, ...], right: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(a * b for a, b in zip(left, right, strict=True))


def _sums(left: tuple[int, ...], right: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(a + b for a, b in zip(left, right, strict=True))


@dataclass(frozen=True, eq=False)
class Convolution:
    """A convolution with its numbers, all in float64.

    Attributes:
        geometry: where its taps are.
        kernel: ``(group, out, in, *sizes)``.
        bias: ``(group · out,)``.
    """

    geometry: Geometry
    kernel: Float64Array
    bias: Float64Array

    def then(self, second: Convolution) -> Convolution | Refusal:
        """``second ∘ self``: ``W = W₂ · W₁`` over the channels in between, ``b = b₂ + Σ W₂ · b₁``."""
        geometry = in_sequence(self.geometry, second.geometry)
        if isinstance(geometry, Refusal):
            return geometry
        if np.any(self.bias != 0) and not second.geometry.keeps_positions:
            if second.geometry.transposed:
                return Refusal(Reason.NONZERO_SHIFT, "a transposed convolution spreads the bias before it unevenly")
            if second.geometry.pads:
                return Refusal(Reason.PADDING, "the second pads with zeros, where the first has a bias")
        outer, inner = _regrouped(second.kernel, geometry.group), _regrouped(self.kernel, geometry.group)
        between = outer.shape[2]
        if self.geometry.is_pointwise:
            kernel = np.einsum("gom...,gmi->goi...", outer, inner.reshape(geometry.group, between, -1), optimize=True)
        else:
            kernel = np.einsum("gom,gmi...->goi...", outer.reshape(*outer.shape[:3]), inner, optimize=True)
        taps = outer.sum(axis=tuple(range(3, outer.ndim)))
        moved = np.einsum("gom,gm->go", taps, self.bias.reshape(geometry.group, between))
        return Convolution(geometry, kernel, second.bias + moved.reshape(-1))

    def within(self, geometry: Geometry) -> Float64Array:
        """The kernel with its taps at their places in a larger geometry, and zeros at all others."""
        kernel = np.zeros((geometry.group, geometry.out, geometry.inner, *geometry.sizes))
        taps = zip(
            geometry.begins,
            self.geometry.begins,
            geometry.dilations,
            self.geometry.dilations,
            self.geometry.sizes,
            strict=True,
        )
        places = []
        for begin, own_begin, dilation, own_dilation, size in taps:
            start, step = (begin - own_begin) // dilation, max(own_dilation // dilation, 1)
            places.append(slice(start, start + step * (size - 1) + 1, step))
        kernel[(slice(None), slice(None), slice(None), *places)] = _regrouped(self.kernel, geometry.group)
        return kernel


def weighted_sum(parts: Sequence[tuple[float, Convolution]], geometry: Geometry) -> Convolution:
    """``Σ cᵢ · convolutionᵢ`` of one input, in the geometry that :func:`side_by_side` found for them."""
    kernel = np.zeros((geometry.group, geometry.out, geometry.inner, *geometry.sizes))
    bias = np.zeros(geometry.out_channels)
    for factor, part in parts:
        kernel += factor * part.within(geometry)
        bias += factor * part.bias
    return Convolution(geometry, kernel, bias)


def _regrouped(kernel: Float64Array, group: int) -> Float64Array:
    """The same kernel in fewer, larger groups: blocks on a diagonal."""
    own, out, inner, *sizes = kernel.shape
    times = own // group
    if times == 1:
        return kernel
    wide = np.zeros((group, times, out, times, inner, *sizes))
    blocks = kernel.reshape(group, times, out, inner, *sizes)
    for block in range(times):
        wide[:, block, :, block] = blocks[:, block]
    return wide.reshape(group, times * out, times * inner, *sizes)
