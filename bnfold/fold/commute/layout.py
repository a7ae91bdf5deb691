"""Ops that move elements about or leave them alone: the axis is remapped by proof from the shapes."""

from __future__ import annotations

import math

import numpy as np

from bnfold.affine import ChannelAffine
from bnfold.fold.commute.rule import Crossing, OpView, Rule, Shape
from bnfold.fold.report import Reason, Refusal


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
    it; symbolic lengths count as equal where they have the same name. Where channels and pixels are flattened
    into one axis, a channel's scale repeats over its pixels: forward always, backward if it does.
    """

    def backward(self, op: OpView, index: int, affine: ChannelAffine) -> Crossing | Refusal:
        """The affine on the axis of the input that holds the same channels."""
        return self._moved(op, affine, forward=False)

    def forward(self, op: OpView, index: int, affine: ChannelAffine) -> Crossing | Refusal:
        """The affine on the axis of the output that holds the same channels."""
        if index != 0:
            return Refusal(Reason.UNSUPPORTED_OP, f"the affine reaches a {op.op_type} as its shape")
        return self._moved(op, affine, forward=True)

    def _moved(self, op: OpView, affine: ChannelAffine, *, forward: bool) -> Crossing | Refusal:
        if affine.axis is None:
            return {0: affine}
        before, after = op.input_shapes[0], op.output_shapes[0]
        if before is None or after is None:
            return Refusal(Reason.UNKNOWN_SHAPE, f"the shapes around the {op.op_type} are not known")
        source, target = (before, after) if forward else (after, before)
        axis = matching_axis(source, affine.axis, target)
        if axis is not None:
            return {0: affine.moved_to(axis)}
        return (_flattened if forward else _unflattened)(op, affine, before, after)


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


def _merged_axis(split: Shape, axis: int, merged: Shape) -> tuple[int, int] | None:
    """Where ``axis`` of ``split`` begins an axis of ``merged`` that also holds what follows it.

    Returns:
        The axis of ``merged`` and the number of elements behind each channel in it, or None.
    """
    before = _extent(split[:axis])
    for candidate, size in enumerate(merged):
        if before is None or _extent(merged[:candidate]) != before or not isinstance(size, int):
            continue
        for end in range(axis + 1, len(split) + 1):
            extent = _extent(split[axis:end])
            length = split[axis]
            if extent == (size, ()) and isinstance(length, int) and length > 0:
                return candidate, size // length
    return None


def _flattened(op: OpView, affine: ChannelAffine, before: Shape, after: Shape) -> Crossing | Refusal:
    assert affine.axis is not None
    merged = _merged_axis(before, affine.axis, after)
    if merged is None:
        return _lost_axis(op, before, after)
    axis, times = merged
    return {0: affine.repeated(times).moved_to(axis)}


def _unflattened(op: OpView, affine: ChannelAffine, before: Shape, after: Shape) -> Crossing | Refusal:
    """Undo a flattening: possible where the affine is the same over each channel's block."""
    assert affine.axis is not None
    for axis, length in enumerate(before):
        if not isinstance(length, int) or length < 1 or affine.size % length:
            continue
        merged = _merged_axis(before, axis, after)
        if merged is None or merged[0] != affine.axis:
            continue
        first = affine.take(slice(None, None, merged[1])).moved_to(axis)
        again = first.repeated(merged[1])
        if np.array_equal(again.scale, affine.scale) and np.array_equal(again.shift, affine.shift):
            return {0: first}
    return _lost_axis(op, before, after)


def _lost_axis(op: OpView, before: Shape, after: Shape) -> Refusal:
    return Refusal(
        Reason.AXIS_MISMATCH,
        f"the {op.op_type} from {before} to {after} leaves no axis with the same channels",
    )


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
