"""Models of doubles in another floating-point type, and how far the rounding of constants may move what they compute."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import ml_dtypes
import numpy as np
import onnx_ir as ir
from folding import Array

from bnfold.verification.oracle import Oracle

_FLOATS = (ir.DataType.DOUBLE, ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


def with_dtype(model: ir.Model, dtype: ir.DataType, change: Callable[[Array], Array] = np.asarray) -> ir.Model:
    """A copy whose floating-point values are of ``dtype``, after a change to each constant, made in float64.

    The scales of a Resize stay as they are.
    """
    copy = model.clone()
    nodes = [node for graph in copy.graphs() for node in graph]
    scales = {value for node in nodes if node.op_type in ("Resize", "Upsample") for value in node.inputs[1:]}

    def converted(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
        if tensor.dtype not in _FLOATS:
            return tensor
        return ir.tensor(change(tensor.numpy().astype(np.float64)).astype(dtype.numpy()), name=tensor.name)

    for graph in copy.graphs():
        for value in (*graph.inputs, *graph.initializers.values(), *(v for node in graph for v in node.outputs)):
            if value.const_value is not None and value not in scales:
                value.const_value = converted(value.const_value)
            if value.dtype in _FLOATS and value not in scales:
                value.dtype = dtype
    for node in nodes:
        if node.op_type == "Constant":
            node.attributes.add(ir.AttrTensor("value", converted(node.attributes["value"].as_tensor())))
        if node.op_type == "Cast" and node.attributes["to"].as_int() in _FLOATS:
            node.attributes.add(ir.AttrInt64("to", dtype.value))
    return copy


def rounding_moves(model: ir.Model, dtype: ir.DataType, feeds: Mapping[str, Array], runs: int = 4) -> dict[str, float]:
    """How far the outputs move in float64 where each constant is off by one unit roundoff of ``dtype``, up or down."""
    limits = ml_dtypes.finfo(dtype.numpy())
    relative, absolute = float(limits.eps) / 2, float(limits.smallest_subnormal) / 2
    exact = Oracle(model).run(feeds)
    moves = dict.fromkeys(exact, 0.0)
    for seed in range(runs):
        random = np.random.default_rng(seed)

        def nudged(array: Array, random: np.random.Generator = random) -> Array:
            up, more = random.choice([-1, 1], (2, *array.shape))
            return np.asarray(array * (1 + relative * up) + absolute * more)

        found = Oracle(with_dtype(model, ir.DataType.DOUBLE, nudged)).run(feeds)
        for name, array in exact.items():
            if array.dtype.kind == "f":
                moves[name] = max(moves[name], float(np.abs(found[name] - array).max(initial=0)))
    return moves
