"""MatMul of two activations: attention scores, and matrices of constants on the left."""

from __future__ import annotations

from bnfold.affine import ChannelAffine
from bnfold.fold.commute.rule import Crossing, OpView, Rule
from bnfold.fold.report import Reason, Refusal


class Contraction(Rule):
    """MatMul without a constant weight: a scale of rows belongs to the left matrix, one of columns to the right.

    ``diag(s)·(A·B) = (diag(s)·A)·B`` and ``(A·B)·diag(s) = A·(B·diag(s))``. There is no bias to take a shift. One
    factor of a whole product stays behind it: runtimes have kernels for attention, and look for its ``1/√d`` there.
    """

    def backward(self, op: OpView, index: int, affine: ChannelAffine) -> Crossing | Refusal:
        """The scale on the rows of the left, or the columns of the right."""
        if affine.has_shift:
            return Refusal(Reason.NONZERO_SHIFT, f"{_what(op)} has no bias to take a shift")
        if affine.axis is None:
            return Refusal(Reason.UNSUPPORTED_OP, f"one factor for all of {_what(op)} is left to the runtime")
        ranks = self._ranks(op)
        if isinstance(ranks, Refusal):
            return ranks
        side = affine.axis - (max(ranks) - 2)
        if side not in (0, 1):
            return Refusal(Reason.AXIS_MISMATCH, "it scales whole matrices of the MatMul")
        return {side: affine.moved_to(ranks[side] - 2 + side)}

    def forward(self, op: OpView, index: int, affine: ChannelAffine) -> Crossing | Refusal:
        """The scale on the rows of the product, from the left; on its columns, from the right."""
        if affine.has_shift:
            return Refusal(Reason.NONZERO_SHIFT, f"{_what(op)} spreads a shift over its sums")
        if affine.axis is None:
            return {0: affine}
        ranks = self._ranks(op)
        if isinstance(ranks, Refusal):
            return ranks
        if affine.axis != ranks[index] - 2 + index:
            return Refusal(Reason.AXIS_MISMATCH, f"the MatMul does not keep the axis {affine.axis} that it scales")
        return {0: affine.moved_to(max(ranks) - 2 + index)}

    def _ranks(self, op: OpView) -> tuple[int, int] | Refusal:
        left, right = op.input_shapes[:2]
        if left is None or right is None or min(len(left), len(right)) < 2:
            return Refusal(Reason.UNKNOWN_SHAPE, "the MatMul is not known to multiply matrices")
        return len(left), len(right)


def _what(op: OpView) -> str:
    return "a MatMul with its constant on the left" if 0 in op.constants else "a MatMul of two activations"
