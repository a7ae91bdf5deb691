"""Between the graph and the numbers: read a linear op's constants, and let it absorb an affine.

Nothing is written here: the result is the op with the affine in it, as a value, or a refusal.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bnfold.affine import ChannelAffine, Float64Array
from bnfold.fold.linear import AbsorbingOp, Linear, unit_roundoff
from bnfold.fold.linear_ops import LINEAR_OPS
from bnfold.fold.quantized import Quantization, read_quantization
from bnfold.fold.recurrent import RECURRENT_OPS
from bnfold.fold.report import Reason, Refusal
from bnfold.graph import ModelGraph, attributes_of, input_of, label

#: The ops that absorb an affine of their data.
ABSORBING_OPS: Mapping[str, AbsorbingOp] = {**LINEAR_OPS, **RECURRENT_OPS}

#: A constant of more elements than this is not copied for the sake of an op less.
_MOST_COPIED = 1 << 16


@dataclass(frozen=True, eq=False)
class Pending:
    """What earlier plans put into the graph's ops, exact and not yet written to its constants.

    Attributes:
        linears: linear ops with all that they have absorbed.
        affines: Add, Mul and BatchNormalization nodes with the affine that they now stand for.
        constants: constant inputs of other ops, rounded already, with what they are exactly.
    """

    linears: dict[ir.Node, Linear] = field(default_factory=dict)
    affines: dict[ir.Node, ChannelAffine] = field(default_factory=dict)
    constants: dict[ir.Value, Float64Array] = field(default_factory=dict)


def absorb_after(node: ir.Node, affine: ChannelAffine, graph: ModelGraph, pending: Pending) -> Linear | Refusal:
    """The linear op with an affine of its output in it."""
    op = LINEAR_OPS[node.op_type]
    linear = read_linear(node, graph, pending, bias_matters=True)
    if isinstance(linear, Refusal):
        return linear
    axis = op.output_axis(graph.shapes.rank(node.outputs[0]))
    fitted = _fit(affine, axis, linear.out_channels, node)
    if isinstance(fitted, Refusal):
        return fitted
    if fitted.has_shift and not takes_bias(node, graph):
        return Refusal(Reason.NO_BIAS, f"{label(node)} has no bias to take the shift")
    result = linear.after(fitted)
    return result.problem() or result


def absorb_before(
    node: ir.Node, affine: ChannelAffine, graph: ModelGraph, pending: Pending
) -> tuple[Linear, ChannelAffine] | Refusal:
    """The op with an affine of its data input in it, and the shift that it has no bias for, on its output."""
    op = ABSORBING_OPS[node.op_type]
    linear = read_linear(node, graph, pending, bias_matters=affine.has_shift)
    if isinstance(linear, Refusal):
        return linear
    attributes = attributes_of(node)
    axis = op.input_axis(graph.shapes.rank(input_of(node, 0)), attributes)
    fitted = _fit(affine, axis, linear.in_channels, node)
    if isinstance(fitted, Refusal):
        return fitted
    if fitted.has_shift:
        refusal = op.shift_before(attributes, linear.taps)
        if refusal:
            return refusal
    result = linear.before(fitted)
    if result.quantization is not None:
        uniform = result.with_uniform_input()
        if uniform is None:
            return Refusal(
                Reason.WEIGHT_QUANTIZED, f"the quantized weight of {label(node)} has no scale for each input"
            )
        result = uniform
    left = ChannelAffine.identity()
    if result.bias is not None and not takes_bias(node, graph):
        output_axis = LINEAR_OPS[node.op_type].output_axis(graph.shapes.rank(node.outputs[0]))
        if output_axis is None:
            return Refusal(Reason.UNKNOWN_SHAPE, f"the rank of the output of {label(node)} is not known")
        left = ChannelAffine.along(output_axis, 1.0, result.bias)
        result = replace(result, bias=None)
    return result.problem() or (result, left)


def absorb_constant(value: ir.Value, exact: Float64Array, affine: ChannelAffine, graph: ModelGraph) -> Refusal | None:
    """Why a constant cannot be stored with an affine in it, if it cannot.

    One that is only scaled may be a factor, and so must not lose a channel to underflow. A shift makes it a summand:
    what is added to that is of the same dtype, and resolves no finer.

    Args:
        value: the constant.
        exact: what it becomes.
        affine: what it takes.
        graph: the model.
    """
    if graph.constants.quantized(value):
        return Refusal(Reason.WEIGHT_QUANTIZED, f"the constant {value.name} is quantized")
    stored = graph.constants.floats(value)
    if stored is None:
        return Refusal(Reason.PARAMETERS_INVALID, f"the constant {value.name} is not of a floating-point type")
    if stored.size > _MOST_COPIED and not _gives_way(value, stored.size):
        return Refusal(Reason.COST, f"the constant {value.name} would be stored beside what it is made of or used for")
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        rounded = exact.astype(stored.dtype).astype(np.float64)
    if not np.all(np.isfinite(rounded)):
        return Refusal(Reason.OVERFLOW, f"the constant {value.name} would overflow {stored.dtype.name}")
    if not affine.has_shift and _loses_a_channel(stored, exact, rounded):
        return Refusal(Reason.UNDERFLOW, f"the constant {value.name} would underflow {stored.dtype.name}")
    return None


def _gives_way(value: ir.Value, size: int) -> bool:
    """Whether a constant, and a stored one of its size that it is made of, are gone once it is replaced."""
    while len(value.uses()) == 1 and not value.is_graph_output():
        producer = value.producer()
        if producer is None or producer.op_type == "Constant":
            return value.const_value is None or value.const_value.size >= size
        source = producer.inputs[0] if producer.inputs else None
        if source is None:
            return False
        value = source
    return False


def _loses_a_channel(stored: NDArray[Any], exact: Float64Array, rounded: Float64Array) -> bool:
    """Whether a slice along some axis loses more than rounding costs, and more than it had lost as it was stored."""
    roundoff = unit_roundoff(stored.dtype)
    if np.all(np.abs(exact - rounded) <= roundoff * np.abs(exact)):
        return False
    limits: Any = ml_dtypes.finfo  # which says nothing of its types
    half_step = float(limits(stored.dtype).smallest_subnormal) / 2
    before = np.broadcast_to(np.abs(stored.astype(np.float64)), exact.shape)
    for axis in range(exact.ndim):
        others = tuple(other for other in range(exact.ndim) if other != axis)
        largest, error, had = (a.max(axis=others) for a in (np.abs(exact), np.abs(exact - rounded), before))
        own = half_step / np.where(had > 0, had, np.inf)
        if np.any(error > 2 * np.maximum(roundoff, own) * largest):
            return True
    return exact.ndim == 0


def takes_bias(node: ir.Node, graph: ModelGraph) -> bool:
    """Whether the op has an input for a bias, or can be written as one that has: two matrices' product is a Gemm."""
    if ABSORBING_OPS[node.op_type].bias is not None:
        return True
    matrices = all(len(graph.shapes.inferred(input_of(node, index)) or ()) == 2 for index in (0, 1))
    return matrices and would_be_gemm(node, graph)


def would_be_gemm(product: ir.Node, graph: ModelGraph) -> bool:
    """Whether a MatMul may be written as a Gemm, given that it multiplies matrices.

    Before operator set 7 a Gemm did not broadcast its bias unasked. A quantized product stays what runtimes look for.
    """
    return graph.opset >= 7 and not graph.constants.quantized(input_of(product, 1))


def has_runtime_bias(node: ir.Node, graph: ModelGraph) -> bool:
    """Whether the op adds a bias that is no constant, which folding leaves as it is."""
    value = _bias_value(node)
    return value is not None and graph.constants.floats(value) is None


def bias_index(node: ir.Node) -> int | None:
    """The input of a node at which it takes a bias, if it is an op that does."""
    op = ABSORBING_OPS.get(node.op_type)
    return op.bias.index if op is not None and op.bias is not None else None


def _bias_value(node: ir.Node) -> ir.Value | None:
    index = bias_index(node)
    return node.inputs[index] if index is not None and index < len(node.inputs) else None


def read_linear(node: ir.Node, graph: ModelGraph, pending: Pending, *, bias_matters: bool) -> Linear | Refusal:
    """The constants of an op that absorbs affines, with all that it has absorbed already."""
    runtime_bias = has_runtime_bias(node, graph)
    if runtime_bias and bias_matters:
        return Refusal(Reason.WEIGHT_NOT_CONSTANT, f"the bias of {label(node)} is not a constant")
    if node in pending.linears:
        return pending.linears[node]
    weight = _read_weight(node, graph)
    if isinstance(weight, Refusal):
        return weight
    quantization = None
    if isinstance(weight, Quantization):
        quantization, weight = weight, weight.dequantized().astype(weight.scale.dtype)
    attributes = attributes_of(node)
    op = ABSORBING_OPS[node.op_type]
    kernel = op.kernel(weight, attributes)
    if isinstance(kernel, Refusal):
        return kernel
    bias_value = None if runtime_bias else _bias_value(node)
    stored = None if bias_value is None else graph.constants.floats(bias_value)
    bias = None
    if op.bias is not None and stored is not None:
        read = op.bias.read(stored, kernel.shape[0] * kernel.shape[1], attributes)
        if isinstance(read, Refusal):
            return read
        bias = read.astype(np.float64) * _factor(node, "beta")
    linear = replace(Linear.of(kernel, op.taps(weight.shape), bias), quantization=quantization)
    alpha = _factor(node, "alpha")
    return linear if alpha == 1.0 else replace(linear, out_scale=np.full(linear.out_channels, alpha))


def _factor(node: ir.Node, name: str) -> float:
    """Gemm's alpha or beta, a float32; 1 for every other op."""
    return float(np.float32(node.attributes.get_float(name, 1.0))) if node.op_type == "Gemm" else 1.0


def _read_weight(node: ir.Node, graph: ModelGraph) -> NDArray[Any] | Quantization | Refusal:
    value = node.inputs[1] if len(node.inputs) > 1 else None
    if value is None:
        return Refusal(Reason.WEIGHT_NOT_CONSTANT, f"{label(node)} has no weight")
    if graph.constants.quantized(value):
        return read_quantization(node, graph)
    if graph.constants.overridable(value):
        return Refusal(
            Reason.OVERRIDABLE_INPUT,
            f"the weight {value.name} of {label(node)} is an input that the caller may feed",
        )
    weight = graph.constants.floats(value)
    if weight is None:
        return Refusal(Reason.WEIGHT_NOT_CONSTANT, f"the weight of {label(node)} is computed at run time")
    if not weight.size:
        return Refusal(Reason.PARAMETERS_INVALID, f"the weight of {label(node)} is empty")
    return weight


def _fit(affine: ChannelAffine, axis: int | None, channels: int, node: ir.Node) -> ChannelAffine | Refusal:
    """The affine with one entry a channel, if it lies on the axis of the op's channels."""
    if affine.axis is None:
        return affine.spread(0, channels)
    if axis is None:
        return Refusal(Reason.UNKNOWN_SHAPE, f"the rank of a value at {label(node)} is not known")
    if affine.axis != axis:
        return Refusal(
            Reason.AXIS_MISMATCH,
            f"it scales axis {affine.axis}, and the channels of {label(node)} lie on axis {axis}",
        )
    if affine.size != channels:
        return Refusal(Reason.PARAMETERS_INVALID, f"{affine.size} scales for the {channels} channels of {label(node)}")
    return affine
