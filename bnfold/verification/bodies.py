"""Subgraphs laid open, so that what was folded inside of them can be looked at as if it were outside.

* ``If``: the nodes of both branches move in front of it, and both are computed; it only chooses.
* ``Loop`` and ``Scan``: a copy of the body stands before the node and makes the first pass, whose results are outputs
  of the graph. The node itself stays as it is.

What the outputs of the model are does not change, unless a branch that is not taken does not run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Iterator, Sequence

import numpy as np
import onnx_ir as ir

from bnfold.graph import in_default_domain

#: What tells a node with subgraphs: its operator, its first output, and how many outputs each subgraph has.
Holder = tuple[str, str, tuple[int, ...]]

_LOOPS = frozenset({"Loop", "Scan"})


def bodies_of(node: ir.Node) -> Iterator[ir.Graph]:
    """The subgraphs that a node holds."""
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()


def holder(node: ir.Node) -> Holder | None:
    """What tells a node that can be laid open; None for all others."""
    if not in_default_domain(node) or node.op_type not in _LOOPS | {"If"}:
        return None
    bodies = sorted((name, a.as_graph()) for name, a in node.attributes.items() if a.type == ir.AttributeType.GRAPH)
    return node.op_type, str(node.outputs[0].name), tuple(len(body.outputs) for _, body in bodies)


def holders(model: ir.Model) -> frozenset[Holder]:
    """The nodes of a model that can be laid open, at any depth, and that no other can be taken for."""
    found = Counter(key for node in model.graph.all_nodes() if (key := holder(node)) is not None)
    return frozenset(key for key, count in found.items() if count == 1)


def lay_open(model: ir.Model, wanted: Container[Holder]) -> None:
    """Lay the bodies of some nodes open, in place, those inside of others too.

    Args:
        model: a model without local functions, whose subgraphs have no initializers of their own.
        wanted: which nodes, as :func:`holder` tells them.
    """
    opening = _Opening(model.graph)
    work = list(model.graph)
    while work:
        node = work.pop()
        if holder(node) in wanted:
            work += opening.branches(node) if node.op_type == "If" else opening.first_pass(node)


def lift_weights(model: ir.Model) -> None:
    """Move the initializers of the subgraphs of If, Loop and Scan to the main graph, in place.

    Other operators with subgraphs may not hand them what is around them.
    """
    names = {value.name for node in model.graph.all_nodes() for value in node.outputs}
    names.update(value.name for graph in model.graphs() for value in (*graph.inputs, *graph.initializers.values()))
    work = list(model.graph)
    while work:
        node = work.pop()
        for body in bodies_of(node) if holder(node) is not None else ():
            work += list(body)
            for name, value in list(body.initializers.items()):
                if value.is_graph_input() or value.is_graph_output():
                    continue
                body.initializers.pop(name)
                if name in model.graph.initializers:
                    value.name = _unused(f"{name} of {node.outputs[0].name}", names.__contains__)
                    names.add(value.name)
                model.graph.register_initializer(value)


class _Opening:
    """Lays bodies open in one graph."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._names = {value.name for value in (*graph.inputs, *graph.initializers.values())}
        self._names.update(value.name for node in graph for value in node.outputs)

    def branches(self, node: ir.Node) -> list[ir.Node]:
        """Move the branches of an If in front of it; what was moved."""
        moved = []
        for name in ("then_branch", "else_branch"):
            results, nodes = self._unpacked(node, node.attributes[name].as_graph(), [])
            moved += nodes
            chosen = [
                ir.Node("", "Identity", [value], outputs=[ir.Value(name=f"{node.outputs[0].name}, {name}: {index}")])
                for index, value in enumerate(results)
            ]
            outputs = [choice.outputs[0] for choice in chosen]
            body = ir.Graph([], outputs, nodes=chosen, opset_imports=self._graph.opset_imports, name=name)
            node.attributes[name] = ir.AttrGraph(name, body)
        return moved

    def first_pass(self, node: ir.Node) -> list[ir.Node]:
        """Let a copy of the body of a Loop or Scan make the first pass; the copy."""
        body = node.attributes["body"].as_graph()
        arguments = self._of_loop(node) if node.op_type == "Loop" else self._of_scan(node)
        if len(arguments) != len(body.inputs):
            return []
        copy = body.clone(allow_outer_scope_values=True)
        for value in (value for inner in body.all_nodes() for value in inner.outputs):
            value.name = f"{value.name}, each pass"
        results, nodes = self._unpacked(node, copy, arguments)
        for index, value in enumerate(results):
            if index or node.op_type == "Scan":  # the first of a Loop tells whether to go on
                shown = self._added(node, "Identity", [value], f"{node.outputs[0].name}, first pass: {index}")
                self._graph.outputs.append(shown)
        return nodes

    def _of_loop(self, node: ir.Node) -> list[ir.Value]:
        given = list(node.inputs[2:])
        first = self._constant(node, "number", np.array(0, np.int64)), self._constant(node, "going", np.array(True))
        return [*first, *(value for value in given if value is not None)]

    def _of_scan(self, node: ir.Node) -> list[ir.Value]:
        given = [value for value in node.inputs if value is not None]
        slices = node.attributes.get_int("num_scan_inputs", 0) or 0
        axes = node.attributes.get_ints("scan_input_axes") or [0] * slices
        states, scanned = given[: len(given) - slices], given[len(given) - slices :]
        zero = self._constant(node, "number", np.array(0, np.int64))
        return states + [
            self._added(node, "Gather", [value, zero], f"{node.outputs[0].name}, first of {value.name}", axis=axis)
            for value, axis in zip(scanned, axes, strict=True)
        ]

    def _constant(self, node: ir.Node, what: str, array: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> ir.Value:
        name = f"{node.outputs[0].name}, {what} of the first pass"
        tensor = ir.tensor(array, name=name)
        value = ir.Value(name=name, shape=ir.Shape([]), type=ir.TensorType(tensor.dtype), const_value=tensor)
        self._graph.register_initializer(value)
        return value

    def _added(self, before: ir.Node, op_type: str, inputs: Sequence[ir.Value], name: str, axis: int = 0) -> ir.Value:
        attributes = [ir.AttrInt64("axis", axis)] if op_type == "Gather" else []
        node = ir.Node("", op_type, inputs, attributes, outputs=[ir.Value(name=name)])
        self._graph.insert_before(before, node)
        return node.outputs[0]

    def _unpacked(
        self, before: ir.Node, body: ir.Graph, arguments: Sequence[ir.Value]
    ) -> tuple[list[ir.Value], list[ir.Node]]:
        """Move the nodes of a body in front of a node; what its outputs are there, and the nodes."""
        given = dict(zip(body.inputs, arguments, strict=True))
        results = [given.get(value, value) for value in body.outputs]
        body.outputs.clear()
        for value, argument in given.items():
            ir.convenience.replace_all_uses_with(value, argument)
        nodes = list(body)
        body.remove(nodes)
        for value in (value for node in nodes for value in node.outputs):
            self._rename(value, before)
        for value in list(body.initializers.values()):  # one that is an output, too
            body.initializers.pop(str(value.name))
            self._rename(value, before)
            self._graph.register_initializer(value)
        self._graph.insert_before(before, nodes)
        return results, nodes

    def _rename(self, value: ir.Value, around: ir.Node) -> None:
        """Values of two branches may have the same name."""
        if value.name in self._names:
            value.name = _unused(f"{value.name} of {around.outputs[0].name}", self._names.__contains__)
        self._names.add(value.name)


def _unused(name: str, used: Callable[[str | None], bool]) -> str:
    count, free = 1, name
    while used(free):
        count += 1
        free = f"{name}, {count}"
    return free
