"""Affines that runtimes compute together with the ops around them, as one: they are left where they are.

A layer norm or a GELU of many ops, as exporters write it, becomes one kernel while ONNX Runtime loads the model. A fold
that took its last factor away would leave the rest as it is, with a pass over the data for each op.
"""

from __future__ import annotations

import onnx_ir as ir

from bnfold.graph import ModelGraph, in_default_domain, sole_reader


def part_of_fusions(graph: ModelGraph) -> frozenset[ir.Node]:
    """The affine ops that end or scale a layer norm, an RMS norm or a GELU."""
    found: set[ir.Node] = set()
    for node in graph.nodes():
        if not in_default_domain(node):
            continue
        if node.op_type == "Mul" and _has_constant(node, graph) and _is_normalized(_source(node, graph), graph):
            following = sole_reader(node.outputs[0])
            found.update([node] if following is None or following.op_type != "Add" else [node, following])
        if node.op_type in ("Erf", "Tanh"):
            found.update(_gelu(node, graph))
    return frozenset(found)


def _gelu(curve: ir.Node, graph: ModelGraph) -> list[ir.Node]:
    """The factors of ``x · ½ · (1 + curve(…))``, in whatever order; none where ``x`` is missing."""
    gate = sole_reader(curve.outputs[0])
    if gate is None or gate.op_type != "Add" or not _has_number(gate, graph):
        return []
    factors: list[ir.Node] = []
    is_product = False
    following = sole_reader(gate.outputs[0])
    while following is not None and following.op_type == "Mul":
        if _has_number(following, graph):
            factors.append(following)
        else:
            is_product = True
            producers = [value.producer() for value in following.inputs if value is not None]
            factors += [p for p in producers if p is not None and p.op_type == "Mul" and _has_number(p, graph)]
        following = sole_reader(following.outputs[0])
    return factors if is_product else []


def _is_normalized(value: ir.Value | None, graph: ModelGraph) -> bool:
    """Whether a value is ``x / √(mean(x²) + ε)`` over its last axis, written as a quotient or as a product."""
    producer = _behind_casts(value)
    if producer is None:
        return False
    if producer.op_type == "Div":
        return _is_deviation(producer.inputs[1], graph)
    if producer.op_type != "Mul":
        return False
    inverses = [_behind_casts(factor) for factor in producer.inputs]
    return any(
        (inverse.op_type == "Reciprocal" and _is_deviation(inverse.inputs[0], graph))
        or (inverse.op_type == "Div" and _is_deviation(inverse.inputs[1], graph))
        or (inverse.op_type == "Pow" and _is_mean(inverse.inputs[0], graph))
        for inverse in inverses
        if inverse is not None
    )


def _is_deviation(value: ir.Value | None, graph: ModelGraph) -> bool:
    producer = _behind_casts(value)
    return producer is not None and producer.op_type in ("Sqrt", "Pow") and _is_mean(producer.inputs[0], graph)


def _is_mean(value: ir.Value | None, graph: ModelGraph) -> bool:
    """Whether a value is a mean over the last axis, with or without something added to it."""
    producer = _behind_casts(value)
    if producer is not None and producer.op_type == "Add" and _has_constant(producer, graph):
        producer = _behind_casts(_source(producer, graph))
    if producer is None or producer.op_type != "ReduceMean":
        return False
    axes = list(producer.attributes.get_ints("axes", ()))
    if len(producer.inputs) > 1 and producer.inputs[1] is not None:
        array = graph.constants.array(producer.inputs[1])
        axes = [] if array is None else array.ravel().tolist()
    source = producer.inputs[0]
    rank = None if source is None else graph.shapes.rank(source)
    return len(axes) == 1 and axes[0] in (-1, None if rank is None else rank - 1)


def _behind_casts(value: ir.Value | None) -> ir.Node | None:
    producer = None if value is None else value.producer()
    while producer is not None and producer.op_type == "Cast":
        producer = producer.inputs[0].producer() if producer.inputs[0] is not None else None
    return producer


def _has_number(node: ir.Node, graph: ModelGraph) -> bool:
    arrays = [graph.constants.array(value) for value in node.inputs if value is not None]
    return any(array is not None and array.size == 1 for array in arrays)


def _has_constant(node: ir.Node, graph: ModelGraph) -> bool:
    return any(value is not None and graph.constants.array(value) is not None for value in node.inputs)


def _source(node: ir.Node, graph: ModelGraph) -> ir.Value | None:
    """The input of a binary op that is no constant."""
    return next((v for v in node.inputs if v is not None and graph.constants.array(v) is None), None)
