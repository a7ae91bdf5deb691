"""Activations that a positive scale passes through."""

from __future__ import annotations

from bnfold.affine import ChannelAffine
from bnfold.fold.commute.rule import Crossing, OpView, Rule, scales_negatively
from bnfold.fold.report import Reason, Refusal


class PositivelyHomogeneous(Rule):
    """Relu, LeakyRelu, PRelu: ``f(s·x) = s·f(x)`` for ``s ≥ 0``; a shift moves the kink."""

    def backward(self, op: OpView, index: int, affine: ChannelAffine) -> Crossing | Refusal:
        """The same scale."""
        return self._refusal(op, affine) or {0: affine}

    def forward(self, op: OpView, index: int, affine: ChannelAffine) -> Crossing | Refusal:
        """The same scale."""
        if index != 0:
            return Refusal(Reason.UNSUPPORTED_OP, f"the affine reaches {op.op_type} as its slope")
        return self._refusal(op, affine) or {0: affine}

    def _refusal(self, op: OpView, affine: ChannelAffine) -> Refusal | None:
        if affine.has_shift:
            return Refusal(Reason.NONZERO_SHIFT, f"{op.op_type} does not commute with a shift")
        if op.op_type == "PRelu" and op.input_shapes[0] != op.output_shapes[0]:
            # A slope of higher rank would broadcast the data, and count its axes anew.
            return Refusal(Reason.UNKNOWN_SHAPE, "the slope of the PRelu may broadcast its input")
        return scales_negatively(affine)
