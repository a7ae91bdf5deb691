"""Weights that are stored as integers, and reach their op through a DequantizeLinear.

With integers ``q``, zero points ``z`` and scales ``d`` for each output channel, the weight is ``W = d · (q − z)``. A
factor ``s`` on the output channels changes the scales only, ``d' = s · d``, which is exact but for the rounding of
``d'``; a scale stays positive, so that a negative factor turns the integers around, ``q' = 2·z − q``, where that fits
their type. A factor on single input channels has no place in it.

Source: the ONNX operator specification of DequantizeLinear.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bnfold.affine import Float64Array
from bnfold.fold.report import Reason, Refusal
from bnfold.graph import ModelGraph, attributes_of, input_of, label

#: DequantizeLinear takes one scale for each channel from this operator set on.
_PER_CHANNEL = 13


@dataclass(frozen=True, eq=False)
class Quantization:
    """How a weight is stored.

    Attributes:
        levels: the integers, in the shape of the weight.
        zero: zero points, one for each output channel, in the integers' type.
        scale: the same of scales, in the type of the dequantized weight.
        axis: of the weight, along which its output channels lie.
        per_channel: whether the channels' scales may differ; before operator set 13 they may not.
    """

    levels: NDArray[Any]
    zero: NDArray[Any]
    scale: NDArray[Any]
    axis: int
    per_channel: bool = True

    def dequantized(self) -> Float64Array:
        """``d · (q − z)`` in float64."""
        centred = self.levels.astype(np.float64) - self._column(self.zero).astype(np.float64)
        return centred * self._column(self.scale).astype(np.float64)

    def times(self, factors: Float64Array) -> Quantization | Refusal:
        """The same for the weight with each output channel multiplied by a factor."""
        if not self.per_channel and np.any(np.abs(factors) != np.abs(factors[:1])):
            what = f"DequantizeLinear has one scale for all channels before operator set {_PER_CHANNEL}"
            return Refusal(Reason.WEIGHT_QUANTIZED, what)
        levels = self._turned(factors < 0)
        if isinstance(levels, Refusal):
            return levels
        exact, dead = self.scale.astype(np.float64) * np.abs(factors), factors == 0
        with np.errstate(over="ignore", under="ignore"):
            # A channel that is multiplied by 0 has zeros for levels, whatever its scale.
            scale = np.where(dead, self.scale.astype(np.float64), exact).astype(self.scale.dtype)
        finfo: Any = ml_dtypes.finfo
        if not np.all(np.isfinite(scale.astype(np.float64))):
            return Refusal(Reason.OVERFLOW, f"a scale of the quantized weight would overflow {scale.dtype.name}")
        if np.any((exact < float(finfo(scale.dtype).tiny)) & ~dead):
            return Refusal(Reason.UNDERFLOW, f"a scale of the quantized weight would underflow {scale.dtype.name}")
        levels = np.where(self._column(dead), self._column(self.zero), levels)
        return replace(self, levels=levels, scale=scale)

    def _turned(self, which: NDArray[np.bool_]) -> NDArray[Any] | Refusal:
        if not np.any(which):
            return self.levels
        wide = self.levels.astype(np.int64)
        wide = np.where(self._column(which), 2 * self._column(self.zero).astype(np.int64) - wide, wide)
        turned = wide.astype(self.levels.dtype)
        if np.any(turned.astype(np.int64) != wide):
            what = f"a negative factor would turn {self.levels.dtype.name} levels out of their range"
            return Refusal(Reason.NEGATIVE_SCALE, what)
        return turned

    def _column(self, vector: NDArray[Any]) -> NDArray[Any]:
        return vector.reshape([-1 if axis == self.axis else 1 for axis in range(self.levels.ndim)])


def read_quantization(node: ir.Node, graph: ModelGraph) -> Quantization | Refusal:
    """How the weight of a linear op is stored, given that it comes out of a DequantizeLinear.

    Args:
        node: the linear op.
        graph: the model.
    """
    dequantize = input_of(node, 1).producer()
    assert dequantize is not None
    named = f"the quantized weight of {label(node)}"
    inputs = [value for value in dequantize.inputs if value is not None]
    if any(graph.constants.overridable(value) for value in inputs):
        return Refusal(Reason.OVERRIDABLE_INPUT, f"{named} is an input that the caller may feed")
    arrays = [graph.constants.array(value) for value in inputs]
    levels, scale = (*arrays, None, None)[:2]
    if levels is None or scale is None or any(array is None for array in arrays):
        return Refusal(Reason.WEIGHT_NOT_CONSTANT, f"{named} is computed at run time")
    attributes = attributes_of(dequantize)
    if levels.dtype.kind not in "iu" or attributes.get("block_size", 0):
        return Refusal(Reason.WEIGHT_QUANTIZED, f"{named} is stored in blocks, or not as integers")
    if not levels.size:
        return Refusal(Reason.PARAMETERS_INVALID, f"{named} is empty")
    if attributes.get("output_dtype", 0) not in (0, ir.DataType.from_numpy(scale.dtype).value):
        return Refusal(Reason.WEIGHT_QUANTIZED, f"{named} is dequantized to another type than that of its scales")
    axis = _output_axis(node, levels.ndim)
    if axis is None:
        return Refusal(Reason.WEIGHT_QUANTIZED, f"{named} has no axis of output channels by itself")
    channels = levels.shape[axis]
    own_axis = int(attributes.get("axis", 1)) % max(levels.ndim, 1)
    if scale.size != 1 and (scale.shape != (channels,) or own_axis != axis):
        return Refusal(Reason.WEIGHT_QUANTIZED, f"{named} is scaled along another axis than its output channels")
    zero = arrays[2] if len(arrays) > 2 else None
    zero = np.zeros(1, levels.dtype) if zero is None else zero
    return Quantization(
        levels=levels,
        zero=np.broadcast_to(zero.reshape(-1), channels),
        scale=np.broadcast_to(scale.reshape(-1), channels),
        axis=axis,
        per_channel=graph.opset >= _PER_CHANNEL,
    )


def _output_axis(node: ir.Node, rank: int) -> int | None:
    attributes = attributes_of(node)
    match node.op_type:
        case "Conv" | "DeformConv":
            return 0
        case "ConvTranspose":  # (in, out / group, …): the groups share what lies along that axis
            return 1 if attributes.get("group", 1) == 1 else None
        case "Gemm":
            return 0 if attributes.get("transB", 0) else 1
        case _:
            return 1 if rank == 2 else None


def write_quantization(node: ir.Node, changed: Quantization, graph: ModelGraph) -> None:
    """Give a linear op its weight in another quantization: a DequantizeLinear of its own, with new constants.

    What others read stays as it is.
    """
    old = input_of(node, 1)
    before = old.producer()
    assert before is not None
    stored, scale = input_of(before, 0), input_of(before, 1)
    present = graph.constants.array(stored) if stored.is_initializer() else None
    levels = (
        stored
        if present is not None and np.array_equal(present, changed.levels)
        else graph.add_constant(changed.levels, f"{stored.name}_folded")
    )
    uniform = bool(np.all(changed.scale == changed.scale[:1]) and np.all(changed.zero == changed.zero[:1]))

    def stored_vector(vector: NDArray[Any], name: str) -> ir.Value:
        return graph.add_constant(vector[0].reshape(()) if uniform else vector, f"{name}_folded")

    inputs = [levels, stored_vector(changed.scale, str(scale.name))]
    zero = before.inputs[2] if len(before.inputs) > 2 else None
    if zero is not None:
        inputs.append(stored_vector(changed.zero, str(zero.name)))
    graph.insert_before(node, 1, "DequantizeLinear", inputs, {} if uniform else {"axis": changed.axis})
