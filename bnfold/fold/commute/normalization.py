"""Normalizations that scale and shift what they have normalized: an affine behind them becomes part of that."""

from __future__ import annotations

from bnfold.affine import ChannelAffine
from bnfold.fold.commute.rule import Crossing, OpView, Rule
from bnfold.fold.report import Reason, Refusal


class Normalization(Rule):
    """LayerNormalization, RMSNormalization, InstanceNormalization, GroupNormalization: ``γ·norm(x) + β``.

    The data are out of reach, for the norm takes any scale out again. γ and β lie along the last axes, or along axis 1
    for the last two.
    """

    def backward(self, op: OpView, index: int, affine: ChannelAffine) -> Crossing | Refusal:
        """``s·(γ·n + β) + t = (s·γ)·n + (s·β + t)``."""
        if index != 0:
            return Refusal(Reason.UNSUPPORTED_OP, f"the affine comes from the statistics of the {op.op_type}")
        scale = self._fitted(op, 1, affine.scale_only())
        if isinstance(scale, Refusal):
            return scale
        if 2 not in op.present:
            no_bias = Refusal(Reason.NO_BIAS, f"the {op.op_type} has no bias to take the shift")
            return no_bias if affine.has_shift else {1: scale}
        bias = self._fitted(op, 2, affine)
        return bias if isinstance(bias, Refusal) else {1: scale, 2: bias}

    def forward(self, op: OpView, index: int, affine: ChannelAffine) -> Crossing | Refusal:
        """None: the norm mixes what the affine tells apart."""
        return Refusal(Reason.UNSUPPORTED_OP, f"the {op.op_type} behind it measures statistics that it would change")

    def _fitted(self, op: OpView, index: int, affine: ChannelAffine) -> ChannelAffine | Refusal:
        if affine.axis is None:
            return affine
        data, parameter = op.input_shapes[0], op.input_shapes[index]
        if data is None or parameter is None:
            return Refusal(Reason.UNKNOWN_SHAPE, f"the shapes around the {op.op_type} are not known")
        first = 1 if op.op_type in ("GroupNormalization", "InstanceNormalization") else len(data) - len(parameter)
        axis = affine.axis - first
        if not 0 <= axis < len(parameter) or parameter[axis] != affine.size:
            return Refusal(Reason.AXIS_MISMATCH, f"{op.op_type} does not scale the axis {affine.axis} by itself")
        return affine.moved_to(axis)
