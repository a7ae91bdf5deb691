"""Values between the pixels of an image, in float64 and in numpy: GridSample and DeformConv.

Interpolation is separable: along each axis a point has one, two or four neighbours with weights, and the value there is
the sum over all their combinations. Sources: the ONNX operator specification; Keys 1981 for the cubic weights; PyTorch
and ONNX Runtime for cubic points outside, which ONNX's own reference moves to the border first.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from math import prod
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from bnfold.verification.windows import Window, per_channel

Array = NDArray[Any]
Mode = Literal["nearest", "linear", "cubic"]
Padding = Literal["zeros", "border", "reflection"]

#: Keys' parameter as PyTorch and ONNX have it.
_CUBIC = -0.75


def grid_sample(x: Array, grid: Array, mode: Mode, padding: Padding, *, align_corners: bool) -> Array:
    """``y[n, c, p] = x[n, c]`` at ``grid[n, p]``.

    Args:
        x: ``(N, C, D1, …, Dn)``.
        grid: ``(N, P1, …, Pn, n)``: coordinates from −1 to 1, the last axis of ``x`` first.
        mode: how to interpolate.
        padding: what lies outside.
        align_corners: whether ±1 are the centres of the outermost pixels, or their outer edges.
    """
    sizes = np.array(x.shape[2:])
    places = np.asarray(grid, dtype=np.float64)[..., ::-1]
    places = (places + 1) / 2 * (sizes - 1) if align_corners else ((places + 1) * sizes - 1) / 2
    edge = 0.0 if align_corners else 0.5
    flat = places.reshape(x.shape[0], -1, len(sizes))
    result = sample(x, flat, mode, padding, edge)
    return result.reshape(*x.shape[:2], *grid.shape[1:-1])


def sample(x: Array, places: Array, mode: Mode, padding: Padding, edge: float = 0.0) -> Array:
    """``y[n, c, p] = x[n, c]`` at ``places[n, p]``, as ``(N, C, P)``.

    Args:
        x: ``(N, C, D1, …, Dn)``.
        places: ``(N, P, n)``, counted in pixels.
        mode: how to interpolate.
        padding: what lies outside.
        edge: how far beyond the centres of the outermost pixels images are mirrored.
    """
    flat = x.reshape(*x.shape[:2], -1)
    axes = [_neighbours(places[..., axis], size, mode, padding, edge) for axis, size in enumerate(x.shape[2:])]
    result = np.zeros((*x.shape[:2], places.shape[1]))
    for chosen in itertools.product(*axes):
        index = np.zeros(places.shape[:2], dtype=np.int64)
        weight = np.ones(places.shape[:2])
        for (place, share), size in zip(chosen, x.shape[2:], strict=True):
            index, weight = index * size + place, weight * share
        result += weight[:, None] * np.take_along_axis(flat, index[:, None], axis=2)
    return result


def deform_conv(
    x: Array,
    weight: Array,
    offset: Array,
    bias: Array | None,
    mask: Array | None,
    view: Window,
    groups: int,
    shifts: int,
) -> Array:
    """A convolution each tap of which reads where ``offset`` moves it, and counts as ``mask`` says.

    Args:
        x: ``(N, C, D1, …, Dn)``.
        weight: ``(M, C/groups, K1, …, Kn)``.
        offset: ``(N, shifts·ΠK·n, O1, …, On)``: for each tap, how far to go along each axis.
        bias: ``(M,)`` or None.
        mask: ``(N, shifts·ΠK, O1, …, On)`` or None.
        view: strides, dilations and padding.
        groups: independent blocks of channels.
        shifts: blocks of channels that have the same offsets.
    """
    batch, rank, taps = x.shape[0], len(view.kernel), prod(view.kernel)
    spatial = offset.shape[2:]
    moved = offset.reshape(batch, shifts, taps, rank, -1)
    shares = np.ones(()) if mask is None else mask.reshape(batch, shifts, 1, -1)
    starts = _lattice(spatial, view.strides) - np.array(view.begin)[:, None]
    steps = _lattice(view.kernel, view.dilations)
    blocks = []
    for block, part in enumerate(np.split(x, shifts, axis=1)):
        places = steps.T[:, :, None] + starts + moved[:, block]  # (N, K, n, O)
        points = np.moveaxis(places, 2, -1).reshape(batch, -1, rank)
        values = sample(part, points, "linear", "zeros")
        blocks.append(values * (shares if mask is None else shares[:, block]))
    columns = np.concatenate(blocks, axis=1).reshape(batch, groups, -1, prod(spatial))
    matrix = weight.reshape(groups, weight.shape[0] // groups, -1)
    result = np.matmul(matrix, columns).reshape(batch, weight.shape[0], *spatial)
    return np.asarray(result if bias is None else result + per_channel(bias, rank))


def _lattice(sizes: Sequence[int], steps: Sequence[int]) -> Array:
    """The coordinates of all points of a lattice, ``(n, points)``."""
    axes = np.meshgrid(*(np.arange(n) * step for n, step in zip(sizes, steps, strict=True)), indexing="ij")
    return np.stack([axis.reshape(-1) for axis in axes])


def _neighbours(places: Array, size: int, mode: Mode, padding: Padding, edge: float) -> list[tuple[Array, Array]]:
    """The pixels along one axis that a point is made of, and their weights; 0 for those that do not exist."""
    low, high = -edge, size - 1 + edge
    if mode == "nearest":
        places = np.rint(places)  # halves to the even pixel, as PyTorch does
    outside = (places < low) | (places > high)
    if padding == "border" and mode != "cubic":
        places = np.where(outside, np.clip(places, 0, size - 1), places)
    elif padding == "reflection":
        places = np.where(outside, _reflected(places, low, high), places)
    first = np.floor(places)
    rest = places - first
    if mode == "nearest":
        weights = [np.ones_like(places)]
    elif mode == "linear":
        weights = [1 - rest, rest]
    else:
        first, weights = first - 1, [_far(rest + 1), _near(rest), _near(1 - rest), _far(2 - rest)]
    return [_pixel(first + step, weight, size, padding, low, high) for step, weight in enumerate(weights)]


def _pixel(index: Array, weight: Array, size: int, padding: Padding, low: float, high: float) -> tuple[Array, Array]:
    if padding == "zeros":
        weight = np.where((index >= 0) & (index < size), weight, 0.0)
    elif padding == "reflection":
        index = np.where((index < low) | (index > high), np.trunc(_reflected(index, low, high)), index)
    return np.clip(np.nan_to_num(index), 0, size - 1).astype(np.int64), weight


def _reflected(places: Array, low: float, high: float) -> Array:
    """Points outside of ``low`` to ``high``, mirrored at the ends until they are inside."""
    span = high - low
    if span <= 0:
        return np.full_like(places, low)
    below = places < low
    beyond = np.where(below, low - places, places - high)
    turns = np.trunc(beyond / span)
    rest = beyond - turns * span
    from_low = (turns % 2 == 0) == below
    return np.where(from_low, low + rest, high - rest)


def _near(distance: Array) -> Array:
    """Keys' kernel for distances to 1."""
    return np.asarray(((_CUBIC + 2) * distance - (_CUBIC + 3)) * distance**2 + 1)


def _far(distance: Array) -> Array:
    """Keys' kernel for distances from 1 to 2."""
    return np.asarray(((_CUBIC * distance - 5 * _CUBIC) * distance + 8 * _CUBIC) * distance - 4 * _CUBIC)
