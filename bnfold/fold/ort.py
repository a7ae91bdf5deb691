"""What ONNX Runtime would fold by itself while loading a model, so that a report can tell what bnfold adds.

A description of ONNX Runtime's basic level (ConvBNFusion, ConvMulFusion, ConvAddFusion and MatMulBNFusion, after
its constant folding) as of 1.31; ``tests/test_fold_ort.py`` holds it against the runtime that is installed.
"""

from __future__ import annotations

import onnx_ir as ir

from bnfold.graph import ModelGraph, in_default_domain


def ort_folds(node: ir.Node, graph: ModelGraph) -> bool:
    """Whether ONNX Runtime folds this batch norm, Mul or Add into the op before it."""
    if not in_default_domain(node):
        return False
    if node.op_type == "BatchNormalization":
        if node.attributes.get_int("training_mode", 0) or any(output.name for output in node.outputs[1:]):
            return False
        producer = _sole_producer(node.inputs[0])
        kinds = frozenset({"Conv", "ConvTranspose", "MatMul"})
        parameters = node.inputs[1:5]
        if not _fit_each_other(node, graph):
            return False  # it refuses the model
    elif node.op_type in ("Mul", "Add") and len(node.inputs) == 2:
        producer = _sole_producer(node.inputs[0])
        kinds = frozenset({"Conv"})
        parameters = node.inputs[1:]
        shape = graph.shapes.shape(parameters[0]) if parameters[0] is not None else None
        if not shape or len(shape) < 3 or not isinstance(shape[-3], int) or shape[-3] < 2:
            return False
    else:
        return False
    if producer is None or producer.op_type not in kinds or not in_default_domain(producer):
        return False
    return all(_folded_constant(value, graph) for value in (*parameters, *producer.inputs[1:]))


def _fit_each_other(node: ir.Node, graph: ModelGraph) -> bool:
    """Whether the parameters of a batch norm may be as many as its channels."""
    sizes = {graph.shapes.shape(value) for value in node.inputs[1:5] if value is not None} - {None}
    data = graph.shapes.shape(node.inputs[0]) if node.inputs[0] is not None else None
    channels = data[1] if data is not None and len(data) > 1 else None
    return len(sizes) < 2 and (not isinstance(channels, int) or sizes <= {(channels,)})


def _sole_producer(value: ir.Value | None) -> ir.Node | None:
    """The op that computes ``value`` for this one consumer, looking through what ONNX Runtime removes first."""
    while value is not None and len(value.uses()) == 1 and not value.is_graph_output():
        producer = value.producer()
        if producer is None or producer.op_type not in ("Identity", "Dropout"):
            return producer
        value = producer.inputs[0]
    return None


def _folded_constant(value: ir.Value | None, graph: ModelGraph) -> bool:
    """Whether ONNX Runtime's constant folding arrives at a constant: a CastLike stops it."""
    seen: set[ir.Value] = set()
    stack = [value]
    while stack:
        current = stack.pop()
        if current is None or current in seen or graph.constants.tensor(current) is not None:
            continue
        seen.add(current)
        producer = current.producer()
        if producer is None or producer.op_type == "CastLike" or graph.constants.array(current) is None:
            return False
        stack.extend(producer.inputs)
    return True
