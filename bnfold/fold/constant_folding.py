"""Constants that tie up a run-time value, or that shape inference does not see through, become plain initializers.

Exporters write the bias of a convolution as ``Expand(CastLike(0, x), Shape(w))``, the bounds of a Clip as
``CastLike(6, x)``, and a static shape as ``Concat(Shape(x)[0], …)``. Such a constant ties up ``x``, which then cannot
be merged away, and ONNX Runtime does not see through a CastLike, so that it misses fusions. The few integers of a
shape, of axes or of bounds are written out however they are computed, since ONNX's shape inference follows a few ops
only. Other constants that are computed from constants alone are left to the runtime: writing them out would only make
the file larger.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from bnfold.fold.linear import LINEAR_OPS
from bnfold.fold.write import bias_name
from bnfold.graph import ModelGraph, in_default_domain

#: Larger ones stay computed, so that the file does not grow.
_MAX_ELEMENTS = 1 << 14

#: Integers up to this many are a shape, axes or bounds.
_FEW = 64

#: Ops that look at a value's type or shape only, and the input at which they do.
_LOOKING = {"CastLike": 1, "Shape": 0, "Size": 0}


def fold_constants(graph: ModelGraph) -> bool:
    """Give each op that reads such a constant an initializer in its place, and drop what computed it.

    Returns:
        Whether there was one. More may then be known of the model's shapes, and with them more constants.
    """
    written: dict[ir.Value, ir.Value] = {}
    for node in list(graph.nodes()):
        if node.graph is None or _is_constant(node, graph):
            continue
        for index, value in enumerate(node.inputs):
            if value is None or not (value in written or _is_to_be_written(value, graph)):
                continue
            if value not in written:
                array = graph.constants.array(value)
                assert array is not None
                written[value] = graph.add_constant(array, _name(node, index, value))
            graph.use(node, index, written[value])
    return bool(written)


def _name(node: ir.Node, index: int, value: ir.Value) -> str:
    """The value's own name is still taken; a bias is better called after its weight."""
    weight = node.inputs[1] if node.op_type in LINEAR_OPS and index == 2 else None
    return bias_name(weight.name) if weight is not None and weight.name else str(value.name)


def _is_constant(node: ir.Node, graph: ModelGraph) -> bool:
    """Whether the node is itself part of the computation of a constant."""
    return bool(node.outputs) and all(graph.constants.array(output) is not None for output in node.outputs)


def _is_to_be_written(value: ir.Value, graph: ModelGraph) -> bool:
    """Whether a value is a small computed constant: of integers, or one that names a value that is none."""
    producer = value.producer()
    if producer is None or producer.op_type in ("Constant", "QuantizeLinear"):
        return False
    array = graph.constants.array(value)
    if array is None or array.size > _MAX_ELEMENTS:
        return False
    if array.dtype.kind == "i" and array.size <= _FEW:
        return True
    return any(graph.constants.array(seen) is None for seen in _looked_at(value))


def _looked_at(value: ir.Value) -> Iterator[ir.Value]:
    """The values of which the computation of a constant uses the type or the shape only."""
    stack, done = [value], set[ir.Value]()
    while stack:
        current = stack.pop()
        producer = current.producer()
        if current in done or producer is None:
            continue
        done.add(current)
        place = _LOOKING.get(producer.op_type) if in_default_domain(producer) else None
        for index, operand in enumerate(producer.inputs):
            if operand is None:
                continue
            if index == place:
                yield operand
            else:
                stack.append(operand)
