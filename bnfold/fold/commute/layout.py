"""Ops that move elements about or leave them alone: the axis is remapped by proof from the shapes."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from bnfold.affine import ChannelAffine
from bnfold.fold.commute.rule import Crossing, OpView, Rule, Shape
from bnfold.fold.report import Reason, Refusal
from bnfold.shapes import described

#: Elements in order that are looked at for where channels lie; more are in no layer.
_LONGEST_PERIOD = 1 << 24


class PassThrough(Rule):
    """``f(x) = x``: Identity, and Dropout as inference runs it."""

    def backward(self, op: OpView, index: int, affine: ChannelAffine) -> Crossing | Refusal:
        """The same affine."""
        if index != 0:
            return Refusal(Reason.UNSUPPORTED_OP, f"the affine comes from the mask of the {op.op_type}")
        return _training(op) or {0: affine}

    def forward(self, op: OpView, index: int, affine: ChannelAffine) -> Crossing | Refusal:
        """The same affine."""
        if index != 0:
            return Refusal(Reason.UNSUPPORTED_OP, f"the affine reaches {op.op_type} as its parameter")
        return _training(op) or {0: affine}


def _training(op: OpView) -> Refusal | None:
    if op.op_type != "Dropout":
        return None
    if op.opset < 7 and not op.attributes.get("is_test", 0):
        return Refusal(Reason.TRAINING_MODE, "a Dropout with is_test=0")
    if len(op.input_shapes) > 2 and not (2 in op.constants and not op.constants[2].any()):
        return Refusal(Reason.TRAINING_MODE, "a Dropout that may run in training mode")
    return None


class Relayout(Rule):
    """Reshape, Flatten, Squeeze, Unsqueeze: the elements in the same order under another shape.

    An axis keeps its channels if it has the same length on both sides and as many elements before it, or behind
    it; symbolic lengths count as equal where they have the same name. Else the channels are looked for in the order of
    the elements: where they and their pixels are flattened into one axis, a channel's scale repeats over its pixels,
    or all of them repeat for each pixel, whichever comes first; and where an axis is split, scales that repeat like
    that are those of one of its parts.
    """

    def backward(self, op: OpView, index: int, affine: ChannelAffine) -> Crossing | Refusal:
        """The affine on the axis of the input that holds the same channels."""
        return self._moved(op, affine, op.output_shapes[0], op.input_shapes[0])

    def forward(self, op: OpView, index: int, affine: ChannelAffine) -> Crossing | Refusal:
        """The affine on the axis of the output that holds the same channels."""
        if index != 0:
            return Refusal(Reason.UNSUPPORTED_OP, f"the affine reaches a {op.op_type} as its shape")
        return self._moved(op, affine, op.input_shapes[0], op.output_shapes[0])

    def _moved(
        self, op: OpView, affine: ChannelAffine, source: Shape | None, target: Shape | None
    ) -> Crossing | Refusal:
        if affine.axis is None:
            return {0: affine}
        if source is None or target is None:
            return Refusal(Reason.UNKNOWN_SHAPE, f"the shapes around the {op.op_type} are not known")
        axis = matching_axis(source, affine.axis, target)
        if axis is not None:
            return {0: affine.moved_to(axis)}
        for axis in range(len(target)):
            channels = _channels_along(axis, target, affine.axis, source, affine)
            if channels is not None:
                return {0: affine.take(channels).moved_to(axis)}
        ends = [described(shape) for shape in (op.input_shapes[0], op.output_shapes[0]) if shape is not None]
        return Refusal(
            Reason.AXIS_MISMATCH, f"the {op.op_type} from {' to '.join(ends)} leaves no axis with the same channels"
        )


def matching_axis(source: Shape, axis: int, target: Shape) -> int | None:
    """The axis of ``target`` that holds the elements of ``axis`` of ``source``, or None where no proof is found."""
    length = source[axis]
    if not isinstance(length, int):
        return None
    before, behind = _extent(source[:axis]), _extent(source[axis + 1 :])
    for candidate, size in enumerate(target):
        if size != length:
            continue
        same_before = before is not None and before == _extent(target[:candidate])
        same_behind = behind is not None and behind == _extent(target[candidate + 1 :])
        if same_before or same_behind:
            return candidate
    return None


def _extent(dims: Shape) -> tuple[int, tuple[str, ...]] | None:
    """The number of elements of some dimensions, in a form that can be compared; None where one is unknown."""
    if any(dim is None for dim in dims):
        return None
    product = math.prod(dim for dim in dims if isinstance(dim, int))
    return product, tuple(sorted(dim for dim in dims if isinstance(dim, str)))


def _channels_along(
    axis: int, target: Shape, channel_axis: int, source: Shape, affine: ChannelAffine
) -> NDArray[np.int64] | None:
    """For each place along an axis of ``target``, the channel whose elements lie there, or one that is scaled alike.

    The element at place ``f`` in order lies at ``f // r mod c`` along an axis of length ``c`` with ``r`` elements
    behind each place of it, whatever is before it. Both sides repeat after a while, so that it is enough to compare
    their places until then. None where elements of different scales share a place.
    """
    channels, places = source[channel_axis], target[axis]
    behind, behind_place = _extent(source[channel_axis + 1 :]), _extent(target[axis + 1 :])
    if not isinstance(channels, int) or not isinstance(places, int) or channels != affine.size:
        return None
    if behind is None or behind_place is None or behind[1] != behind_place[1]:
        return None  # lengths of one name on both sides are as one element
    rows, rows_of_place = behind[0], behind_place[0]
    if not (channels and places and rows and rows_of_place):
        return None
    step = math.gcd(rows, rows_of_place)
    period = math.lcm(rows * channels, rows_of_place * places) // step
    if period > _LONGEST_PERIOD:
        return None
    order = np.arange(period, dtype=np.int64) * step
    channel, place = order // rows % channels, order // rows_of_place % places
    found = np.zeros(places, np.int64)
    found[place] = channel
    alike = found[place]
    same = np.array_equal(affine.scale[alike], affine.scale[channel])
    return found if same and np.array_equal(affine.shift[alike], affine.shift[channel]) else None


class Permute(Rule):
    """Transpose: the axis goes where the permutation sends it."""

    def backward(self, op: OpView, index: int, affine: ChannelAffine) -> Crossing | Refusal:
        """Output axis ``a`` is input axis ``perm[a]``."""
        if affine.axis is None:
            return {0: affine}
        permutation = self._permutation(op)
        if isinstance(permutation, Refusal):
            return permutation
        return {0: affine.moved_to(permutation[affine.axis])}

    def forward(self, op: OpView, index: int, affine: ChannelAffine) -> Crossing | Refusal:
        """Input axis ``a`` is the output axis at which ``a`` stands in ``perm``."""
        if affine.axis is None:
            return {0: affine}
        permutation = self._permutation(op)
        if isinstance(permutation, Refusal):
            return permutation
        return {0: affine.moved_to(permutation.index(affine.axis))}

    def _permutation(self, op: OpView) -> list[int] | Refusal:
        if "perm" in op.attributes:
            return [int(axis) for axis in op.attributes["perm"]]
        shape = op.input_shapes[0]
        if shape is None:
            return Refusal(Reason.UNKNOWN_SHAPE, "the rank of the Transpose's input is not known")
        return list(range(len(shape)))[::-1]
