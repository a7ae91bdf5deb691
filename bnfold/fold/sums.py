"""Sums in a graph: Add, Sub and Sum nodes that feed each other, as one tree with signed summands."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

import onnx_ir as ir

from bnfold.fold.report import Reason, Refusal
from bnfold.graph import ModelGraph, in_default_domain

_SUMS = ("Add", "Sub", "Sum")


@dataclass(frozen=True, eq=False)
class Leaf:
    """A summand.

    Attributes:
        value: what is added.
        sign: with which sign, 1 or −1.
        node: the op that adds it.
        index: as which of its inputs.
    """

    value: ir.Value
    sign: float
    node: ir.Node
    index: int


@dataclass(frozen=True, eq=False)
class SumTree:
    """Adds, Subs and Sums that feed nothing but each other, up to the root.

    Attributes:
        nodes: the root first, each before those that feed it.
        leaves: the summands, from left to right in each node.
    """

    nodes: tuple[ir.Node, ...]
    leaves: tuple[Leaf, ...]

    @property
    def root(self) -> ir.Node:
        """The op that yields the whole sum."""
        return self.nodes[0]

    def sign_without(self, survivor: Leaf, dropped: Collection[Leaf], graph: ModelGraph) -> float | Refusal:
        """The sign of a summand in the sum, once others of the same shape have been dropped.

        A node that loses all inputs but one gives way to it. Where that one was subtracted, the sign is turned if it
        is the survivor, whose numbers can be; otherwise a Neg would have to be added, and the answer is a refusal. So
        it is where what is left of a node might no longer have its shape.
        """
        signs: dict[ir.Value, float] = {survivor.value: 1.0}  # of the survivor in each value that holds it
        bare = {survivor.value}
        for node, kept in self._left_over(dropped):
            output = node.outputs[0]
            holder = next(((index, value) for index, value in kept if value in signs), None)
            if kept and len(kept) < len(node.inputs) and holder is None and not _same_shapes(node, graph):
                return Refusal(Reason.UNKNOWN_SHAPE, "another summand may be broadcast")
            if holder is not None:
                signs[output] = signs[holder[1]] * _sign(node, holder[0])
            if len(kept) == 1:
                index, value = kept[0]
                if value in bare:
                    bare.add(output)
                    signs[output] = signs[value]
                elif _sign(node, index) < 0:
                    return Refusal(Reason.UNSUPPORTED_OP, "what is left of the sum would have to be negated")
        return signs[self.root.outputs[0]]

    def prune(self, dropped: Collection[Leaf], graph: ModelGraph) -> None:
        """Drop summands from the graph, given that :meth:`sign_without` has a sign."""
        dead: list[ir.Node] = []
        successor: dict[ir.Value, ir.Value] = {}
        for node, kept in list(self._left_over(dropped)):
            values = [successor.get(value, value) for _, value in kept]
            if not values:
                dead.append(node)
            elif len(values) == 1:
                output = node.outputs[0]
                successor[output] = values[0]
                graph.bypass([node], values[0], output, rename=node is self.root)
            elif len(values) < len(node.inputs):
                graph.keep_inputs(node, values)
        graph.remove(dead)

    def _left_over(self, dropped: Collection[Leaf]) -> Iterator[tuple[ir.Node, list[tuple[int, ir.Value]]]]:
        """Each node, inner ones first, with the inputs that are left to it."""
        slots = {(leaf.node, leaf.index) for leaf in dropped}
        gone: set[ir.Value] = set()
        for node in reversed(self.nodes):
            kept = [
                (index, value)
                for index, value in enumerate(node.inputs)
                if value is not None and value not in gone and (node, index) not in slots
            ]
            if not kept:
                gone.add(node.outputs[0])
            yield node, kept


def sum_trees(graph: ModelGraph, is_sum: Callable[[ir.Node], bool]) -> Iterator[SumTree]:
    """The sums of a model.

    Args:
        graph: the model.
        is_sum: whether an Add, Sub or Sum counts as one; an Add of a constant is an affine.
    """
    sums = {node for node in graph.nodes() if _looks_like_a_sum(node) and is_sum(node)}
    for node in list(graph.nodes()):
        if node in sums and not _feeds_a_sum(node, sums):
            yield _tree_of(node, sums)


def _looks_like_a_sum(node: ir.Node) -> bool:
    return (
        node.op_type in _SUMS
        and in_default_domain(node)
        and len(node.inputs) > 1
        and all(value is not None for value in node.inputs)
    )


def _feeds_a_sum(node: ir.Node, sums: Collection[ir.Node]) -> bool:
    """Whether nothing but one other sum, of the same scope, sees what the node yields."""
    output = node.outputs[0]
    uses = list(output.uses())
    if output.is_graph_output() or len(uses) != 1:
        return False
    reader = uses[0].node
    return reader in sums and reader.graph is node.graph


def _tree_of(root: ir.Node, sums: Collection[ir.Node]) -> SumTree:
    nodes: list[ir.Node] = []
    leaves: list[Leaf] = []
    stack = [(root, 1.0)]
    while stack:
        node, sign = stack.pop()
        nodes.append(node)
        for index, value in enumerate(node.inputs):
            assert value is not None
            own_sign = sign * _sign(node, index)
            producer = value.producer()
            if producer is not None and producer in sums and _feeds_a_sum(producer, sums):
                stack.append((producer, own_sign))
            else:
                leaves.append(Leaf(value, own_sign, node, index))
    return SumTree(tuple(nodes), tuple(leaves))


def _sign(node: ir.Node, index: int) -> float:
    return -1.0 if node.op_type == "Sub" and index == 1 else 1.0


def _same_shapes(node: ir.Node, graph: ModelGraph) -> bool:
    """Whether the node is known not to broadcast."""
    shapes = {graph.shapes.shape(value) for value in (*node.inputs, *node.outputs) if value is not None}
    shape = shapes.pop()
    return not shapes and shape is not None and all(dim is not None for dim in shape)
