"""Convolution and pooling in float64, in numpy: what :mod:`onnx.reference` does too slowly or wrongly.

Every function takes ``(N, C, D1, …, Dn)`` data, n ≥ 1, and follows the ONNX operator of the same name; attributes
arrive resolved by :func:`convolution_padding` and its siblings. Nothing here knows of graphs.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

Array = NDArray[Any]
Ints = tuple[int, ...]

#: The unrolled windows of one matrix product take at most this many elements (64 MiB of float64).
_UNROLLED_ELEMENTS = 1 << 23


@dataclass(frozen=True)
class Window:
    """A sliding window over n spatial axes.

    Attributes:
        kernel: taps along each axis.
        strides: steps between windows.
        dilations: steps between taps.
        begin: padding before each axis.
        end: padding after each axis.
    """

    kernel: Ints
    strides: Ints
    dilations: Ints
    begin: Ints
    end: Ints

    @property
    def extent(self) -> Ints:
        """Input elements that one window spans along each axis: ``(k − 1)·d + 1``."""
        return extent(self.kernel, self.dilations)


def extent(kernel: Sequence[int], dilations: Sequence[int]) -> Ints:
    """``(k − 1)·d + 1`` along each axis."""
    return tuple((k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True))


def window(
    spatial: Sequence[int],
    kernel: Sequence[int],
    *,
    strides: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    auto_pad: str = "NOTSET",
) -> Window:
    """The window that an ONNX node's attributes describe, ``auto_pad`` resolved for an input of size ``spatial``.

    SAME_* make ``⌈D/s⌉`` outputs; the odd element of the padding goes to the end for SAME_UPPER and to the
    beginning for SAME_LOWER. Source: the ONNX operator specification, Conv.
    """
    rank = len(spatial)
    steps = tuple(strides or (1,) * rank)
    gaps = tuple(dilations or (1,) * rank)
    padding = tuple(pads or (0,) * 2 * rank)
    begin, end = padding[:rank], padding[rank:]
    if auto_pad == "VALID":
        begin = end = (0,) * rank
    elif auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        total = tuple(
            max((-(-size // step) - 1) * step + span - size, 0)
            for size, step, span in zip(spatial, steps, extent(kernel, gaps), strict=True)
        )
        small, large = tuple(t // 2 for t in total), tuple(t - t // 2 for t in total)
        begin, end = (small, large) if auto_pad == "SAME_UPPER" else (large, small)
    return Window(tuple(kernel), steps, gaps, begin, end)


def conv(x: Array, weight: Array, bias: Array | None, view: Window, groups: int = 1) -> Array:
    """``y[n, m, o] = b[m] + Σ_{c, k} W[m, c, k] · x[n, g·C/G + c, o·s + k·d − p]``.

    Args:
        x: ``(N, C, D…)``.
        weight: ``(M, C/groups, K…)``.
        bias: ``(M,)`` or None.
        view: strides, dilations and padding.
        groups: independent blocks of channels.
    """
    padded = _pad(x, view.begin, view.end, 0.0)
    rank = len(view.kernel)
    axes = tuple(range(2, 2 + rank))
    windows = sliding_window_view(padded, view.extent, axis=axes)
    steps = tuple(slice(None, None, s) for s in view.strides)
    taps = tuple(slice(None, None, d) for d in view.dilations)
    windows = windows[(slice(None), slice(None), *steps, *taps)]  # (N, C, O…, K…)
    batch, channels = x.shape[:2]
    spatial = windows.shape[2 : 2 + rank]
    features = weight.shape[0]
    matrix = weight.reshape(groups, features // groups, -1)
    result = np.empty((batch, features, *spatial), dtype=np.float64)
    row = max(channels * prod(view.kernel) * prod(spatial[1:]), 1)
    rows = max(_UNROLLED_ELEMENTS // row, 1)
    order = (0, *range(1 + rank, 1 + 2 * rank), *range(1, 1 + rank))  # (C, K…, O…)
    for sample in range(batch):
        for start in range(0, spatial[0], rows):
            block = windows[sample, :, start : start + rows]
            columns = block.transpose(order).reshape(groups, matrix.shape[2], -1)
            result[sample, :, start : start + rows] = np.matmul(matrix, columns).reshape(
                features, *block.shape[1 : 1 + rank]
            )
    if bias is not None:
        result += per_channel(bias, rank)
    return result


def conv_transpose(
    x: Array,
    weight: Array,
    bias: Array | None,
    view: Window,
    groups: int = 1,
    output_padding: Sequence[int] | None = None,
) -> Array:
    """The transpose of :func:`conv`: each input element adds ``x · W`` to the outputs of its window.

    Args:
        x: ``(N, C, D…)``.
        weight: ``(C, M/groups, K…)``.
        bias: ``(M,)`` or None.
        view: ``begin`` and ``end`` are cut off the result; negative ones add zeros.
        groups: independent blocks of channels.
        output_padding: zeros' worth of room after the last window.
    """
    rank = len(view.kernel)
    batch, channels = x.shape[:2]
    spatial = x.shape[2:]
    extra = tuple(output_padding or (0,) * rank)
    features = weight.shape[1] * groups
    size = tuple(
        (d - 1) * s + span + more for d, s, span, more in zip(spatial, view.strides, view.extent, extra, strict=True)
    )
    matrix = weight.reshape(groups, channels // groups, -1).transpose(0, 2, 1)
    full = np.zeros((batch, features, *size), dtype=np.float64)
    for sample in range(batch):
        blocks = x[sample].reshape(groups, channels // groups, -1)
        columns = np.matmul(matrix, blocks).reshape(features, *view.kernel, *spatial)
        for tap in itertools.product(*(range(k) for k in view.kernel)):
            reach = tuple(
                slice(t * d, t * d + (n - 1) * s + 1, s)
                for t, d, n, s in zip(tap, view.dilations, spatial, view.strides, strict=True)
            )
            full[sample][(slice(None), *reach)] += columns[(slice(None), *tap)]
    full = _pad(full, tuple(max(-p, 0) for p in view.begin), tuple(max(-p, 0) for p in view.end), 0.0)
    crop = tuple(slice(max(b, 0), n - max(e, 0)) for b, e, n in zip(view.begin, view.end, full.shape[2:], strict=True))
    result = full[(slice(None), slice(None), *crop)]
    return result if bias is None else result + per_channel(bias, rank)


def pooled_size(spatial: Sequence[int], view: Window, *, ceil_mode: bool) -> Ints:
    """Outputs along each axis: ``(D + p − span)/s + 1``, rounded up in ceil mode.

    In ceil mode a last window that would start in the padding after the input is left out.
    """
    sizes = []
    for size, step, span, before, after in zip(spatial, view.strides, view.extent, view.begin, view.end, strict=True):
        room = size + before + after - span
        count = (-(-room // step) if ceil_mode else room // step) + 1
        if ceil_mode and (count - 1) * step >= size + before:
            count -= 1
        sizes.append(count)
    return tuple(sizes)


def max_pool(x: Array, view: Window, *, ceil_mode: bool = False) -> Array:
    """The largest element of each window; padding never wins."""
    lowest = -np.inf if np.issubdtype(x.dtype, np.floating) else np.iinfo(x.dtype).min
    return _fold_windows(np.maximum, x, view, pooled_size(x.shape[2:], view, ceil_mode=ceil_mode), lowest)


def max_pool_indices(x: Array, view: Window, *, ceil_mode: bool = False, column_major: bool = False) -> Array:
    """Where in the flattened ``x`` each element of :func:`max_pool` comes from; the first one of equals."""
    spatial = x.shape[2:]
    place = np.arange(prod(spatial), dtype=np.int64).reshape(spatial, order="F" if column_major else "C")
    base = np.arange(prod(x.shape[:2]), dtype=np.int64).reshape(*x.shape[:2], *(1,) * len(spatial))
    places = np.broadcast_to(base * prod(spatial) + place, x.shape)
    count = pooled_size(spatial, view, ceil_mode=ceil_mode)
    after = _room_after(spatial, view, count)
    values = _pad(x.astype(np.float64), view.begin, after, -np.inf)
    padded_places = _pad(places, view.begin, after, -1)
    best = np.full((*x.shape[:2], *count), -np.inf)
    where = np.full(best.shape, -1, dtype=np.int64)
    for tap in itertools.product(*(range(k) for k in view.kernel)):
        reach = (
            slice(None),
            slice(None),
            *(
                slice(t * d, t * d + (n - 1) * s + 1, s)
                for t, d, n, s in zip(tap, view.dilations, count, view.strides, strict=True)
            ),
        )
        # A padded place never counts, also where the input itself is −∞.
        better = ((values[reach] > best) | (where < 0)) & (padded_places[reach] >= 0)
        best = np.where(better, values[reach], best)
        where = np.where(better, padded_places[reach], where)
    return where


def average_pool(x: Array, view: Window, *, ceil_mode: bool = False, count_include_pad: bool = False) -> Array:
    """The mean of each window, over the input's elements or, on request, over the declared padding as well."""
    count = pooled_size(x.shape[2:], view, ceil_mode=ceil_mode)
    total = _fold_windows(np.add, x, view, count, 0.0)
    for axis, size in enumerate(x.shape[2:]):
        before, after = view.begin[axis], view.end[axis]
        low, high = (-before, size + after) if count_include_pad else (0, size)
        starts = np.arange(count[axis]) * view.strides[axis] - before
        taps = starts[:, None] + np.arange(view.kernel[axis]) * view.dilations[axis]
        inside = ((taps >= low) & (taps < high)).sum(axis=1)
        total = total / inside.reshape(-1, *(1,) * (len(count) - axis - 1))
    return total


def lp_pool(x: Array, view: Window, p: int, *, ceil_mode: bool = False) -> Array:
    """``(Σ |x|^p)^(1/p)`` over each window."""
    count = pooled_size(x.shape[2:], view, ceil_mode=ceil_mode)
    return np.asarray(_fold_windows(np.add, np.abs(x) ** p, view, count, 0.0) ** (1.0 / p))


def _fold_windows(combine: np.ufunc, x: Array, view: Window, count: Ints, neutral: float) -> Array:
    """Combine each window's elements, one axis after the other: sums and maxima are separable."""
    result = _pad(x, view.begin, _room_after(x.shape[2:], view, count), neutral)
    for axis, size in enumerate(count):
        step, gap = view.strides[axis], view.dilations[axis]
        slices = [slice(None)] * result.ndim
        folded: Array | None = None
        for tap in range(view.kernel[axis]):
            slices[2 + axis] = slice(tap * gap, tap * gap + (size - 1) * step + 1, step)
            part = result[tuple(slices)]
            folded = part.copy() if folded is None else combine(folded, part, out=folded)
        assert folded is not None
        result = folded
    return result


def _room_after(spatial: Sequence[int], view: Window, count: Ints) -> Ints:
    """Padding after each axis so that all ``count`` windows fit: ceil mode reaches past the declared padding."""
    return tuple(
        max((n - 1) * s + span - size - before, 0)
        for n, s, span, size, before in zip(count, view.strides, view.extent, spatial, view.begin, strict=True)
    )


def _pad(x: Array, begin: Ints, end: Ints, value: float) -> Array:
    if not any(begin) and not any(end):
        return x
    widths = ((0, 0), (0, 0), *zip(begin, end, strict=True))
    return np.pad(x, widths, constant_values=value)


def per_channel(vector: Array, rank: int) -> Array:
    """One number for each channel, as it is broadcast to ``(N, C, D1, …, Dn)``."""
    return vector.reshape(-1, *(1,) * rank)
