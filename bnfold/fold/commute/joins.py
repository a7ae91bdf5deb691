"""Ops of several inputs: concatenation, and elementwise ops that broadcast them against each other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bnfold.affine import ChannelAffine, Float64Array, joined
from bnfold.fold.commute.rule import Crossing, OpView, Rule, scales_negatively
from bnfold.fold.report import Reason, Refusal

#: Elements that a constant may grow to when it is broadcast along the channels.
_MOST_GROWN = 1 << 16


class Concatenation(Rule):
    """Concat: on the affine's axis each input has its slice of it; on another axis each has all of it."""

    def backward(self, op: OpView, index: int, affine: ChannelAffine) -> Crossing | Refusal:
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
        for operand, length in enumerate(lengths):
            part = affine.take(slice(start, start + length))
            parts[operand] = ChannelAffine.along(axis, part.scale, part.shift)
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


class Elementwise(Rule):
    """An elementwise op that broadcasts its inputs; the base of those that follow.

    A scale along an axis goes to an input that has that axis in full length: then it makes no difference whether
    the input is broadcast along the others before or after. A constant may be broadcast along it first.
    """

    def constant(self, op: OpView, index: int, affine: ChannelAffine) -> Float64Array | Refusal:
        """The constant, broadcast along the affine's axis, which counts from the front of the output."""
        array, shape = op.constants[index], op.output_shapes[0]
        if affine.axis is None or shape is None:
            return affine.apply(array)
        column = (affine.size, *([1] * (len(shape) - affine.axis - 1)))
        try:
            grown = np.broadcast_shapes(array.shape, column)
        except ValueError:
            return Refusal(
                Reason.PARAMETERS_INVALID,
                f"a constant of shape {array.shape} in {op.op_type} has no axis {affine.axis} of {affine.size}",
            )
        if grown != array.shape and np.prod(grown) > _MOST_GROWN:
            return Refusal(Reason.COST, f"a constant of {op.op_type} would grow from {array.shape} to {grown}")
        wide: Float64Array = array.astype(np.float64)
        return wide * affine.scale.reshape(column) + affine.shift.reshape(column)

    def forward(self, op: OpView, index: int, affine: ChannelAffine) -> Crossing | Refusal:
        """None: what is added to it, or compared with it, would have to carry the same."""
        return Refusal(
            Reason.UNSUPPORTED_OP, f"the {op.op_type} joins it with a value that it would have to change as well"
        )

    def _fitted(self, op: OpView, index: int, affine: ChannelAffine) -> ChannelAffine | Refusal:
        """An affine of the output, on an input; for a constant it goes on counting axes as the output does."""
        if affine.axis is None:
            return affine
        before, after = op.input_shapes[index], op.output_shapes[0]
        if before is None or after is None:
            return Refusal(Reason.UNKNOWN_SHAPE, f"the shapes around the {op.op_type} are not known")
        if index in op.constants:
            return affine
        axis = affine.axis - (len(after) - len(before))
        if axis < 0 or before[axis] == 1:
            return Refusal(
                Reason.BROADCAST_CHANGES_SHAPE, f"the {op.op_type} broadcasts an input along the axis {affine.axis}"
            )
        if before[axis] != affine.size:
            return Refusal(Reason.UNKNOWN_SHAPE, f"the channels of an input of the {op.op_type} are not counted")
        return affine.moved_to(axis)

    def _fitting(self, op: OpView, candidates: range, affine: ChannelAffine) -> list[int]:
        """The inputs that fit, constants first: what they take is settled at once."""
        fitting = [i for i in candidates if not isinstance(self._fitted(op, i, affine), Refusal)]
        return sorted(fitting, key=lambda i: (i not in op.constants, i))

    def _lifted(self, op: OpView, index: int, affine: ChannelAffine) -> ChannelAffine | Refusal:
        """An affine of an input, on the output: channels that differ are more than one, and so not broadcast."""
        before, after = op.input_shapes[index], op.output_shapes[0]
        if affine.axis is None:
            return affine
        if before is None or after is None:
            return Refusal(Reason.UNKNOWN_SHAPE, f"the shapes around the {op.op_type} are not known")
        return affine.moved_to(affine.axis + len(after) - len(before))

    def _other_constant(self, op: OpView, index: int) -> int | None:
        return next((i for i in sorted(op.constants) if i != index), None)

    def _carrier(self, op: OpView, affine: ChannelAffine) -> int:
        return op.carrier if op.carrier is not None else next(iter(self.carriers(op, affine)), 0)


class Sum(Elementwise):
    """Add, Sub, Sum: the scale goes to each input, the shift to one."""

    def carriers(self, op: OpView, affine: ChannelAffine) -> Sequence[int]:
        """Those that could take the shift."""
        return self._fitting(op, range(len(op.input_shapes)), affine) if affine.has_shift else ()

    def backward(self, op: OpView, index: int, affine: ChannelAffine) -> Crossing | Refusal:
        """``s·(a ± b) + t = (s·a + t) ± s·b = s·a ± (s·b ± t)``."""
        carrier = self._carrier(op, affine)
        parts: dict[int, ChannelAffine] = {}
        for i in range(len(op.input_shapes)):
            part = affine if i == carrier else affine.scale_only()
            if i == carrier == 1 and op.op_type == "Sub":
                part = ChannelAffine(part.axis, part.scale, -part.shift)
            fitted = self._fitted(op, i, part)
            if isinstance(fitted, Refusal) and not part.is_identity:
                return fitted
            if not isinstance(fitted, Refusal):
                parts[i] = fitted
        return parts

    def balanced(self, op: OpView, index: int, affine: ChannelAffine) -> tuple[Crossing, Crossing] | Refusal:
        """``(s·a + t) ± b = s·(a ± b/s) + t`` and ``b − (s·a + t) = s·(b/s − a) − t``."""
        lifted = self._lifted(op, index, affine)
        if isinstance(lifted, Refusal):
            return lifted
        others: dict[int, ChannelAffine] = {}
        for i in range(len(op.input_shapes)):
            fitted = self._fitted(op, i, lifted.scale_only().inverse()) if i != index else None
            if isinstance(fitted, Refusal):
                return fitted
            if fitted is not None:
                others[i] = fitted
        sign = -1.0 if op.op_type == "Sub" and index == 1 else 1.0
        return {0: ChannelAffine(lifted.axis, lifted.scale, sign * lifted.shift)}, others

    def aside(self, op: OpView, index: int, affine: ChannelAffine) -> Crossing:
        """``(a + t) ± c = a ± (c ± t)``."""
        constant, lifted = self._other_constant(op, index), self._lifted(op, index, affine)
        if constant is None or affine.has_scale or isinstance(lifted, Refusal):
            return {}
        sign = -1.0 if op.op_type == "Sub" else 1.0
        return {constant: ChannelAffine(lifted.axis, lifted.scale, sign * lifted.shift)}


class Alike(Elementwise):
    """Mean, Max, Min of several tensors: the whole affine goes to each, for the largest and smallest if ``s ≥ 0``."""

    def backward(self, op: OpView, index: int, affine: ChannelAffine) -> Crossing | Refusal:
        """``s·max(a, b) + t = max(s·a + t, s·b + t)``."""
        refusal = scales_negatively(affine) if op.op_type in ("Max", "Min") else None
        if refusal:
            return refusal
        parts: dict[int, ChannelAffine] = {}
        for i in range(len(op.input_shapes)):
            fitted = self._fitted(op, i, affine)
            if isinstance(fitted, Refusal):
                return fitted
            parts[i] = fitted
        return parts


class Product(Elementwise):
    """Mul and Div of two tensors: a scale goes to one factor, and from either factor to the product."""

    def carriers(self, op: OpView, affine: ChannelAffine) -> Sequence[int]:
        """The factors that could take the scale; of a quotient, the numerator."""
        return self._fitting(op, range(1 if op.op_type == "Div" else 2), affine)

    def backward(self, op: OpView, index: int, affine: ChannelAffine) -> Crossing | Refusal:
        """``s·(a·b) = (s·a)·b``."""
        if affine.has_shift:
            return Refusal(Reason.NONZERO_SHIFT, f"{op.op_type} does not commute with a shift")
        carrier = self._carrier(op, affine)
        fitted = self._fitted(op, carrier, affine)
        return fitted if isinstance(fitted, Refusal) else {carrier: fitted}

    def forward(self, op: OpView, index: int, affine: ChannelAffine) -> Crossing | Refusal:
        """``(s·a)·b = s·(a·b)``."""
        if affine.has_shift:
            return Refusal(Reason.NONZERO_SHIFT, f"{op.op_type} does not commute with a shift")
        if op.op_type == "Div" and index != 0:
            return Refusal(Reason.UNSUPPORTED_OP, "the affine reaches the Div as its divisor")
        lifted = self._lifted(op, index, affine)
        return lifted if isinstance(lifted, Refusal) else {0: lifted}

    def aside(self, op: OpView, index: int, affine: ChannelAffine) -> Crossing:
        """``(s·a)·c = a·(s·c)``."""
        constant, lifted = self._other_constant(op, index), self._lifted(op, index, affine)
        if constant is None or affine.has_shift or op.op_type == "Div" or isinstance(lifted, Refusal):
            return {}
        return {constant: lifted}
