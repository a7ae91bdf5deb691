"""The only module that edits an onnx-ir graph: fresh names, constants, replaced and removed nodes.

Its edits keep a model's promises to its callers: inputs and outputs keep names, order, types and shapes; a shared
constant is never changed in place; a model of IR version 3, where every initializer is also an input, stays one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bnfold.constants import Constants
from bnfold.demanded_sizes import add_demanded_sizes
from bnfold.protos import DEFAULT_DOMAINS
from bnfold.shapes import infer_shapes


@dataclass(frozen=True)
class NewOp:
    """A node to be made: it reads one value of the graph, then constants.

    Attributes:
        op_type: its ONNX name.
        constants: its further inputs.
        attributes: its attributes.
    """

    op_type: str
    constants: tuple[ir.Value, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)


class ModelGraph:
    """A model with what folding asks of it (shapes, constants, consumers) and the edits that folding makes.

    Attributes:
        model: the model that is edited.
        opset: version of the default operator set.
        shapes: the shape and dtype of each value; edits leave both as they are.
        constants: which values cannot change, and what they are.
        spared: which nodes stay even if nothing reads them any longer.
    """

    def __init__(self, model: ir.Model, spared: Callable[[ir.Node], bool] = lambda _node: False) -> None:
        self.model = model
        self.spared = spared
        self._graphs = tuple(model.graphs())  # folding neither adds nor removes one
        self.opset = model.opset_imports.get("", model.opset_imports.get("ai.onnx", 1))
        self.shapes = infer_shapes(model)
        add_demanded_sizes(model, self.shapes)
        self.constants = Constants(model, self.shapes, self.opset)
        # Counted, because scopes beside each other may use one name each for something else.
        self._names = Counter(value.name for value in _values(self._graphs) if value.name)
        self._node_names = Counter(node.name for node in self.nodes() if node.name)

    def nodes(self) -> Iterator[ir.Node]:
        """Every node, those of subgraphs included, each graph in its own order."""
        for graph in self._graphs:
            yield from graph

    def fresh_name(self, wish: str) -> str:
        """``wish``, or ``wish_1``, ``wish_2``, … if that name is taken anywhere in the model."""
        return _fresh(wish, self._names)

    def add_constant(self, data: NDArray[Any] | ir.LazyTensor, wish: str) -> ir.Value:
        """Register a new initializer in the main graph, where the bodies of control flow see it too."""
        name = self.fresh_name(wish)
        # Not ascontiguousarray, which makes a vector of a scalar.
        tensor = data if isinstance(data, ir.LazyTensor) else ir.Tensor(np.asarray(data, order="C"))
        tensor.name = name
        value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor)
        self.model.graph.register_initializer(value)
        if self.model.ir_version < 4:
            self.model.graph.inputs.append(value)
        return value

    def set_constant(self, node: ir.Node, index: int, data: NDArray[Any] | ir.LazyTensor, wish: str) -> ir.Value:
        """Give a node another constant as input ``index`` and return it.

        A constant that nothing else uses keeps its name; one that is shared, computed, or visible to the
        caller stays as it is, and the node gets a new one under a fresh name.
        """
        old = node.inputs[index] if index < len(node.inputs) else None
        name = wish
        if old is not None and self._is_private(old):
            # Make way, so that the new constant gets the old one's name.
            assert old.name is not None
            name = old.name
            node.replace_input_with(index, None)
            self.release(old)
        new = self.add_constant(data, name)
        self.use(node, index, new)
        return new

    def use(self, node: ir.Node, index: int, value: ir.Value) -> None:
        """Make ``value`` the node's input ``index``, and drop what that leaves without a user."""
        if len(node.inputs) <= index:
            node.resize_inputs(index + 1)
        old = node.inputs[index]
        node.replace_input_with(index, value)
        if old is not None and old is not value:
            self.release(old)

    def _is_private(self, value: ir.Value) -> bool:
        """Whether a constant is a stored one that a single input reads, and that no caller can see."""
        return (
            value.is_initializer()
            and not self.constants.overridable(value)
            and not value.is_graph_output()
            and len(value.uses()) == 1
        )

    def bypass(self, nodes: Sequence[ir.Node], source: ir.Value, output: ir.Value, *, rename: bool) -> None:
        """Remove a chain of nodes that led from ``source`` to ``output``.

        Args:
            nodes: the chain, in order.
            source: the value that takes the place of ``output``.
            output: what the chain computed.
            rename: whether ``source`` takes over the name of ``output``, because it now carries its value. It
                must, where ``output`` is an output of the graph.
        """
        name = output.name
        if output.is_graph_output():
            source.type, source.shape = output.type, output.shape
            if self.shapes.shape(source) is None:
                self.shapes.copy(output, source)
        for node in nodes:  # the values in between may have readers too, that look at their shape
            node.outputs[0].replace_all_uses_with(source, replace_graph_outputs=True)
        self.remove(nodes)
        if rename:
            output.name = None
            source.name = name
            source.metadata_props.update(output.metadata_props)
            source.doc_string = output.doc_string or source.doc_string

    def replace(self, nodes: Sequence[ir.Node], source: ir.Value, output: ir.Value, new: NewOp) -> ir.Node:
        """Put one new node in the place of a chain that led from ``source`` to ``output``, and return it."""
        last = nodes[-1]
        node = self._make(new, source, output, beside=last)
        for member in nodes[:-1]:  # those who look at the shape of a value in between may come before the new node
            member.outputs[0].replace_all_uses_with(source)
        self.bypass(nodes, node.outputs[0], output, rename=True)
        return node

    def append(self, value: ir.Value, new: NewOp) -> ir.Node:
        """Put one new node behind ``value``, under its name, for all that used it so far; return the node."""
        producer = value.producer()
        assert producer is not None
        users = list(value.uses())
        node = self._make(new, value, value, beside=producer)
        result = node.outputs[0]
        for user in users:
            user.node.replace_input_with(user.idx, result)
        if value.is_graph_output():
            outputs = value.graph.outputs if value.graph is not None else []
            for index, output in enumerate(outputs):
                if output is value:
                    outputs[index] = result
        name, value.name = value.name, result.name
        result.name = name
        return node

    def insert_before(
        self, node: ir.Node, index: int, op_type: str, inputs: Sequence[ir.Value], attributes: Mapping[str, Any]
    ) -> None:
        """Make an op whose result, like the present one, is input ``index`` of a node from now on."""
        old = input_of(node, index)
        (result,) = self.add_before(node, op_type, inputs, attributes, {f"{old.name}_folded": old})
        self.use(node, index, result)

    def add_before(
        self,
        node: ir.Node,
        op_type: str,
        inputs: Sequence[ir.Value],
        attributes: Mapping[str, Any],
        likes: Mapping[str, ir.Value | None],
    ) -> Sequence[ir.Value]:
        """Make an op right before a node; nobody reads it yet.

        Args:
            node: the node.
            op_type: its ONNX name.
            inputs: what it reads.
            attributes: its attributes.
            likes: what to call each of its results, and a value that has its type and shape, if there is one.

        Returns:
            Its results.
        """
        new = ir.node(op_type, inputs, attributes=dict(attributes), domain=node.domain, num_outputs=len(likes))
        new.name = _fresh(f"{label(node)}_{op_type.lower()}", self._node_names)
        for result, (wish, like) in zip(new.outputs, likes.items(), strict=True):
            result.name = self.fresh_name(wish)
            if like is not None:
                result.type, result.shape = like.type, like.shape
                self.shapes.copy(like, result)
        assert node.graph is not None
        node.graph.insert_before(node, new)
        return new.outputs

    def _make(self, new: NewOp, source: ir.Value, like: ir.Value, *, beside: ir.Node) -> ir.Node:
        """A new node right after ``beside`` that reads ``source`` and yields something of the type of ``like``."""
        node = ir.node(new.op_type, [source, *new.constants], attributes=dict(new.attributes), domain=beside.domain)
        node.name = _fresh(f"{label(beside)}_{new.op_type.lower()}", self._node_names)
        result = node.outputs[0]
        result.type, result.shape = like.type, like.shape
        result.name = self.fresh_name(f"{like.name}_{new.op_type.lower()}")
        assert beside.graph is not None
        beside.graph.insert_after(beside, node)
        self.shapes.copy(like, result)
        return node

    def keep_inputs(self, node: ir.Node, values: Sequence[ir.Value]) -> None:
        """Let an op of any number of inputs have only these."""
        for index, value in enumerate(values):
            node.replace_input_with(index, value)
        node.resize_inputs(len(values))

    def set_attributes(self, node: ir.Node, attributes: Mapping[str, Any]) -> None:
        """Set attributes of a node; those given as None are removed."""
        for name, value in attributes.items():
            if value is None:
                node.attributes.pop(name, None)
            else:
                node.attributes.add(ir.convenience.convert_attribute(name, value))

    def remove(self, nodes: Iterable[ir.Node]) -> None:
        """Remove nodes whose results nobody uses any more, and the constants that only they used."""
        for node in reversed(list(nodes)):
            inputs = [value for value in node.inputs if value is not None]
            assert node.graph is not None
            node.graph.remove(node, safe=True)
            for value in inputs:
                self.release(value)

    def release(self, value: ir.Value) -> None:
        """Drop a constant that has lost its last user, and all that existed only to compute it."""
        self._drop_unread(value, self._is_constant_op)

    def discard_sizes(self, value: ir.Value, may_go: Callable[[ir.Node], bool]) -> None:
        """Drop the arithmetic of integers that existed only for sizes which have just lost their last reader.

        Args:
            value: the sizes.
            may_go: which nodes may be removed.
        """
        self._drop_unread(value, lambda node: self._is_arithmetic(node) and may_go(node))

    def _drop_unread(self, value: ir.Value, may_go: Callable[[ir.Node], bool]) -> None:
        """Drop a value that nobody reads, and what existed only to compute it, as far as that may go."""
        stack = [value]
        while stack:
            current = stack.pop()
            if current.uses() or current.is_graph_output():
                continue
            producer = current.producer()
            if producer is None:
                self._drop_initializer(current)
            elif producer.graph is not None and is_dead(producer) and may_go(producer) and not self.spared(producer):
                stack.extend(v for v in producer.inputs if v is not None)
                producer.graph.remove(producer, safe=True)

    def _is_arithmetic(self, node: ir.Node) -> bool:
        """Whether a node computes integers, and holds no graph: it is no site, and has absorbed nothing."""
        dtypes = [self.shapes.dtype(output) for output in node.outputs]
        return in_default_domain(node) and not has_body(node) and all(d is not None and d.is_integer() for d in dtypes)

    def _is_constant_op(self, node: ir.Node) -> bool:
        """Whether the node computes a constant; a dead branch that the user left in the graph is not ours."""
        return all(self.constants.array(output) is not None for output in node.outputs)

    def _drop_initializer(self, value: ir.Value) -> None:
        graph = value.graph
        if not value.is_initializer() or self.constants.overridable(value) or not isinstance(graph, ir.Graph):
            return
        assert value.name is not None
        if value.is_graph_input():  # IR version 3
            graph.inputs.remove(value)
        del graph.initializers[value.name]
        self._names[value.name] -= 1


def has_body(node: ir.Node) -> bool:
    """Whether a node holds graphs, as an If or a Loop does."""
    return any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values())


def is_read_once(value: ir.Value) -> bool:
    """Whether one input of one node reads ``value``, and no caller does."""
    return len(value.uses()) == 1 and not value.is_graph_output()


def is_dead(node: ir.Node) -> bool:
    """Whether nobody reads anything of a node."""
    return not any(output.uses() or output.is_graph_output() for output in node.outputs)


def _fresh(wish: str, taken: Counter[str]) -> str:
    name, count = wish, 0
    while taken[name] > 0:
        count += 1
        name = f"{wish}_{count}"
    taken[name] += 1
    return name


def _values(graphs: Iterable[ir.Graph]) -> Iterator[ir.Value]:
    for graph in graphs:
        yield from graph.inputs
        yield from graph.initializers.values()
        for node in graph:
            yield from node.outputs


def attributes_of(node: ir.Node) -> dict[str, Any]:
    """The node's attributes as plain Python values; those that refer to a function's parameters are left out."""
    return {name: attribute.value for name, attribute in node.attributes.items() if not attribute.is_ref()}


def in_default_domain(node: ir.Node) -> bool:
    """Whether the node is an operator of the ONNX specification."""
    return node.domain in DEFAULT_DOMAINS


def readers(value: ir.Value, most: int | None = None) -> list[tuple[ir.Node, int]]:
    """The nodes that read the elements of ``value``, each with the index of its input.

    Shape and Size are not among them: no affine changes what they see.

    Args:
        value: what is read.
        most: how many to look for: a value may have thousands of readers, and the question be whether it has two.
    """
    found = (
        (node, index)
        for node, index in value.uses()
        if not (node.op_type in ("Shape", "Size") and in_default_domain(node))
    )
    return list(islice(found, most))


def integers(node: ir.Node, index: int, graph: ModelGraph, attribute: str = "") -> NDArray[np.int64] | None:
    """A constant input as a vector; an empty one where it is left out, None where it is none of integers.

    Args:
        node: the op.
        index: of the input.
        graph: the model.
        attribute: what the input was in operator sets before it became one.
    """
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is None:
        return np.array(node.attributes.get_ints(attribute, ()), np.int64)
    array = graph.constants.array(value)
    return None if array is None or array.dtype.kind not in "iu" else array.reshape(-1).astype(np.int64)


def input_of(node: ir.Node, index: int) -> ir.Value:
    """An input that the node must have."""
    value = node.inputs[index]
    assert value is not None
    return value


def sole_reader(value: ir.Value) -> ir.Node | None:
    """The node that alone reads ``value``, once; None where the value is also an output or has other readers."""
    if value.is_graph_output():
        return None
    found = readers(value, most=2)
    return found[0][0] if len(found) == 1 else None


def label(node: ir.Node) -> str:
    """What to call a node in a report: its name, or its first output's where it has none."""
    if node.name:
        return node.name
    return next((output.name for output in node.outputs if output.name), node.op_type)
