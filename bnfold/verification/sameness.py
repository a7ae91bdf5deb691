"""Whether two models are the same graph: comparing such a pair proves nothing, for it agrees with itself."""

from __future__ import annotations

import hashlib
from collections.abc import Container, Iterator, Mapping
from typing import Any

import onnx_ir as ir

#: The text of a value: what computes it, from what.
Texts = dict[ir.Value, str]


def same_graph(one: ir.Model, other: ir.Model) -> bool:
    """Whether both compute each output by the same operators from the same constants and inputs.

    Names of inner values, the order of the nodes, nodes that no output needs, and whether a constant is an
    initializer or a Constant node do not count; names of inputs and outputs do, since callers use them.
    """
    return fingerprint(one) == fingerprint(other)


def fingerprint(model: ir.Model) -> str:
    """A hash of how a model computes its outputs; see :func:`same_graph`. It is blind to where weights are stored."""
    graph, texts = model.graph, Texts()
    for value in graph.inputs:
        default = "" if value.const_value is None else _tensor_text(value.const_value)
        texts[value] = _digest(f"input {value.name} {value.dtype} {default}")
    lines = [f"opset {domain} {version}" for domain, version in sorted(model.opset_imports.items())]
    lines += sorted(f"output {value.name} {text}" for value, text in _results(graph, texts))
    for identifier in sorted(model.functions):
        function = model.functions[identifier].graph
        inner = {value: f"argument {index}" for index, value in enumerate(function.inputs)}
        lines.append(f"function {identifier} {' '.join(text for _, text in _results(function, inner))}")
    return _digest("\n".join(lines))


def _results(graph: ir.Graph, texts: Texts) -> list[tuple[ir.Value, str]]:
    """The outputs of a graph with their texts, in order; ``texts`` holds what is known, and is added to."""
    for value in graph.initializers.values():
        if value not in texts and value.const_value is not None:
            texts[value] = _tensor_text(value.const_value)
    for node in graph:
        constant = _constant(node)
        if constant is not None:
            texts[node.outputs[0]] = _tensor_text(constant)
            continue
        inputs = " ".join("-" if value is None else texts.get(value, "?") for value in node.inputs)
        head = f"{node.domain} {node.op_type} {node.overload} {len(node.outputs)} {inputs}\n".encode()
        key = hashlib.sha256(head + attribute_lines(node, texts)).hexdigest()
        texts.update({value: f"{key}.{index}" for index, value in enumerate(node.outputs)})
    return [(value, texts.get(value, "?")) for value in graph.outputs]


def _constant(node: ir.Node) -> ir.TensorProtocol | None:
    """The tensor that a Constant node holds as one."""
    if node.op_type != "Constant" or node.domain or "value" not in node.attributes:
        return None
    attribute = node.attributes["value"]
    return None if attribute.is_ref() else attribute.as_tensor()


def attribute_lines(node: ir.Node, outer: Mapping[ir.Value, str], without: Container[str] = ()) -> bytes:
    """A node's attributes as text, blind to names inside of subgraphs.

    Args:
        node: any node.
        outer: how to write the values that its subgraphs read from around them.
        without: attributes to leave out.
    """
    names = sorted(name for name in node.attributes if name not in without)
    return b"".join(line for name in names for line in _attribute_lines(name, node.attributes[name], outer))


def _attribute_lines(name: str, attribute: ir.Attr, outer: Mapping[ir.Value, str]) -> Iterator[bytes]:
    value: Any = attribute.value
    if attribute.is_ref():
        yield f"{name} from {attribute.ref_attr_name}\n".encode()
    elif attribute.type == ir.AttributeType.GRAPH:
        yield f"{name} {_body_text(value, outer)}\n".encode()
    elif attribute.type == ir.AttributeType.GRAPHS:
        yield from (f"{name} {_body_text(graph, outer)}\n".encode() for graph in value)
    elif attribute.type == ir.AttributeType.TENSOR:
        yield f"{name} {_tensor_text(value)}\n".encode()
    else:
        yield f"{name} {attribute.type} {value!r}\n".encode()


def _body_text(graph: ir.Graph, outer: Mapping[ir.Value, str]) -> str:
    # A body inside of a body sees the arguments of both.
    known = sum(text.startswith("argument") for text in outer.values())
    arguments = {value: f"argument {known + index}" for index, value in enumerate(graph.inputs)}
    return " ".join(text for _, text in _results(graph, {**outer, **arguments}))


def _tensor_text(tensor: ir.TensorProtocol) -> str:
    text = tensor.dtype == ir.DataType.STRING
    content = repr(tensor.numpy().tolist()).encode() if text else tensor.tobytes()
    return f"{tensor.dtype}{list(tensor.shape)}{hashlib.sha256(content).hexdigest()}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
