"""Walk a model as protobuf has it: its nodes and tensors, however deep."""

from __future__ import annotations

from collections.abc import Iterator

import onnx

#: The names of ONNX's own operators, as nodes and versions have them.
DEFAULT_DOMAINS = ("", "ai.onnx")


def nodes_of(proto: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Every node of a model: of all its graphs and functions."""
    nodes = [*proto.graph.node, *(node for function in proto.functions for node in function.node)]
    while nodes:
        node = nodes.pop()
        yield node
        for body in bodies_of(node):
            nodes.extend(body.node)


def bodies_of(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The graphs in the attributes of a node, such as the branches of an If."""
    for attribute in node.attribute:
        match attribute.type:
            case onnx.AttributeProto.GRAPH:
                yield attribute.g
            case onnx.AttributeProto.GRAPHS:
                yield from attribute.graphs


def tensors_of(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto | onnx.SparseTensorProto]:
    """Every tensor of a model: of all its graphs, and of the attributes of all its nodes."""
    yield from _initializers(proto.graph)
    for node in nodes_of(proto):
        for attribute in node.attribute:
            match attribute.type:
                case onnx.AttributeProto.TENSOR:
                    yield attribute.t
                case onnx.AttributeProto.TENSORS:
                    yield from attribute.tensors
                case onnx.AttributeProto.SPARSE_TENSOR:
                    yield attribute.sparse_tensor
                case onnx.AttributeProto.SPARSE_TENSORS:
                    yield from attribute.sparse_tensors
        for body in bodies_of(node):
            yield from _initializers(body)


def _initializers(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto | onnx.SparseTensorProto]:
    yield from graph.initializer
    yield from graph.sparse_initializer


def has_external(proto: onnx.ModelProto) -> bool:
    """Whether a tensor's data is in another file."""
    return any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in tensors_of(proto))
