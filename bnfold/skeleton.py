"""A model without its weights: what ONNX's checker, its shape inference and protobuf are given.

A weight inside a protobuf message is copied at every step: when it is parsed, and serialized for the checker, for shape
inference, and for the file. The *skeleton* of a model is its message with stand-ins for the large initializers: same
name and type, shape ``[0]``, no bytes. It takes a few kilobytes, and nothing that the specification says of a graph
depends on what was left out; that each weight has as many bytes as its shape needs is checked when it is taken out.

:func:`split` and :func:`join` cut and paste serialized messages. In protobuf's wire format a message is a row of fields
(tag, length, bytes), and fields nest. What they do not know is left where it is, for protobuf to judge.

Source: https://protobuf.dev/programming-guides/encoding; field numbers from onnx.proto.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import onnx
import onnx_ir as ir

from bnfold.errors import ModelError, root_cause

#: Initializers of more bytes than this are taken out. What is smaller may be a shape, whose values inference reads.
_LARGE = 1024

_GRAPH = onnx.ModelProto.GRAPH_FIELD_NUMBER
_INITIALIZER = onnx.GraphProto.INITIALIZER_FIELD_NUMBER
_RAW_DATA = onnx.TensorProto.RAW_DATA_FIELD_NUMBER

#: The fields of a tensor that keeps its data as raw bytes; one with any other is left where it is.
_PLAIN_FIELDS = frozenset(
    {
        onnx.TensorProto.DIMS_FIELD_NUMBER,
        onnx.TensorProto.DATA_TYPE_FIELD_NUMBER,
        onnx.TensorProto.NAME_FIELD_NUMBER,
        onnx.TensorProto.DOC_STRING_FIELD_NUMBER,
        onnx.TensorProto.METADATA_PROPS_FIELD_NUMBER,
        _RAW_DATA,
    }
)

#: Wire type of strings, bytes and messages.
_BYTES = 2

#: What a skeleton lacks, by name.
Weights = Mapping[str, ir.TensorProtocol]

#: A piece of a serialized model: bytes, or a tensor whose bytes belong there.
Piece = bytes | ir.TensorProtocol


class _Field(NamedTuple):
    """Where a field lies: its tag begins at ``start``, its value at ``value``, and ``stop`` is where it ends."""

    number: int
    wire_type: int
    start: int
    value: int
    stop: int


class _UnknownLayoutError(Exception):
    """The bytes are damaged, or laid out as no writer of ONNX files does."""


def split(content: memoryview) -> tuple[onnx.ModelProto, Weights]:
    """The skeleton of a serialized model, and its large initializers as tensors over ``content``, not copied.

    Raises:
        google.protobuf.message.DecodeError: ``content`` is no serialized model.
    """
    weights: dict[str, ir.TensorProtocol] = {}
    try:
        graph = _graph_field(content)
        pieces: list[bytes | memoryview] = []
        done = graph.value
        for field in _fields(content, graph.value, graph.stop):
            if field.number != _INITIALIZER or field.stop - field.value <= _LARGE:
                continue
            taken = _taken_out(content, field)
            if taken is not None and taken[0].name not in weights:
                tensor, stand_in = taken
                weights[str(tensor.name)] = tensor
                pieces += [content[done : field.start], _header(_INITIALIZER, len(stand_in)), stand_in]
                done = field.stop
        body = b"".join((*pieces, content[done : graph.stop]))
        light = b"".join((content[: graph.start], _header(_GRAPH, len(body)), body, content[graph.stop :]))
    except _UnknownLayoutError:
        return onnx.ModelProto.FromString(content), {}
    return onnx.ModelProto.FromString(light), weights


def join(skeleton: onnx.ModelProto, weights: Weights) -> list[Piece]:
    """The serialized model with its weights in their places, byte for byte as protobuf writes it, in pieces."""
    content = memoryview(skeleton.SerializeToString())
    graph = _graph_field(content)
    pieces: list[Piece] = []
    done = graph.value
    for field in _fields(content, graph.value, graph.stop):
        if field.number == _INITIALIZER:
            stand_in = onnx.TensorProto.FromString(content[field.value : field.stop])
            if stand_in.name in weights:
                pieces += [bytes(content[done : field.start]), *_put_back(stand_in, weights[stand_in.name])]
                done = field.stop
    pieces.append(bytes(content[done : graph.stop]))
    opening = bytes(content[: graph.start]) + _header(_GRAPH, size_of(pieces))
    return [opening, *pieces, bytes(content[graph.stop :])]


def size_of(pieces: Sequence[Piece]) -> int:
    """How many bytes the pieces have together."""
    return sum(len(piece) if isinstance(piece, bytes) else piece.nbytes for piece in pieces)


def skeleton_of(model: ir.Model) -> tuple[onnx.ModelProto, Weights]:
    """The skeleton of a model, and the tensors that it lacks, which are all the external ones and the large ones."""
    initializers = model.graph.initializers.items()
    weights = {name: v.const_value for name, v in initializers if v.const_value is not None and _leaves(v.const_value)}
    try:
        for name, tensor in weights.items():
            model.graph.initializers[name].const_value = _stand_in(tensor)
        with _writable():
            return ir.to_proto(model), weights
    finally:  # the model is as it was
        for name, tensor in weights.items():
            model.graph.initializers[name].const_value = tensor


def outline_of(model: ir.Model) -> tuple[onnx.ModelProto, Weights]:
    """The skeleton of a model without what it says of its inner values, which takes half the time to make."""
    with _writable():
        proto = onnx.ModelProto(ir_version=model.ir_version)
        proto.opset_import.extend(onnx.helper.make_opsetid(domain, n) for domain, n in model.opset_imports.items())
        proto.functions.extend(ir.serde.serialize_function(function) for function in model.functions.values())
        graph, weights = proto.graph, dict[str, ir.TensorProtocol]()
        graph.name = model.graph.name or "graph"
        for value in model.graph.inputs:
            ir.serde.serialize_value_into(graph.input.add(), value)
        for name, value in model.graph.initializers.items():
            if value.const_value is not None and _leaves(value.const_value):
                weights[name] = value.const_value
            elif value.const_value is not None:
                ir.serde.serialize_tensor_into(graph.initializer.add(), value.const_value)
                graph.initializer[-1].name = name
        for node in model.graph:
            ir.serde.serialize_node_into(graph.node.add(), node)
        for value in model.graph.outputs:
            ir.serde.serialize_value_into(graph.output.add(), value)
    return proto, weights


@contextmanager
def _writable() -> Iterator[None]:
    """Protobuf reads names that are no text, as bytes, and does not write them; nobody looks for them on the way."""
    try:
        yield
    except (ir.serde.SerdeError, UnicodeError) as error:
        raise ModelError(f"the model is damaged, and cannot be written again: {root_cause(error)}") from error


def complete(model: ir.Model, weights: Weights) -> None:
    """Give a model that was made from a skeleton its weights, in place."""
    for name, tensor in weights.items():
        value = model.graph.initializers[name]
        value.const_value = tensor
        if not value.is_graph_input():  # an input says itself what shape it has
            value.shape = ir.Shape(tensor.shape.numpy())


def _leaves(tensor: ir.TensorProtocol) -> bool:
    if isinstance(tensor, ir.serde.TensorProtoTensor) and tensor.raw.ByteSize() <= _LARGE:
        return False  # known at no cost, and true of most
    if tensor.dtype is ir.DataType.STRING:
        return False
    return tensor.nbytes > _LARGE or isinstance(tensor, ir.ExternalTensor)


def _stand_in(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    return ir.Tensor(
        np.empty(0, tensor.dtype.numpy()),
        tensor.dtype,
        name=tensor.name,
        doc_string=tensor.doc_string,
        metadata_props=dict(tensor.metadata_props),
    )


def _taken_out(content: memoryview, field: _Field) -> tuple[ir.TensorProtocol, bytes] | None:
    """An initializer as a tensor over its bytes, with its stand-in; None where it must stay in the message."""
    inside = list(_fields(content, field.value, field.stop))
    raw = [item for item in inside if item.number == _RAW_DATA]
    if len(raw) != 1 or raw[0].wire_type != _BYTES or not _PLAIN_FIELDS.issuperset(item.number for item in inside):
        return None
    start, stop = raw[0].value, raw[0].stop
    proto = onnx.TensorProto.FromString(b"".join((content[field.value : raw[0].start], content[stop : field.stop])))
    shape, dtype = tuple(proto.dims), _whole_bytes(proto.data_type)
    if dtype is None or not proto.name or any(dim < 0 for dim in shape):
        return None
    if math.prod(shape) * dtype.itemsize != stop - start:
        return None  # damaged
    array = np.frombuffer(content[start:stop], dtype.numpy().newbyteorder("<")).reshape(shape)
    metadata = {entry.key: entry.value for entry in proto.metadata_props}
    tensor = ir.Tensor(array, dtype, name=proto.name, doc_string=proto.doc_string, metadata_props=metadata)
    proto.dims[:] = [0]
    proto.raw_data = b""
    return tensor, proto.SerializeToString()


def _whole_bytes(data_type: int) -> ir.DataType | None:
    """A type whose elements are whole bytes, so that raw data is an array as it stands."""
    try:
        dtype = ir.DataType(data_type)
        return dtype if dtype.bitwidth % 8 == 0 else None
    except (ValueError, TypeError):  # unknown, or of no fixed width
        return None


def _put_back(stand_in: onnx.TensorProto, tensor: ir.TensorProtocol) -> list[Piece]:
    """The field of an initializer whose raw data is the tensor's."""
    stand_in.dims[:] = tensor.shape.numpy()
    content = stand_in.SerializeToString()
    (raw,) = (item for item in _fields(memoryview(content), 0, len(content)) if item.number == _RAW_DATA)
    before = content[: raw.start] + _header(_RAW_DATA, tensor.nbytes)
    after = content[raw.stop :]
    return [_header(_INITIALIZER, len(before) + tensor.nbytes + len(after)) + before, tensor, after]


def _graph_field(content: memoryview) -> _Field:
    graphs = [field for field in _fields(content, 0, len(content)) if field.number == _GRAPH]
    if len(graphs) != 1 or graphs[0].wire_type != _BYTES:  # a field that comes twice is merged
        raise _UnknownLayoutError
    return graphs[0]


def _fields(content: memoryview, start: int, stop: int) -> Iterator[_Field]:
    """The fields of the message between two positions."""
    while start < stop:
        tag, value = _varint(content, start, stop)
        match tag & 7:
            case 0:
                end = _varint(content, value, stop)[1]
            case 1:
                end = value + 8
            case 2:
                length, value = _varint(content, value, stop)
                end = value + length
            case 5:
                end = value + 4
            case _:  # groups, which ONNX does not use
                raise _UnknownLayoutError
        if end > stop:
            raise _UnknownLayoutError
        yield _Field(tag >> 3, tag & 7, start, value, end)
        start = end


def _varint(content: memoryview, position: int, stop: int) -> tuple[int, int]:
    """The number at a position, seven bits a byte with the lowest first, and where it ends."""
    number = 0
    for shift in range(0, 70, 7):
        if position >= stop:
            break
        byte = content[position]
        position += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, position
    raise _UnknownLayoutError


def _header(number: int, length: int) -> bytes:
    """The tag and the length of a field that holds ``length`` bytes."""
    return _encoded(number << 3 | _BYTES) + _encoded(length)


def _encoded(number: int) -> bytes:
    groups = []
    while number > 0x7F:
        groups.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes((*groups, number))
