"""Whether two models are the same graph, and whether they offer the same interface."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import onnx_ir as ir

from bnfold.errors import ModelError


def same_graph(one: ir.Model, other: ir.Model) -> bool:
    """Whether both hold the same nodes in the same order on the same constants; names do not count.

    Comparing such a pair proves nothing: whatever the file computes, it agrees with itself.
    """
    return one.opset_imports == other.opset_imports and fingerprint(one) == fingerprint(other)


def fingerprint(model: ir.Model) -> str:
    """A hash of what a model computes, blind to names, metadata and where weights are stored."""
    digest = hashlib.sha256()
    for line in _graph_lines(model.graph, {}):
        digest.update(line)
    for identifier in sorted(model.functions):
        digest.update(repr(identifier).encode())
        for line in _graph_lines(model.functions[identifier].graph, {}):
            digest.update(line)
    return digest.hexdigest()


def _graph_lines(graph: ir.Graph, numbers: dict[ir.Value, str]) -> Iterator[bytes]:
    for index, value in enumerate(graph.inputs):
        numbers[value] = f"input{len(numbers)}.{index}"
    constants: dict[ir.Value, str] = {}
    for value in graph.initializers.values():
        if value not in numbers and value.const_value is not None:
            constants[value] = _tensor_text(value.const_value)
    # An input that has a default value is both a name to override and a constant.
    for value in graph.inputs:
        if value.const_value is not None:
            yield f"default {numbers[value]} {_tensor_text(value.const_value)}\n".encode()

    def label(value: ir.Value | None) -> str:
        if value is None:
            return "-"
        return numbers.get(value) or constants.get(value) or "?"

    for node in graph:
        inputs = " ".join(label(value) for value in node.inputs)
        for value in node.outputs:
            numbers[value] = f"value{len(numbers)}"
        yield f"{node.domain} {node.op_type} {node.overload} {len(node.outputs)} {inputs}\n".encode()
        for name in sorted(node.attributes):
            yield from _attribute_lines(name, node.attributes[name], {**numbers, **constants})
    yield " ".join(label(value) for value in graph.outputs).encode() + b"\n"


def attribute_lines(node: ir.Node, outer: Mapping[ir.Value, str]) -> bytes:
    """A node's attributes as text, blind to names inside of subgraphs.

    Args:
        node: any node.
        outer: how to write the values that its subgraphs read from around them.
    """
    names = sorted(node.attributes)
    return b"".join(line for name in names for line in _attribute_lines(name, node.attributes[name], dict(outer)))


def _attribute_lines(name: str, attribute: ir.Attr, numbers: dict[ir.Value, str]) -> Iterator[bytes]:
    value: Any = attribute.value
    if attribute.is_ref():
        yield f"{name} from {attribute.ref_attr_name}\n".encode()
    elif attribute.type == ir.AttributeType.GRAPH:
        yield from _graph_lines(value, dict(numbers))
    elif attribute.type == ir.AttributeType.GRAPHS:
        for graph in value:
            yield from _graph_lines(graph, dict(numbers))
    elif attribute.type == ir.AttributeType.TENSOR:
        yield f"{name} {_tensor_text(value)}\n".encode()
    else:
        yield f"{name} {attribute.type} {value!r}\n".encode()


def _tensor_text(tensor: ir.TensorProtocol) -> str:
    text = tensor.dtype == ir.DataType.STRING
    content = repr(tensor.numpy().tolist()).encode() if text else tensor.tobytes()
    return f"{tensor.dtype}{list(tensor.shape)}{hashlib.sha256(content).hexdigest()}"


def check_interfaces(reference: ir.Model, candidate: ir.Model) -> None:
    """Require both models to take and give the same.

    Symbolic dimensions may have other names, an output's declared shape may be more or less precise, and an input
    that has a default value may be missing.

    Raises:
        ModelError: names, types or shapes differ.
    """
    _check_values("input", _required(reference), _required(candidate), strict=True)
    _check_values("output", list(reference.graph.outputs), list(candidate.graph.outputs), strict=False)


def _required(model: ir.Model) -> list[ir.Value]:
    return [value for value in model.graph.inputs if value.name not in model.graph.initializers]


def _check_values(what: str, ours: Sequence[ir.Value], theirs: Sequence[ir.Value], *, strict: bool) -> None:
    names, others = [str(value.name) for value in ours], {str(value.name): value for value in theirs}
    if set(names) != set(others):
        raise ModelError(
            f"the models have different {what}s: {', '.join(names) or 'none'} in the reference, "
            f"{', '.join(others) or 'none'} in the candidate"
        )
    for value in ours:
        other = others[str(value.name)]
        if None not in (value.dtype, other.dtype) and value.dtype != other.dtype:
            raise ModelError(
                f"{what} {value.name!r} has the type {value.dtype} in the reference and {other.dtype} in the candidate"
            )
        if not _fits(value.shape, other.shape, strict=strict):
            raise ModelError(
                f"{what} {value.name!r} has the shape {value.shape} in the reference and {other.shape} in the candidate"
            )


def _fits(one: ir.Shape | None, other: ir.Shape | None, *, strict: bool) -> bool:
    if one is None or other is None:
        return not strict or one is other
    if len(one) != len(other):
        return False
    for a, b in zip(one, other, strict=True):
        fixed = isinstance(a, int), isinstance(b, int)
        if all(fixed) and a != b:
            return False
        if strict and fixed[0] != fixed[1]:
            return False
    return True
