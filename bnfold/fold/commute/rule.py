"""What a commuting rule is asked, and what it may know of the op."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnfold.affine import ChannelAffine, Float64Array
from bnfold.fold.report import Reason, Refusal
from bnfold.shapes import Dim

Shape = tuple[Dim, ...]


@dataclass(frozen=True, eq=False)
class OpView:
    """What a rule may know of an op.

    Attributes:
        op_type: its ONNX name.
        opset: version of the default operator set.
        attributes: its attributes as plain values.
        input_shapes: of each input; None where the rank is unknown or the input is absent.
        output_shapes: of each output.
        present: the indices of the inputs that are there.
        constants: the constant inputs by index.
        carrier: the one of the rule's :meth:`~Rule.carriers` that is to be tried; None for the first.
    """

    op_type: str
    opset: int
    attributes: Mapping[str, Any]
    input_shapes: tuple[Shape | None, ...]
    output_shapes: tuple[Shape | None, ...]
    present: frozenset[int]
    constants: Mapping[int, NDArray[Any]]
    carrier: int | None = None


#: An affine for each input or output that must carry one, by index.
Crossing = Mapping[int, ChannelAffine]


class Rule:
    """How affines pass through one op, in both directions; this base refuses both."""

    def backward(self, op: OpView, index: int, affine: ChannelAffine) -> Crossing | Refusal:
        """The affines on the inputs that replace ``affine`` on output ``index``."""
        return Refusal(Reason.UNSUPPORTED_OP, f"it cannot pass the {op.op_type} before it")

    def forward(self, op: OpView, index: int, affine: ChannelAffine) -> Crossing | Refusal:
        """The affines on the outputs that replace ``affine`` on input ``index``."""
        return Refusal(Reason.UNSUPPORTED_OP, f"it cannot pass the {op.op_type} behind it")

    def balanced(self, op: OpView, index: int, affine: ChannelAffine) -> tuple[Crossing, Crossing] | Refusal:
        """The affines on the outputs that replace ``affine`` on input ``index``, if other inputs are divided by it.

        Returns:
            The affines on the outputs, and those on the other inputs, scales alone.
        """
        return Refusal(Reason.UNSUPPORTED_OP, f"it cannot pass the {op.op_type} behind it")

    def aside(self, op: OpView, index: int, affine: ChannelAffine) -> Crossing:
        """The affine on one constant input that replaces ``affine`` on input ``index``; none where none can."""
        return {}

    def carriers(self, op: OpView, affine: ChannelAffine) -> Sequence[int]:
        """The inputs any one of which may take what only one can: the shift of a sum, the scale of a product.

        Which of them can, is seen only farther back: the planner tries them in this order.
        """
        return ()

    def constant(self, op: OpView, index: int, affine: ChannelAffine) -> Float64Array | Refusal:
        """What the constant input ``index`` becomes with the affine in it that the rule gave for it."""
        array = op.constants[index]
        if affine.axis is not None and (affine.axis >= array.ndim or array.shape[affine.axis] != affine.size):
            return Refusal(
                Reason.PARAMETERS_INVALID,
                f"a constant of shape {array.shape} has no axis {affine.axis} of {affine.size} in {op.op_type}",
            )
        return affine.apply(array)


def scales_negatively(affine: ChannelAffine) -> Refusal | None:
    """Why an op that keeps order cannot be crossed, if a channel is turned around."""
    if np.any(affine.scale < 0):
        return Refusal(Reason.NEGATIVE_SCALE, "a negative scale turns large into small")
    return None
