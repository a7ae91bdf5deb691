"""Ops that pick, repeat or regroup channels: the affine follows by slicing, repeating or permuting."""

from __future__ import annotations

from abc import abstractmethod

import numpy as np
from numpy.typing import NDArray

from bnfold.affine import ChannelAffine, joined
from bnfold.fold.commute.rule import Crossing, OpView, Rule, Shape
from bnfold.fold.report import Reason, Refusal

#: For each channel of the output, the channel of the input that it is.
Origins = NDArray[np.int64]


class Selection(Rule):
    """An op whose output channels are input channels, each in one place; the base of those that follow.

    Forward each output channel takes the affine of its origin. Backward an input channel takes that of the output
    channels that come from it, if they agree; one that goes nowhere keeps the identity.
    """

    def backward(self, op: OpView, index: int, affine: ChannelAffine) -> Crossing | Refusal:
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


class Tiling(Selection):
    """Tile: on an axis that is repeated, each copy has the channels of the first."""

    def _on_axis(self, op: OpView, axis: int, rank: int, count: int) -> Origins | Refusal | None:
        assert op.output_shapes[0] is not None
        made = op.output_shapes[0][axis]
        assert isinstance(made, int)
        return np.arange(made) % max(count, 1)


class Expansion(Rule):
    """Expand: axes keep their distance from the last; a single element is repeated along an axis, or on a new one."""

    def backward(self, op: OpView, index: int, affine: ChannelAffine) -> Crossing | Refusal:
        """The affine on the same axis, if the input has it in full length."""
        if affine.axis is None:
            return {0: affine}
        shapes = self._shapes(op)
        if isinstance(shapes, Refusal):
            return shapes
        before, after = shapes
        axis = affine.axis - (len(after) - len(before))
        if axis < 0 or before[axis] == 1:
            return Refusal(Reason.AXIS_MISMATCH, "the Expand repeats one element, that is then scaled differently")
        if before[axis] != affine.size:
            return Refusal(Reason.UNKNOWN_SHAPE, f"the Expand may repeat elements along axis {affine.axis}")
        return {0: affine.moved_to(axis)}

    def forward(self, op: OpView, index: int, affine: ChannelAffine) -> Crossing | Refusal:
        """The affine on the same axis: channels that differ are more than one, and so are not repeated."""
        if index != 0:
            return Refusal(Reason.UNSUPPORTED_OP, "the affine reaches the Expand as its shape")
        if affine.axis is None:
            return {0: affine}
        shapes = self._shapes(op)
        if isinstance(shapes, Refusal):
            return shapes
        before, after = shapes
        return {0: affine.moved_to(affine.axis + len(after) - len(before))}

    def _shapes(self, op: OpView) -> tuple[Shape, Shape] | Refusal:
        before, after = op.input_shapes[0], op.output_shapes[0]
        if before is None or after is None:
            return Refusal(Reason.UNKNOWN_SHAPE, "the ranks around the Expand are not known")
        return before, after


class Gathering(Selection):
    """Gather: the axes that it does not index are crossed, whatever the indices; the one that it does, by constants."""

    def backward(self, op: OpView, index: int, affine: ChannelAffine) -> Crossing | Refusal:
        """The affine on the axis of the data that it comes from."""
        if affine.axis is None:
            return {0: affine}
        places = self._places(op)
        if isinstance(places, Refusal):
            return places
        gathered, depth = places
        if affine.axis < gathered:
            return {0: affine}
        if affine.axis >= gathered + depth:
            return {0: affine.moved_to(affine.axis - depth + 1)}
        return super().backward(op, index, affine) if depth == 1 else _gathered(op)

    def forward(self, op: OpView, index: int, affine: ChannelAffine) -> Crossing | Refusal:
        """The affine on the axis that its own becomes; that of one channel, where a single one is picked."""
        if index != 0:
            return Refusal(Reason.UNSUPPORTED_OP, "the affine reaches the Gather as its indices")
        if affine.axis is None:
            return {0: affine}
        places = self._places(op)
        if isinstance(places, Refusal):
            return places
        gathered, depth = places
        if affine.axis < gathered:
            return {0: affine}
        if affine.axis > gathered:
            return {0: affine.moved_to(affine.axis + depth - 1)}
        if depth == 1:
            return super().forward(op, index, affine)
        picked = op.constants.get(1)
        if depth > 1 or picked is None or not -affine.size <= picked < affine.size:
            return _gathered(op)
        return {0: ChannelAffine.along(None, affine.scale[int(picked)], affine.shift[int(picked)])}

    def _places(self, op: OpView) -> tuple[int, int] | Refusal:
        """The axis of the data that is indexed, and how many axes the indices have."""
        data, indices = op.input_shapes[0], op.input_shapes[1]
        if data is None or indices is None:
            return Refusal(Reason.UNKNOWN_SHAPE, "the ranks around the Gather are not known")
        axis = int(op.attributes.get("axis", 0))
        return axis + len(data) if axis < 0 else axis, len(indices)

    def _on_axis(self, op: OpView, axis: int, rank: int, count: int) -> Origins | Refusal | None:
        if 1 not in op.constants:
            return Refusal(Reason.UNKNOWN_SHAPE, "the indices of the Gather are computed at run time")
        indices = op.constants[1]
        if np.any(indices < -count) or np.any(indices >= count):
            return Refusal(Reason.PARAMETERS_INVALID, "the Gather has an index out of range")
        return indices.astype(np.int64) % count


def _gathered(op: OpView) -> Refusal:
    return Refusal(Reason.AXIS_MISMATCH, f"the {op.op_type} takes the axis that it scales apart")


class Splitting(Rule):
    """Split: each output has its slice; backward, the slices of the other outputs keep the identity."""

    def backward(self, op: OpView, index: int, affine: ChannelAffine) -> Crossing | Refusal:
        """On the axis that is split, the affine for its slice of the input."""
        axis = self._axis(op)
        if isinstance(axis, Refusal):
            return axis
        if affine.axis not in (None, axis):
            return Refusal(Reason.AXIS_MISMATCH, "the other outputs of the Split do not carry the same scale")
        lengths = self._lengths(op, axis)
        if isinstance(lengths, Refusal):
            return lengths
        if not affine.fits(axis, lengths[index]):
            return Refusal(Reason.PARAMETERS_INVALID, f"{affine.size} scales for {lengths[index]} parts of the Split")
        parts = [ChannelAffine.identity()] * len(lengths)
        parts[index] = affine
        return {0: joined(axis, list(zip(parts, lengths, strict=True)))}

    def forward(self, op: OpView, index: int, affine: ChannelAffine) -> Crossing | Refusal:
        """A slice for each output, or the same for each on another axis."""
        if index != 0:
            return Refusal(Reason.UNSUPPORTED_OP, "the affine reaches the Split as its parameter")
        outputs = range(len(op.output_shapes))
        if affine.axis is None:
            return dict.fromkeys(outputs, affine)
        axis = self._axis(op)
        if isinstance(axis, Refusal):
            return axis
        if axis != affine.axis:
            return dict.fromkeys(outputs, affine)
        lengths = self._lengths(op, axis)
        if isinstance(lengths, Refusal):
            return lengths
        ends = np.cumsum(lengths)
        if ends[-1] != affine.size:
            return Refusal(Reason.PARAMETERS_INVALID, f"{affine.size} scales for {ends[-1]} parts of the Split")
        parts = [affine.take(np.arange(end - length, end)) for end, length in zip(ends, lengths, strict=True)]
        return {i: ChannelAffine.along(axis, part.scale, part.shift) for i, part in enumerate(parts)}

    def _axis(self, op: OpView) -> int | Refusal:
        shape, axis = op.input_shapes[0], int(op.attributes.get("axis", 0))
        if shape is None and axis < 0:
            return Refusal(Reason.UNKNOWN_SHAPE, "the rank of the Split's input is not known")
        return axis + len(shape) if shape is not None and axis < 0 else axis

    def _lengths(self, op: OpView, axis: int) -> list[int] | Refusal:
        """How much each output has of the axis that is split."""
        lengths = [None if shape is None or axis >= len(shape) else shape[axis] for shape in op.output_shapes]
        known = [length for length in lengths if isinstance(length, int)]
        if len(known) != len(lengths):
            return Refusal(Reason.UNKNOWN_SHAPE, "the lengths of the Split are not known")
        return known


class Blocks(Rule):
    """DepthToSpace and SpaceToDepth: ``b²`` channels on one side are the pixels of one channel on the other."""

    def backward(self, op: OpView, index: int, affine: ChannelAffine) -> Crossing | Refusal:
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
        if not times:
            return Refusal(Reason.PARAMETERS_INVALID, f"a {op.op_type} of blocks of no size")
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
