"""Ops that fill in new positions: padding and resizing, along other axes than that of the affine."""

from __future__ import annotations

import numpy as np

from bnfold.affine import ChannelAffine
from bnfold.fold.commute.rule import Crossing, OpView, Rule
from bnfold.fold.report import Reason, Refusal


class Padding(Rule):
    """Pad: positions copied from the data are scaled with it; a constant must be one that the affine leaves alone."""

    def backward(self, op: OpView, affine: ChannelAffine) -> Crossing | Refusal:
        """The same affine."""
        return self._refusal(op, affine) or {0: affine}

    def forward(self, op: OpView, index: int, affine: ChannelAffine) -> Crossing | Refusal:
        """The same affine."""
        if index != 0:
            return Refusal(Reason.UNSUPPORTED_OP, "the affine reaches the Pad as its parameter")
        return self._refusal(op, affine) or {0: affine}

    def _refusal(self, op: OpView, affine: ChannelAffine) -> Refusal | None:
        if affine.axis is not None and not same_length(op, affine.axis):
            return Refusal(Reason.AXIS_MISMATCH, f"the Pad is not known to leave axis {affine.axis} as it is")
        if op.attributes.get("mode", "constant") != "constant":
            return None
        value = self._value(op)
        if value is None:
            return Refusal(Reason.UNKNOWN_SHAPE, "the value of the Pad is computed at run time")
        if np.any(affine.scale * value + affine.shift != value):
            return Refusal(Reason.PADDING, f"the Pad adds {value:g}, which the scale and shift would change")
        return None

    def _value(self, op: OpView) -> float | None:
        if op.opset < 11:
            return float(op.attributes.get("value", 0.0))
        if 2 not in op.present:
            return 0.0
        return float(op.constants[2].ravel()[0]) if 2 in op.constants and op.constants[2].size else None


def same_length(op: OpView, axis: int) -> bool:
    """Whether an axis is known to have the same length before and after the op."""
    before, after = op.input_shapes[0], op.output_shapes[0]
    if before is None or after is None or axis >= min(len(before), len(after)):
        return False
    return isinstance(before[axis], int) and before[axis] == after[axis]


class Resampling(Rule):
    """Resize and Upsample of other axes: every new position is a mean of old ones, its weights sum to one.

    That holds for nearest, linear and cubic, with and without antialiasing; not where a position outside the data
    gets a value of its own (``tf_crop_and_resize``).
    """

    def backward(self, op: OpView, affine: ChannelAffine) -> Crossing | Refusal:
        """The same affine."""
        return self._refusal(op, affine) or {0: affine}

    def forward(self, op: OpView, index: int, affine: ChannelAffine) -> Crossing | Refusal:
        """The same affine."""
        if index != 0:
            return Refusal(Reason.UNSUPPORTED_OP, f"the affine reaches {op.op_type} as its parameter")
        return self._refusal(op, affine) or {0: affine}

    def _refusal(self, op: OpView, affine: ChannelAffine) -> Refusal | None:
        if affine.axis is not None and (affine.axis > 1 or not same_length(op, affine.axis)):
            return Refusal(Reason.AXIS_MISMATCH, f"{op.op_type} is not known to leave axis {affine.axis} as it is")
        if op.attributes.get("coordinate_transformation_mode") == "tf_crop_and_resize":
            return Refusal(Reason.UNSUPPORTED_OP, "the Resize gives positions outside the data a value of its own")
        return None
