"""Constants that tie up a run-time value, or that shape inference does not see through, become plain initializers.

Exporters write the bias of a convolution as ``Expand(CastLike(0, x), Shape(w))``, the bounds of a Clip as
``CastLike(6, x)``, and a static shape as ``Concat(Shape(x)[0], …)``. Such a constant ties up ``x``, which then cannot
be merged away, and ONNX Runtime does not see through a CastLike, so that it misses fusions. The few integers of a
shape, of axes or of bounds are written out however they are computed, since ONNX's shape inference follows a few ops
only. Other constants are written out where the file hardly grows by it; else they are left to the runtime.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bnfold.constants import is_float
from bnfold.fold.absorb import bias_index
from bnfold.fold.sites import Selection
from bnfold.fold.write import bias_name
from bnfold.graph import ModelGraph, in_default_domain, input_of

#: Larger ones stay computed, so that the file does not grow.
_MAX_ELEMENTS = 1 << 14

#: Integers up to this many are a shape, axes or bounds.
_FEW = 64

#: By so many bytes the file may grow for an op less; less where ops repeat what is stored once: the bias of a layer, of
#: which exporters store one 0, may be written out, a weight that is all alike may not.
_LITTLE = 1 << 14
_LITTLE_REPEATED = {"Expand": 1 << 12, "Tile": 1 << 12, "ConstantOfShape": 0}

#: Ops that look at a value's type or shape only, and the input at which they do.
_LOOKING = {"CastLike": 1, "Shape": 0, "Size": 0}


def fold_constants(graph: ModelGraph, selected: Selection) -> bool:
    """Give each op that reads such a constant an initializer in its place, and drop what computed it.

    Args:
        graph: the model.
        selected: which nodes may be touched.

    Returns:
        Whether more may be known of the model's shapes now, and with them more constants: integers were written, or
        a constant of which the inference did not know the shape.
    """
    written: dict[ir.Value, ir.Value] = {}
    for node in list(graph.nodes()):
        if node.graph is None or _is_constant(node, graph):
            continue
        for index, value in enumerate(node.inputs):
            if value is None or not (value in written or _is_to_be_written(value, graph, selected)):
                continue
            if value not in written:
                array = graph.constants.array(value)
                assert array is not None
                written[value] = graph.add_constant(array, _name(node, index, value))
            graph.use(node, index, written[value])
    return any(_tells_more(value, new, graph) for value, new in written.items())


def _tells_more(value: ir.Value, new: ir.Value, graph: ModelGraph) -> bool:
    """Whether the inference finds more from a constant that is written out than from its computation."""
    if new.dtype is not None and new.dtype.is_integer():
        return True
    shape = graph.shapes.inferred(value)
    return shape is None or not all(isinstance(dim, int) for dim in shape)


def _name(node: ir.Node, index: int, value: ir.Value) -> str:
    """The value's own name is still taken; a bias is better called after its weight."""
    weight = node.inputs[1] if index == bias_index(node) else None
    return bias_name(weight.name) if weight is not None and weight.name else str(value.name)


def _is_constant(node: ir.Node, graph: ModelGraph) -> bool:
    """Whether the node is itself part of the computation of a constant."""
    return bool(node.outputs) and all(graph.constants.array(output) is not None for output in node.outputs)


def _is_to_be_written(value: ir.Value, graph: ModelGraph, selected: Selection) -> bool:
    """Whether a value is a computed constant that is better written out."""
    producer = value.producer()
    if producer is None or producer.op_type in ("Constant", "QuantizeLinear"):
        return False
    array = graph.constants.array(value)
    if array is None or array.size > _MAX_ELEMENTS or not (array.dtype.kind in "iub" or is_float(array)):
        return False
    nodes = list(_computing(value))
    if not all(selected(node) for node in nodes):
        return False
    if array.dtype.kind == "i" and array.size <= _FEW:
        return True
    if any(graph.constants.array(seen) is None for seen in _looked_at(value)):
        return True
    return _grows_little(value, array, nodes, graph)


def _grows_little(value: ir.Value, array: NDArray[Any], nodes: Sequence[ir.Node], graph: ModelGraph) -> bool:
    """Whether the file stores about as much for a constant itself as for its computation by some nodes.

    What is repeated stays so, and integers that stand for other numbers stay integers. What is not a number, or not
    finite, is left to the runtime, of which each has its own.
    """
    if any(_stands_for_numbers(node, graph) for node in nodes):
        return False
    if is_float(array) and not bool(np.isfinite(array.astype(np.float64)).all()):
        return False
    grown = array.nbytes - _freed(value, graph)
    return grown <= max(0, min(_LITTLE_REPEATED.get(node.op_type, _LITTLE) for node in nodes))


def _stands_for_numbers(node: ir.Node, graph: ModelGraph) -> bool:
    """Whether a node makes floating-point numbers of stored integers, and of more than a few."""
    if node.op_type == "DequantizeLinear":
        return True
    if node.op_type not in ("Cast", "CastLike"):
        return False
    before = graph.constants.array(input_of(node, 0))
    return before is not None and before.dtype.kind in "iu" and before.size > _FEW


def _freed(value: ir.Value, graph: ModelGraph) -> int:
    """How many bytes are stored for nothing but the computation of a constant."""
    freed = 0
    stack, done = [value], set[ir.Value]()
    while stack:
        current = stack.pop()
        if current in done:
            continue
        done.add(current)
        stored, producer = graph.constants.tensor(current), current.producer()
        if stored is not None:
            freed += stored.nbytes
        elif producer is not None and all(output is current or not _is_read(output) for output in producer.outputs):
            stack += (v for v in producer.inputs if v is not None and _serves_only(v, producer))
    return freed


def _is_read(value: ir.Value) -> bool:
    return bool(value.uses()) or value.is_graph_output()


def _computing(value: ir.Value) -> Iterator[ir.Node]:
    """The nodes that compute a value."""
    stack, done = [value], set[ir.Value]()
    while stack:
        current = stack.pop()
        if current in done:
            continue
        done.add(current)
        producer = current.producer()
        if producer is not None:
            yield producer
            stack += (v for v in producer.inputs if v is not None)


def _serves_only(value: ir.Value, node: ir.Node) -> bool:
    return not value.is_graph_output() and all(user is node for user, _ in value.uses())


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
