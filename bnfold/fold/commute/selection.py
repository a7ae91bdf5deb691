"""Ops that pick, repeat or regroup channels: the affine follows by slicing, repeating or permuting."""

from __future__ import annotations

from abc import abstractmethod

import numpy as np
from numpy.typing import NDArray

from bnfold.affine import ChannelAffine
from bnfold.fold.commute.rule import Crossing, OpView, Rule
from bnfold.fold.report import Reason, Refusal

#: For each channel of the output, the channel of the input that it is.
Origins = NDArray[np.int64]


class Selection(Rule):
    """An op whose output channels are input channels, each in one place; the base of those that follow.

    Forward each output channel takes the affine of its origin. Backward an input channel takes that of the output
    channels that come from it, if they agree; one that goes nowhere keeps the identity.
    """

    def backward(self, op: OpView, affine: ChannelAffine) -> Crossing | Refusal:
        """The affine of each channel's origin."""
        origins = self._origins(op, affine)
        if not isinstance(origins, np.ndarray):
            return origins or {0: affine}
        before = op.input_shapes[0]
        assert before is not None
        assert affine.axis is not None
        count = before[affine.axis]
        assert isinstance(count, int)
        scale, shift = np.ones(count), np.zeros(count)
        scale[origins], shift[origins] = affine.scale, affine.shift
        if np.any(scale[origins] != affine.scale) or np.any(shift[origins] != affine.shift):
            return Refusal(Reason.AXIS_MISMATCH, f"{op.op_type} repeats channels that are then scaled differently")
        return {0: ChannelAffine.along(affine.axis, scale, shift)}

    def forward(self, op: OpView, index: int, affine: ChannelAffine) -> Crossing | Refusal:
        """The affine of each output channel's origin."""
        if index != 0:
            return Refusal(Reason.UNSUPPORTED_OP, f"the affine reaches {op.op_type} as its parameter")
        origins = self._origins(op, affine)
        if not isinstance(origins, np.ndarray):
            return origins or {0: affine}
        return {0: ChannelAffine.along(affine.axis, affine.scale[origins], affine.shift[origins])}

    def _origins(self, op: OpView, affine: ChannelAffine) -> Origins | Refusal | None:
        """The origins on the affine's axis; None where the op leaves that axis as it is."""
        if affine.axis is None:
            return None
        before, after = op.input_shapes[0], op.output_shapes[0]
        if before is None or after is None:
            return Refusal(Reason.UNKNOWN_SHAPE, f"the shapes around the {op.op_type} are not known")
        if affine.axis >= min(len(before), len(after)):
            return Refusal(Reason.AXIS_MISMATCH, f"{op.op_type} changes the rank")
        count, made = before[affine.axis], after[affine.axis]
        if not isinstance(count, int) or not isinstance(made, int):
            return Refusal(Reason.UNKNOWN_SHAPE, f"the channels of the {op.op_type} are not counted")
        origins = self._on_axis(op, affine.axis, len(before), count)
        if isinstance(origins, np.ndarray) and len(origins) != made:
            return Refusal(Reason.UNKNOWN_SHAPE, f"the shapes around the {op.op_type} contradict its parameters")
        return origins

    @abstractmethod
    def _on_axis(self, op: OpView, axis: int, rank: int, count: int) -> Origins | Refusal | None:
        """The origins of the channels on ``axis``, of which the input has ``count``."""


class Slicing(Selection):
    """Slice, by constants."""

    def _on_axis(self, op: OpView, axis: int, rank: int, count: int) -> Origins | Refusal | None:
        parameters = self._parameters(op)
        if parameters is None:
            return Refusal(Reason.UNKNOWN_SHAPE, "the Slice is computed at run time")
        starts, ends, axes, steps = parameters
        for start, end, sliced, step in zip(starts, ends, axes, steps, strict=True):
            if sliced % rank == axis:
                return np.arange(count)[slice(*_clamped(start, end, step, count))]
        return None

    def _parameters(self, op: OpView) -> tuple[list[int], ...] | None:
        if op.opset < 10:
            starts, ends = list(op.attributes.get("starts", ())), list(op.attributes.get("ends", ()))
            axes = list(op.attributes.get("axes", range(len(starts))))
            return starts, ends, axes, [1] * len(starts)
        given = [op.constants[i].ravel().tolist() if i in op.constants else None for i in range(1, 5)]
        if given[0] is None or given[1] is None:
            return None
        for index in (2, 3):
            if given[index] is None:
                if index + 1 in op.present:
                    return None
                given[index] = list(range(len(given[0]))) if index == 2 else [1] * len(given[0])
        found = tuple(values for values in given if values is not None)
        return found if len({len(values) for values in found}) == 1 else None


def _clamped(start: int, end: int, step: int, count: int) -> tuple[int, int | None, int]:
    """ONNX's slice as Python's: an end before the first element, going backwards, is None there."""
    if step > 0:
        return start, end, step
    lowest = end + count if end < 0 else end
    return start, (None if lowest < 0 else lowest), step


class Gathering(Selection):
    """Gather by a constant vector along one axis."""

    def _on_axis(self, op: OpView, axis: int, rank: int, count: int) -> Origins | Refusal | None:
        gathered = int(op.attributes.get("axis", 0)) % rank
        if 1 not in op.constants:
            return Refusal(Reason.UNKNOWN_SHAPE, "the indices of the Gather are computed at run time")
        indices = op.constants[1]
        if indices.ndim != 1:
            return Refusal(Reason.AXIS_MISMATCH, "the Gather changes the rank")
        if gathered != axis:
            return None
        if np.any(indices < -count) or np.any(indices >= count):
            return Refusal(Reason.PARAMETERS_INVALID, "the Gather has an index out of range")
        return indices.astype(np.int64) % count


class Splitting(Rule):
    """Split: forward, each output has its slice; backward, one output's affine says nothing of the others'."""

    def forward(self, op: OpView, index: int, affine: ChannelAffine) -> Crossing | Refusal:
        """A slice for each output, or the same for each on another axis."""
        if index != 0:
            return Refusal(Reason.UNSUPPORTED_OP, "the affine reaches the Split as its parameter")
        outputs = range(len(op.output_shapes))
        if affine.axis is None:
            return dict.fromkeys(outputs, affine)
        shapes = [shape for shape in (op.input_shapes[0], *op.output_shapes) if shape is not None]
        if len(shapes) != len(op.output_shapes) + 1 or len({len(shape) for shape in shapes}) != 1:
            return Refusal(Reason.UNKNOWN_SHAPE, "the shapes around the Split are not known")
        if int(op.attributes.get("axis", 0)) % len(shapes[0]) != affine.axis:
            return dict.fromkeys(outputs, affine)
        lengths = [shape[affine.axis] for shape in shapes[1:]]
        ends = np.cumsum([length for length in lengths if isinstance(length, int)])
        if len(ends) != len(lengths) or ends[-1] != affine.size:
            return Refusal(Reason.UNKNOWN_SHAPE, "the lengths of the Split are not known")
        parts = [affine.take(np.arange(end - length, end)) for end, length in zip(ends, lengths, strict=True)]
        return {i: ChannelAffine.along(affine.axis, part.scale, part.shift) for i, part in enumerate(parts)}


class Blocks(Rule):
    """DepthToSpace and SpaceToDepth: ``b²`` channels on one side are the pixels of one channel on the other."""

    def backward(self, op: OpView, affine: ChannelAffine) -> Crossing | Refusal:
        """DepthToSpace: each channel's affine for all its pixels; SpaceToDepth: the one that they share."""
        return self._moved(op, affine, deeper=op.op_type == "DepthToSpace")

    def forward(self, op: OpView, index: int, affine: ChannelAffine) -> Crossing | Refusal:
        """The other way round."""
        return self._moved(op, affine, deeper=op.op_type == "SpaceToDepth")

    def _moved(self, op: OpView, affine: ChannelAffine, *, deeper: bool) -> Crossing | Refusal:
        if affine.axis is None:
            return {0: affine}
        if affine.axis != 1:
            return Refusal(Reason.AXIS_MISMATCH, f"{op.op_type} moves the axis {affine.axis}")
        times = int(op.attributes["blocksize"]) ** 2
        # In column-row-depth order, the channels of one block are neighbours.
        neighbours = op.attributes.get("mode", "DCR") == "CRD"
        if deeper:
            return {0: _spread(affine, times, neighbours=neighbours)}
        if affine.size % times:
            return Refusal(Reason.PARAMETERS_INVALID, f"{affine.size} channels in blocks of {times}")
        first = affine.take(slice(None, None, times) if neighbours else slice(affine.size // times))
        again = _spread(first, times, neighbours=neighbours)
        if np.array_equal(again.scale, affine.scale) and np.array_equal(again.shift, affine.shift):
            return {0: ChannelAffine.along(1, first.scale, first.shift)}
        return Refusal(Reason.AXIS_MISMATCH, f"{op.op_type} mixes channels whose scales differ")


def _spread(affine: ChannelAffine, times: int, *, neighbours: bool) -> ChannelAffine:
    if neighbours:
        return affine.repeated(times)
    return ChannelAffine(affine.axis, np.tile(affine.scale, times), np.tile(affine.shift, times))
