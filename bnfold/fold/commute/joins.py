"""Ops of several inputs: concatenation and sums."""

from __future__ import annotations

from bnfold.affine import ChannelAffine, joined
from bnfold.fold.commute.rule import Crossing, OpView, Rule
from bnfold.fold.report import Reason, Refusal


class Concatenation(Rule):
    """Concat: on the affine's axis each input has its slice of it; on another axis each has all of it."""

    def backward(self, op: OpView, affine: ChannelAffine) -> Crossing | Refusal:
        """A slice of the affine for each input, or the same for each."""
        axis = _concat_axis(op)
        if isinstance(axis, Refusal):
            return axis
        if affine.axis is None or affine.axis != axis:
            return dict.fromkeys(range(len(op.input_shapes)), affine)
        lengths = _lengths(op, axis)
        if isinstance(lengths, Refusal):
            return lengths
        parts: dict[int, ChannelAffine] = {}
        start = 0
        for index, length in enumerate(lengths):
            part = affine.take(slice(start, start + length))
            parts[index] = ChannelAffine.along(axis, part.scale, part.shift)
            start += length
        return parts

    def forward(self, op: OpView, index: int, affine: ChannelAffine) -> Crossing | Refusal:
        """The affine for the input's slice of the output, the identity for the others."""
        axis = _concat_axis(op)
        if isinstance(axis, Refusal):
            return axis
        if affine.axis not in (None, axis):
            return Refusal(Reason.AXIS_MISMATCH, "the other inputs of the Concat do not carry the same scale")
        lengths = _lengths(op, axis)
        if isinstance(lengths, Refusal):
            return lengths
        identity = ChannelAffine.identity()
        parts = [(affine if i == index else identity, length) for i, length in enumerate(lengths)]
        return {0: joined(axis, parts)}


def _concat_axis(op: OpView) -> int | Refusal:
    axis = int(op.attributes.get("axis", 1))
    ranks = {len(shape) for shape in (*op.input_shapes, *op.output_shapes) if shape is not None}
    if axis >= 0:
        return axis
    if len(ranks) != 1:
        return Refusal(Reason.UNKNOWN_SHAPE, "the rank of the Concat is not known")
    return axis + ranks.pop()


def _lengths(op: OpView, axis: int) -> list[int] | Refusal:
    lengths = [None if shape is None or axis >= len(shape) else shape[axis] for shape in op.input_shapes]
    known = [length for length in lengths if isinstance(length, int)]
    if len(known) != len(lengths):
        return Refusal(Reason.UNKNOWN_SHAPE, "the length of an input of the Concat is not known")
    return known


class Sum(Rule):
    """Add, Sub, Sum without broadcasting: the scale goes to each input, the shift to the first."""

    def backward(self, op: OpView, affine: ChannelAffine) -> Crossing | Refusal:
        """``s·(a ± b) + t = (s·a + t) ± s·b``."""
        shapes = {*op.input_shapes, op.output_shapes[0]}
        shape = shapes.pop()
        if shapes or shape is None or any(dim is None for dim in shape):
            return Refusal(Reason.UNKNOWN_SHAPE, f"the inputs of {op.op_type} are not known to be of one shape")
        others = dict.fromkeys(range(1, len(op.input_shapes)), affine.scale_only())
        return {0: affine, **others}
