"""Ops that make positions of others: padding, resizing, sampling, reversing, along other axes than the affine's.

That an axis keeps its length proves nothing here: a Pad by one in front and minus one behind moves every channel, and a
Resize by 1.2 of four channels yields four again. The op's own numbers for the axis are read instead.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnfold.affine import ChannelAffine
from bnfold.fold.commute.rule import Crossing, OpView, Rule
from bnfold.fold.report import Reason, Refusal


class SameAxis(Rule):
    """An op that leaves the affine's axis alone, or cannot be crossed; the base of those that follow."""

    def backward(self, op: OpView, index: int, affine: ChannelAffine) -> Crossing | Refusal:
        """The same affine."""
        return self._refusal(op, affine) or {0: affine}

    def forward(self, op: OpView, index: int, affine: ChannelAffine) -> Crossing | Refusal:
        """The same affine."""
        if index != 0:
            return Refusal(Reason.UNSUPPORTED_OP, f"the affine reaches {op.op_type} as its parameter")
        return self._refusal(op, affine) or {0: affine}

    def _refusal(self, op: OpView, affine: ChannelAffine) -> Refusal | None:
        return Refusal(Reason.UNSUPPORTED_OP, f"it cannot pass the {op.op_type}")


class Padding(SameAxis):
    """Pad: positions copied from the data are scaled with it; a constant must be one that the affine leaves alone."""

    def _refusal(self, op: OpView, affine: ChannelAffine) -> Refusal | None:
        if affine.axis is not None and not self._leaves(op, affine.axis):
            return Refusal(Reason.AXIS_MISMATCH, f"the Pad is not known to leave axis {affine.axis} as it is")
        if op.attributes.get("mode", "constant") != "constant":
            return None
        value = self._value(op)
        if value is None:
            return Refusal(Reason.UNKNOWN_SHAPE, "the value of the Pad is computed at run time")
        if np.any(affine.scale * value + affine.shift != value):
            return Refusal(Reason.PADDING, f"the Pad adds {value:g}, which the scale and shift would change")
        return None

    def _leaves(self, op: OpView, axis: int) -> bool:
        """Whether nothing is added to, or taken from, either end of an axis."""
        shape = op.input_shapes[0]
        pads = np.asarray(op.attributes["pads"]) if "pads" in op.attributes else op.constants.get(1)
        if shape is None or pads is None or (3 in op.present and 3 not in op.constants):
            return False
        axes = [int(a) % len(shape) for a in op.constants[3].ravel()] if 3 in op.present else list(range(len(shape)))
        if pads.size != 2 * len(axes):
            return False
        return all(begin == end == 0 for a, begin, end in zip(axes, *pads.reshape(2, -1), strict=True) if a == axis)

    def _value(self, op: OpView) -> float | None:
        if op.opset < 11:
            return float(op.attributes.get("value", 0.0))
        if 2 not in op.present:
            return 0.0
        return float(op.constants[2].ravel()[0]) if 2 in op.constants and op.constants[2].size else None


class Resampling(SameAxis):
    """Resize and Upsample of other axes: every new position is a mean of old ones, its weights sum to one.

    That holds for nearest, linear and cubic, with and without antialiasing; not where a position outside the data
    gets a value of its own (``tf_crop_and_resize``).
    """

    def _refusal(self, op: OpView, affine: ChannelAffine) -> Refusal | None:
        mode = op.attributes.get("coordinate_transformation_mode", "half_pixel")
        if mode == "tf_crop_and_resize":
            return Refusal(Reason.UNSUPPORTED_OP, "the Resize gives positions outside the data a value of its own")
        if affine.axis is None or self._leaves(op, affine.axis, mode):
            return None
        return Refusal(Reason.AXIS_MISMATCH, f"{op.op_type} is not known to leave axis {affine.axis} as it is")

    def _leaves(self, op: OpView, axis: int, mode: str) -> bool:
        """Whether each position of an axis stays the mean of itself alone."""
        shape = op.input_shapes[0]
        if shape is None or axis >= len(shape):
            return False
        axes = [int(a) % len(shape) for a in op.attributes.get("axes", range(len(shape)))]
        if axis not in axes:
            return True
        if mode == "tf_half_pixel_for_nn":  # it moves positions by half a step even where nothing is resized
            return False
        place = axes.index(axis)
        scales, sizes = self._scales(op), op.constants.get(3)
        if scales is not None and scales.size:
            return scales.size == len(axes) and float(scales[place]) == 1.0
        if 3 not in op.present or op.attributes.get("keep_aspect_ratio_policy", "stretch") != "stretch":
            return False
        if sizes is not None:
            return sizes.size == len(axes) and bool(sizes[place] == shape[axis])
        after = op.output_shapes[0]  # which is what the sizes say, though another of them is computed
        return after is not None and isinstance(shape[axis], int) and after[axis] == shape[axis]

    def _scales(self, op: OpView) -> NDArray[Any] | None:
        if "scales" in op.attributes:
            return np.asarray(op.attributes["scales"])
        index = 1 if op.op_type == "Upsample" or op.opset < 11 else 2
        return op.constants[index].ravel() if index in op.constants else None


class Sampling(SameAxis):
    """GridSample: every position of a channel is a mean of old ones of that channel, its weights sum to one.

    With zeros for padding, some of the old ones are 0.
    """

    def _refusal(self, op: OpView, affine: ChannelAffine) -> Refusal | None:
        if affine.axis not in (None, 0, 1):
            return Refusal(Reason.AXIS_MISMATCH, f"the GridSample mixes positions along axis {affine.axis}")
        if affine.has_shift and op.attributes.get("padding_mode", "zeros") == "zeros":
            return Refusal(Reason.PADDING, "the GridSample pads with zeros, which the shift would change")
        return None


class Reversal(SameAxis):
    """ReverseSequence: positions along the axis of time change places, as many as each sequence is long."""

    def _refusal(self, op: OpView, affine: ChannelAffine) -> Refusal | None:
        time = int(op.attributes.get("time_axis", 0))
        if affine.axis == time:
            return Refusal(Reason.AXIS_MISMATCH, f"the ReverseSequence turns axis {time} around")
        return None
