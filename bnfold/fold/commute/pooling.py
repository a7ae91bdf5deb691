"""Pools and reductions over other axes than that of the affine."""

from __future__ import annotations

import math

from bnfold.affine import ChannelAffine
from bnfold.fold.commute.rule import Crossing, OpView, Rule, scales_negatively
from bnfold.fold.report import Reason, Refusal


class Pool(Rule):
    """MaxPool, AveragePool and their global forms, which reduce axes from 2 on, each channel by itself.

    The largest of ``s·x + t`` is ``s · max x + t`` for ``s ≥ 0``; padding counts as −∞ and is never chosen. The mean
    is linear; where padding counts as zeros in it, the border sees less of the shift.
    """

    def backward(self, op: OpView, index: int, affine: ChannelAffine) -> Crossing | Refusal:
        """The same affine."""
        if index != 0:
            return Refusal(Reason.UNSUPPORTED_OP, f"the affine comes from the indices of the {op.op_type}")
        return self._refusal(op, affine) or {0: affine}

    def forward(self, op: OpView, index: int, affine: ChannelAffine) -> Crossing | Refusal:
        """The same affine."""
        return self._refusal(op, affine) or {0: affine}

    def _refusal(self, op: OpView, affine: ChannelAffine) -> Refusal | None:
        if affine.axis is not None and affine.axis > 1:
            return Refusal(Reason.AXIS_MISMATCH, f"{op.op_type} reduces the axis {affine.axis} that it scales")
        if op.op_type in ("MaxPool", "GlobalMaxPool"):
            return scales_negatively(affine) or _ties(op, affine) or _empty_windows(op)
        if op.op_type == "AveragePool" and affine.has_shift and _counts_padding(op):
            return Refusal(Reason.PADDING, "the average counts zeros that padding adds")
        return _empty_windows(op) if affine.has_shift else None


def _ties(op: OpView, affine: ChannelAffine) -> Refusal | None:
    """A scale of 0 makes all elements equal, so that another index may be the first of the largest."""
    if len(op.output_shapes) > 1 and not (affine.scale > 0).all():
        return Refusal(Reason.NEGATIVE_SCALE, "a scale of 0 changes the indices that the MaxPool yields")
    return None


def _empty_windows(op: OpView) -> Refusal | None:
    """A window whose taps step over the whole input holds nothing but padding, which has no mean and no largest."""
    shape = op.input_shapes[0]
    lengths = (None,) * len(op.attributes.get("kernel_shape", ())) if shape is None else shape[2:]
    padded = any(op.attributes.get("pads", ())) or op.attributes.get("auto_pad", "NOTSET").startswith("SAME")
    steps = zip(op.attributes.get("dilations", ()), lengths, strict=False)
    if padded and any(step > 1 and not (isinstance(length, int) and step <= length) for step, length in steps):
        return Refusal(Reason.PADDING, f"a window of the dilated {op.op_type} may hold nothing but padding")
    return None


def _counts_padding(op: OpView) -> bool:
    """Whether zeros count in a mean, or may: with ``ceil_mode``, where a last window hangs over the end.

    The specification does not say whether the overhang counts (onnx issue 5276). ONNX Runtime counted it before
    operator set 19 until pull request 29629 of 2026; a model that is folded may run on either.
    """
    if not op.attributes.get("count_include_pad", 0):
        return False
    auto_pad = op.attributes.get("auto_pad", "NOTSET")
    return (
        auto_pad.startswith("SAME")
        or bool(op.attributes.get("ceil_mode", 0))
        or (auto_pad == "NOTSET" and any(op.attributes.get("pads", ())))
    )


class Reduction(Rule):
    """ReduceMean, ReduceMax, ReduceMin and ReduceSum over axes other than that of the affine.

    The sum of ``n`` elements sees ``n`` times the shift; largest and smallest need ``s ≥ 0``.
    """

    def backward(self, op: OpView, index: int, affine: ChannelAffine) -> Crossing | Refusal:
        """The affine on the axis of the input that is left where it was; of a sum, ``t / n``."""
        return self._moved(op, affine, forward=False)

    def forward(self, op: OpView, index: int, affine: ChannelAffine) -> Crossing | Refusal:
        """The affine on the axis of the output to which its axis moves; of a sum, ``t · n``."""
        if index != 0:
            return Refusal(Reason.UNSUPPORTED_OP, f"the affine reaches {op.op_type} as its axes")
        return self._moved(op, affine, forward=True)

    def _moved(self, op: OpView, affine: ChannelAffine, *, forward: bool) -> Crossing | Refusal:
        refusal = scales_negatively(affine) if op.op_type in ("ReduceMax", "ReduceMin") else None
        if refusal:
            return refusal
        shape, axes = op.input_shapes[0], self._axes(op)
        if isinstance(axes, Refusal):
            return axes
        if shape is None:
            return Refusal(Reason.UNKNOWN_SHAPE, f"the rank of the input of {op.op_type} is not known")
        reduced = _reduced_axes(op, axes, len(shape))
        if not reduced <= set(range(len(shape))):
            return Refusal(Reason.PARAMETERS_INVALID, f"{op.op_type} has an axis out of range")
        if op.op_type == "ReduceSum" and affine.has_shift:
            count = math.prod(dim if isinstance(dim, int) else 0 for dim in (shape[axis] for axis in reduced))
            if not count:
                return Refusal(Reason.UNKNOWN_SHAPE, "how many elements the ReduceSum adds up is not known")
            shift = affine.shift * count if forward else affine.shift / count
            affine = ChannelAffine.along(affine.axis, affine.scale, shift)
        if affine.axis is None:
            return {0: affine}
        kept: list[int | None] = [None if axis in reduced else axis for axis in range(len(shape))]
        if not op.attributes.get("keepdims", 1):
            kept = [axis for axis in kept if axis is not None]
        axis = (kept.index(affine.axis) if affine.axis in kept else None) if forward else kept[affine.axis]
        if axis is None:
            return Refusal(Reason.AXIS_MISMATCH, f"{op.op_type} reduces the axis {affine.axis} that it scales")
        return {0: affine.moved_to(axis)}

    def _axes(self, op: OpView) -> list[int] | Refusal | None:
        """The axes given, None where there are none."""
        if "axes" in op.attributes:
            return [int(axis) for axis in op.attributes["axes"]] or None
        if 1 not in op.present:
            return None
        if 1 not in op.constants:
            return Refusal(Reason.UNKNOWN_SHAPE, f"the axes of {op.op_type} are computed at run time")
        return [int(axis) for axis in op.constants[1].ravel()] or None


def _reduced_axes(op: OpView, axes: list[int] | None, rank: int) -> set[int]:
    if axes is None:
        return set() if op.attributes.get("noop_with_empty_axes", 0) else set(range(rank))
    return {axis + rank if axis < 0 else axis for axis in axes}
