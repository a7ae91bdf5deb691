"""Shapes and dtypes of a model's values, worked out once; folding changes neither."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from uuid import uuid4

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError, EncodeError

from bnfold.errors import one_line
from bnfold.opset14 import as_of_14
from bnfold.protos import DEFAULT_DOMAINS, bodies_of, nodes_of
from bnfold.skeleton import Weights, outline_of

#: One dimension: its length, its symbolic name, or None where nothing is known.
Dim = int | str | None


def described(shape: tuple[Dim, ...]) -> str:
    """A shape for a sentence; a name that the inference made up says no more than that the length is unknown."""
    return f"({', '.join('an unknown size' if _is_unknown(dim) else str(dim) for dim in shape)})"


def _is_unknown(dim: Dim) -> bool:
    return dim is None or (isinstance(dim, str) and (not dim or dim.startswith("unk__")))


@dataclass(frozen=True)
class ValueInfo:
    """What is known of one value.

    Attributes:
        shape: its dimensions; None where the rank is unknown.
        dtype: its element type; None where that is unknown.
        is_inferred: whether the shape follows from the model's inputs and ops; else the file says so, and may be wrong.
    """

    shape: tuple[Dim, ...] | None
    dtype: ir.DataType | None
    is_inferred: bool = True


_NOTHING = ValueInfo(None, None)

#: The operator set from which on there is a Unique.
_UNIQUE = 11

#: The operator set whose Slice, for the inference, leaves a named size its name whatever it cuts off.
_MISNAMING = 10

#: By its number in a file; 0 says nothing.
_DTYPES = {dtype.value: dtype for dtype in ir.DataType if dtype is not ir.DataType.UNDEFINED}


class ShapeTable:
    """The shape and dtype of each value, whatever it is renamed to later."""

    def __init__(self, infos: dict[ir.Value, ValueInfo]) -> None:
        self._infos = infos

    def set(self, value: ir.Value, shape: tuple[Dim, ...], dtype: ir.DataType | None) -> None:
        """Say what is known of a value."""
        self._infos[value] = ValueInfo(shape, dtype)

    def copy(self, source: ir.Value, target: ir.Value) -> None:
        """Let a new value have the shape and dtype of another."""
        inferred = self.inferred(source) is not None
        self._infos[target] = ValueInfo(self.shape(source), self.dtype(source), inferred)

    def inferred(self, value: ir.Value) -> tuple[Dim, ...] | None:
        """The dimensions of ``value`` as far as they follow from the model's inputs; None where only the file tells.

        What a file says of its inner values picks an axis where nothing else does, but never makes an op idle.
        """
        info = self._infos.get(value)
        if value.const_value is not None:
            return self.shape(value)
        return info.shape if info is not None and info.is_inferred else None

    def shape(self, value: ir.Value) -> tuple[Dim, ...] | None:
        """The dimensions of ``value``, or None where its rank is unknown."""
        info = self._infos.get(value)
        return info.shape if info else _shape_of(value)

    def rank(self, value: ir.Value) -> int | None:
        """The number of dimensions, or None where it is unknown."""
        shape = self.shape(value)
        return None if shape is None else len(shape)

    def dtype(self, value: ir.Value) -> ir.DataType | None:
        """The element type, or None where it is unknown."""
        info = self._infos.get(value)
        return info.dtype if info else value.dtype


def infer_shapes(model: ir.Model) -> ShapeTable:
    """Infer the shapes of all values, subgraphs included, with ONNX's own shape inference.

    What the inference finds counts for more than what the file says of its inner values: such annotations go
    stale when tools edit a graph, and a wrong rank would put an affine on the wrong axis. They are used only
    where the inference finds nothing (after an op of a custom domain, say). Neither does the inference see the
    values of initializers that a caller may override. The model is not changed.
    """
    proto, weights = outline_of(model)
    _leave_types_only(proto, weights)
    proto = _inferred(proto)
    infos: dict[ir.Value, ValueInfo] = {}
    scopes = [("", model.graph, proto.graph)]
    while scopes:
        owner, graph, inferred = scopes.pop()
        found = _found(inferred)
        if owner == "Loop":  # what it carries may change its shape from one round to the next
            carried = {str(value.name) for value in graph.inputs} & found.keys()
            found |= {name: replace(found[name], is_inferred=False) for name in carried}
        bodies = zip(_bodies(graph), _body_protos(inferred), strict=True)
        scopes += ((op_type, body, body_proto) for (op_type, body), body_proto in bodies)
        for value in _values(graph):
            info = found.get(value.name or "", _NOTHING)
            infos[value] = ValueInfo(
                shape=info.shape if info.shape is not None else _shape_of(value),
                dtype=info.dtype if info.dtype is not None else value.dtype,
                is_inferred=info.shape is not None and info.is_inferred,
            )
    return ShapeTable(infos)


def _inferred(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A model with what ONNX's inference finds, of itself or of what it is in operator set 14."""
    found, later = _inferred_alone(proto), None
    misnamed = _opset(proto) == _MISNAMING and any(node.op_type == "Slice" for node in nodes_of(proto))
    if misnamed or _lacks_a_shape(found.graph):
        with suppress(ValueError):
            later = as_of_14(proto)
    if later is not None:
        later = _inferred_alone(later)
        if _confirms(found.graph, later.graph):
            return later
    if misnamed:
        _forget_names(found.graph)
    return found


def _inferred_alone(proto: onnx.ModelProto) -> onnx.ModelProto:
    _hide_open_bounds(proto)
    # Where it fails as a whole, it has found nothing.
    with suppress(onnx.shape_inference.InferenceError, RuntimeError, ValueError, EncodeError, DecodeError):
        return onnx.shape_inference.infer_shapes(proto, data_prop=True)
    return proto


def _forget_names(graph: onnx.GraphProto) -> None:
    """Leave open what a graph says of sizes by name, but those of its inputs."""
    for value in (*graph.value_info, *graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.HasField("dim_param"):
                dim.ClearField("dim_param")
    for body in _body_protos(graph):
        _forget_names(body)


def _lacks_a_shape(graph: onnx.GraphProto) -> bool:
    infos = _found(graph)
    return any(infos.get(name, _NOTHING).shape is None for node in graph.node for name in node.output)


def _confirms(found: onnx.GraphProto, later: onnx.GraphProto) -> bool:
    """Whether all that is known of a graph is known of the later one, and is the same; names of sizes aside."""
    known = _found(later)
    for name, info in _found(found).items():
        other = known.get(name, _NOTHING)
        if info.dtype not in (None, other.dtype):
            return False
        if info.shape is not None and (other.shape is None or len(info.shape) != len(other.shape)):
            return False
        sizes = zip(info.shape or (), other.shape or (), strict=False)
        if any(isinstance(size, int) and size != own for size, own in sizes):
            return False
    bodies = zip(_body_protos(found), _body_protos(later), strict=True)
    return all(_confirms(body, own) for body, own in bodies)


def contradiction(skeleton: onnx.ModelProto, weights: Weights) -> str | None:
    """What strict shape inference holds against a model: a declared shape or type that its nodes do not yield."""
    proto = onnx.ModelProto()
    proto.CopyFrom(skeleton)
    _declare(proto, weights)
    _hide_open_bounds(proto)
    try:
        onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError) as error:
        return one_line(error)
    except (EncodeError, DecodeError):
        return None
    return None


def _leave_types_only(proto: onnx.ModelProto, weights: Weights) -> None:
    """Keep of a skeleton what the inference may believe, and declare the weights that it lacks as inputs."""
    _declare(proto, weights)
    graphs = [proto.graph]
    while graphs:
        graph = graphs.pop()
        graphs += _body_protos(graph)
        del graph.value_info[:]
        for value in (*graph.input, *graph.output):
            _forget_elements(value.type)
        computed = {name for node in graph.node for name in node.output}
        for output in graph.output:  # it must say what it is, but not in which shape
            if output.name in computed and output.type.HasField("tensor_type"):
                output.type.tensor_type.ClearField("shape")


def _forget_elements(kind: onnx.TypeProto) -> None:
    """Leave open which shapes the tensors of a sequence or optional have: no runtime holds callers to them."""
    inner = kind
    while (which := inner.WhichOneof("value")) in ("sequence_type", "optional_type"):
        inner = getattr(inner, which).elem_type
    if inner is not kind and inner.HasField("tensor_type"):
        inner.tensor_type.ClearField("shape")


def _declare(proto: onnx.ModelProto, weights: Weights) -> None:
    """Make inputs of the weights that a skeleton lacks, and of the defaults that a caller may override."""
    inputs = {value.name for value in proto.graph.input}
    tensors = list(proto.graph.initializer)
    types = {t.name: (t.data_type, tuple(t.dims)) for t in tensors if t.data_location == onnx.TensorProto.EXTERNAL}
    types |= {name: (tensor.dtype.value, tuple(tensor.shape.numpy())) for name, tensor in weights.items()}
    unseen = types.keys() | inputs if proto.ir_version >= 4 else types.keys()
    seen = [tensor for tensor in tensors if tensor.name not in unseen]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(seen)
    for name, (dtype, shape) in types.items():
        if name not in inputs:
            proto.graph.input.append(onnx.helper.make_tensor_value_info(name, dtype, shape))


def _hide_open_bounds(proto: onnx.ModelProto) -> None:
    """Keep the inference from computing a Slice of a shape whose bounds it does not know, and takes for 0.

    It leaves alone a start of which not even the length is known, as that of an op with as many results as it finds.
    """
    if _opset(proto) < _UNIQUE:  # before, it does not compute any
        return
    scopes = [(proto.graph.node, {tensor.name for tensor in proto.graph.initializer})]
    scopes += ((function.node, set()) for function in proto.functions)
    while scopes:
        nodes, known = scopes.pop()
        known = known | {name for node in nodes if node.op_type == "Constant" for name in node.output}
        hiding: list[tuple[int, onnx.NodeProto]] = []
        for place, node in enumerate(nodes):
            scopes += ((body.node, known | {t.name for t in body.initializer}) for body in bodies_of(node))
            if node.op_type == "Slice" and not known.issuperset(filter(None, node.input[1:])):
                hiding.append((place, onnx.helper.make_node("Unique", [node.input[1]], [uuid4().hex])))
                node.input[1] = hiding[-1][1].output[0]
        for place, hidden in reversed(hiding):
            nodes.insert(place, hidden)


def _opset(proto: onnx.ModelProto) -> int:
    return max((entry.version for entry in proto.opset_import if entry.domain in DEFAULT_DOMAINS), default=0)


def _found(graph: onnx.GraphProto) -> dict[str, ValueInfo]:
    """What a graph says of its own values."""
    infos: dict[str, ValueInfo] = {}
    for value in (*graph.input, *graph.value_info, *graph.output):
        if not value.type.HasField("tensor_type"):
            continue
        tensor = value.type.tensor_type
        shape = tuple(_dim(dim) for dim in tensor.shape.dim) if tensor.HasField("shape") else None
        if shape is not None or value.name not in infos:
            infos[value.name] = ValueInfo(shape, _DTYPES.get(tensor.elem_type))
    return infos


def _dim(dim: onnx.TensorShapeProto.Dimension) -> Dim:
    return dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    """The values of a graph, those of its bodies left out."""
    yield from graph.inputs
    yield from graph.initializers.values()
    for node in graph:
        yield from node.outputs


def _bodies(graph: ir.Graph) -> Iterator[tuple[str, ir.Graph]]:
    """The graphs in the attributes of a graph's nodes, such as the branches of an If, and the op that each is of."""
    for node in graph:
        for attribute in node.attributes.values():
            match attribute.type:
                case ir.AttributeType.GRAPH:
                    yield node.op_type, attribute.as_graph()
                case ir.AttributeType.GRAPHS:
                    yield from ((node.op_type, body) for body in attribute.as_graphs())


def _body_protos(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """The same, in the same order."""
    for node in graph.node:
        yield from bodies_of(node)


def _shape_of(value: ir.Value) -> tuple[Dim, ...] | None:
    if value.shape is None:
        return None
    return tuple(dim if isinstance(dim, int) else dim.value for dim in value.shape)
