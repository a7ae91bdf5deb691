"""Round what has been folded into the graph's constants, each once."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bnfold.fold.absorb import ABSORBING_OPS, Pending, has_runtime_bias
from bnfold.fold.affine_ops import rewrite
from bnfold.fold.linear import Linear
from bnfold.fold.quantized import Quantization, write_quantization
from bnfold.graph import ModelGraph, attributes_of, input_of, label


def write(pending: Pending, graph: ModelGraph) -> dict[ir.Node, float]:
    """Round what is pending into the graph's constants; the rounding error of each linear op."""
    shared: dict[WeightKey, ir.Value] = {}
    linears = {node: linear for node, linear in pending.linears.items() if node.graph is not None}
    errors = {node: _write_linear(graph, node, linear, shared) for node, linear in linears.items()}
    for node, affine in pending.affines.items():
        if node.graph is not None:
            rewrite(node, affine, graph)
    return errors


#: A stored weight, how an op reads it, and what the op multiplies its channels with.
WeightKey = tuple[ir.Value, tuple[object, ...], bytes, bytes]


def weight_key(node: ir.Node, linear: Linear) -> WeightKey:
    """Equal for ops that shared a weight, read it alike and absorbed the same: those go on sharing one."""
    attributes = attributes_of(node)
    layout = (
        "MatMul" if node.op_type == "Gemm" else node.op_type,  # which may become one
        attributes.get("group", 1),
        attributes.get("transB", 0),
        node if linear.is_new else None,
    )
    return input_of(node, 1), layout, linear.out_scale.tobytes(), linear.in_scale.tobytes()


def _write_linear(graph: ModelGraph, node: ir.Node, linear: Linear, shared: dict[WeightKey, ir.Value]) -> float:
    bias = linear.rounded_bias()
    weight = input_of(node, 1)
    name = weight.name or label(node)
    if bias is not None:
        if node.op_type == "MatMul":
            node.op_type = "Gemm"
        # First, because an exported bias is often computed from the shape of the weight, and so shares it.
        _write_bias(graph, node, bias, bias_name(name))
    if linear.changed and linear.quantization is not None:
        changed = linear.quantization.times(linear.out_scale)
        assert isinstance(changed, Quantization), "a fold was planned that cannot be written"
        write_quantization(node, changed, graph)
    elif linear.changed:
        key = weight_key(node, linear)
        if key in shared:
            graph.use(node, 1, shared[key])
        else:
            shared[key] = graph.set_constant(node, 1, _stored(weight, node, linear, graph), name)
    node.attributes.pop("alpha", None)  # it is in the weight now, and beta in the bias
    if not has_runtime_bias(node, graph):
        node.attributes.pop("beta", None)
    return linear.rounding_error() if linear.changed else 0.0


def _write_bias(graph: ModelGraph, node: ir.Node, bias: NDArray[Any], name: str) -> None:
    slot = ABSORBING_OPS[node.op_type].bias
    assert slot is not None, "a shift was planned into an op without a bias"
    value = node.inputs[slot.index] if slot.index < len(node.inputs) else None
    present = None if value is None else graph.constants.floats(value)
    new = slot.stored(bias, present, attributes_of(node))
    if value is None or present is None or not value.is_initializer() or not np.array_equal(present, new):
        graph.set_constant(node, slot.index, new, name)


def _stored(weight: ir.Value, node: ir.Node, linear: Linear, graph: ModelGraph) -> NDArray[Any] | ir.LazyTensor:
    """The weight to be stored; one that takes the place of another is computed when it is asked for, each time.

    Written to a file, it is then in memory no longer than that takes, and a model may be as large as the memory.
    """
    attributes, store = attributes_of(node), ABSORBING_OPS[node.op_type].stored
    if linear.is_new:
        return store(linear.rounded_kernel(), attributes, linear.taps)
    present = graph.constants.array(weight)
    assert present is not None

    def compute() -> ir.Tensor[NDArray[Any]]:
        return ir.Tensor(np.ascontiguousarray(store(linear.rounded_kernel(), attributes, linear.taps)))

    return ir.LazyTensor(compute, ir.DataType.from_numpy(linear.dtype), ir.Shape(present.shape))


def bias_name(weight: str) -> str:
    """What to call the bias of an op, by the name of its weight."""
    stem, dot, last = weight.rpartition(".")
    return f"{stem}.bias" if dot and last == "weight" else f"{weight}_bias"
