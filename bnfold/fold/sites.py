"""Recognise the affines of a graph: batch norms, and chains of Mul, Add, Sub, Div and Neg by constants.

A batch norm in inference mode is (ONNX specification, BatchNormalization; Ioffe & Szegedy 2015)::

    y = γ · (x − μ) / √(σ² + ε) + β        that is        s = γ / √(σ² + ε),  t = β − s · μ

A binary op with a constant is an affine along one axis only if broadcasting the constant leaves the shape of the
data as it is, and the constant varies along at most one axis. A constant of shape ``(W,)`` beside data of shape
``(N, C, H, W)`` scales columns, not channels, even where W equals C: the axis is read off the shapes, never assumed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bnfold.affine import ChannelAffine, Float64Array
from bnfold.fold.report import Kind, Reason, Refusal
from bnfold.graph import ModelGraph, in_default_domain, sole_reader
from bnfold.shapes import described

_FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16})

#: Chooses the nodes that may be touched.
Selection = Callable[[ir.Node], bool]

#: Affines that nodes stand for since something was absorbed by them.
Known = Mapping[ir.Node, ChannelAffine]


@dataclass(frozen=True, eq=False)
class Site:
    """One or more affine nodes in a row, each the only consumer of the one before.

    Attributes:
        nodes: the chain, in order.
        source: the value that the chain acts on.
        output: the value that it computes.
        affine: what the chain does.
    """

    nodes: tuple[ir.Node, ...]
    source: ir.Value
    output: ir.Value
    affine: ChannelAffine

    @property
    def kind(self) -> Kind:
        """Whether a batch norm is part of the chain."""
        return Kind.BATCH_NORM if any(is_batch_norm(node) for node in self.nodes) else Kind.AFFINE


def is_batch_norm(node: ir.Node) -> bool:
    """Whether ``node`` is ONNX's BatchNormalization."""
    return node.op_type == "BatchNormalization" and in_default_domain(node)


def site_at(
    node: ir.Node, graph: ModelGraph, known: Known, selected: Selection, most: int | None = None
) -> Site | Refusal | None:
    """The site that begins with ``node``: its own affine, and those that alone consume it, as far as they go.

    Args:
        node: the first node of the chain.
        graph: the model.
        known: nodes whose affine is no longer what their constants say.
        selected: which nodes may be touched.
        most: how many nodes the chain may have; None for as many as there are.
    """
    first = _read_selected(node, graph, known, selected)
    if not isinstance(first, Site):
        return first
    nodes, output, affine = [node], first.output, first.affine
    while len(nodes) != most and (following := sole_reader(output)) is not None:
        reading = _read_selected(following, graph, known, selected)
        if not isinstance(reading, Site) or reading.source is not output or following.graph is not node.graph:
            break
        combined = affine.then(reading.affine)
        if combined is None or not combined.is_finite:
            break
        nodes.append(following)
        output, affine = reading.output, combined
    return Site(tuple(nodes), first.source, output, affine)


def _read_selected(node: ir.Node, graph: ModelGraph, known: Known, selected: Selection) -> Site | Refusal | None:
    reading = read_affine(node, graph, known)
    if isinstance(reading, Site) and not selected(node):
        return Refusal(Reason.NOT_SELECTED, "left out by the choice of nodes")
    return reading


def read_affine(node: ir.Node, graph: ModelGraph, known: Known) -> Site | Refusal | None:
    """The affine that one node computes; a refusal where it looks like one and is not; None for all other ops."""
    reading = _read_constants(node, graph)
    if isinstance(reading, Site) and node in known:
        return replace(reading, affine=known[node])
    return reading


def _read_constants(node: ir.Node, graph: ModelGraph) -> Site | Refusal | None:
    if not in_default_domain(node):
        return None
    if node.op_type == "BatchNormalization":
        return _read_batch_norm(node, graph)
    if node.op_type in ("Add", "Sub", "Mul", "Div"):
        return _read_binary(node, graph)
    if node.op_type == "Neg":
        source = node.inputs[0]
        if source is None or graph.shapes.dtype(source) not in _FLOATS or graph.constants.array(source) is not None:
            return None
        return Site((node,), source, node.outputs[0], ChannelAffine.along(None, -1.0, 0.0))
    return None


def _read_batch_norm(node: ir.Node, graph: ModelGraph) -> Site | Refusal:
    refusal = _not_inference(node, graph.opset)
    if refusal:
        return refusal
    if len(node.inputs) < 5 or any(value is None for value in node.inputs[:5]):
        return Refusal(Reason.PARAMETERS_INVALID, "a batch norm without its five inputs")
    source = node.inputs[0]
    assert source is not None
    parameters: list[Float64Array] = []
    for name, value in zip(("scale", "B", "input_mean", "input_var"), node.inputs[1:5], strict=True):
        assert value is not None
        if graph.constants.overridable(value):
            return Refusal(Reason.OVERRIDABLE_INPUT, f"{name} ({value.name}) is an input that the caller may feed")
        array = graph.constants.floats(value)
        if array is None and graph.constants.array(value) is None:
            return Refusal(Reason.PARAMETERS_NOT_CONSTANT, f"{name} ({value.name}) is computed at run time")
        if array is None:
            return Refusal(Reason.PARAMETERS_INVALID, f"{name} ({value.name}) is not of a floating-point type")
        parameters.append(array.astype(np.float64))
    return _batch_norm_site(node, source, parameters, graph)


def _batch_norm_site(
    node: ir.Node, source: ir.Value, parameters: list[Float64Array], graph: ModelGraph
) -> Site | Refusal:
    sizes = {array.shape for array in parameters}
    if len(sizes) != 1 or len(shape := sizes.pop()) != 1 or not shape[0]:
        shapes = ", ".join(str(array.shape) for array in parameters)
        return Refusal(Reason.PARAMETERS_INVALID, f"parameters of shapes {shapes} where four equal vectors belong")
    channels = _channels(graph.shapes.shape(source))
    if isinstance(channels, int) and channels != shape[0]:
        return Refusal(Reason.PARAMETERS_INVALID, f"{shape[0]} parameters for {channels} channels")
    weight, bias, mean, variance = parameters
    # The attribute is a float32: 1e-5 as stored, not as written.
    epsilon = float(np.float32(node.attributes.get_float("epsilon", 1e-5)))
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        scale = weight / np.sqrt(variance + epsilon)
        affine = ChannelAffine.along(1 if shape[0] > 1 else None, scale, bias - scale * mean)
    if not affine.is_finite:
        return Refusal(
            Reason.PARAMETERS_INVALID,
            "its parameters give no finite scale and shift (a negative variance, or NaN)",
        )
    return Site((node,), source, node.outputs[0], affine)


def _channels(shape: tuple[int | str | None, ...] | None) -> int | str | None:
    if shape is None:
        return None
    return shape[1] if len(shape) > 1 else 1  # a single dimension is read as N, with C = 1


def _not_inference(node: ir.Node, opset: int) -> Refusal | None:
    """Whether the batch norm uses the batch's own statistics, by the rules of its operator set."""
    extra_outputs = [output.name for output in node.outputs[1:] if output.name]
    if node.attributes.get_int("training_mode", 0):
        return Refusal(Reason.TRAINING_MODE, "training_mode=1: it normalizes by the statistics of each batch")
    if opset < 7 and not node.attributes.get_int("is_test", 0):
        return Refusal(Reason.TRAINING_MODE, "is_test=0: it normalizes by the statistics of each batch")
    if opset < 7:
        return Refusal(Reason.UNSUPPORTED_OP, "operator sets before 7 normalize by other rules; convert the model")
    if extra_outputs:
        return Refusal(
            Reason.TRAINING_MODE,
            f"it also computes running statistics ({', '.join(extra_outputs)}), as in training",
        )
    if opset < 9 and not node.attributes.get_int("spatial", 1):
        return Refusal(Reason.SPATIAL, "spatial=0: its statistics differ from pixel to pixel")
    return None


def _read_binary(node: ir.Node, graph: ModelGraph) -> Site | Refusal | None:
    left, right = node.inputs[:2]
    if left is None or right is None:
        return None
    constants = [graph.constants.floats(value) for value in (left, right)]
    # Nothing constant: an op between two activations. Both constant: no activation at all.
    if (constants[0] is None) == (constants[1] is None) or graph.opset < 7:
        return None
    source, constant = (right, constants[0]) if constants[0] is not None else (left, constants[1])
    assert constant is not None
    if graph.shapes.dtype(source) not in _FLOATS:
        return None  # integers do not compose like reals
    vector = _along_one_axis(constant, graph.shapes.shape(source))
    if isinstance(vector, Refusal):
        return vector
    axis, values = vector
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        affine = _binary_affine(node.op_type, axis, values, constant_first=constants[0] is not None)
    if affine is None:
        return None
    if not affine.is_finite:
        return Refusal(Reason.PARAMETERS_INVALID, "its constant gives no finite scale and shift")
    return Site((node,), source, node.outputs[0], affine)


def _binary_affine(op_type: str, axis: int | None, c: Float64Array, *, constant_first: bool) -> ChannelAffine | None:
    match op_type, constant_first:
        case "Add", _:
            return ChannelAffine.along(axis, 1.0, c)
        case "Mul", _:
            return ChannelAffine.along(axis, c, 0.0)
        case "Sub", False:
            return ChannelAffine.along(axis, 1.0, -c)
        case "Sub", True:
            return ChannelAffine.along(axis, -1.0, c)
        case "Div", False:
            return ChannelAffine.along(axis, 1.0 / c, 0.0)
        case _:  # c / x is no affine
            return None


def _along_one_axis(
    constant: NDArray[Any], shape: tuple[int | str | None, ...] | None
) -> tuple[int | None, Float64Array] | Refusal:
    """The axis of the data along which ``constant`` varies, with its values there; None for a single value."""
    if constant.ndim == 0:
        return None, constant.astype(np.float64).reshape(1)
    if shape is None:
        return Refusal(Reason.UNKNOWN_SHAPE, "the rank of its input is not known")
    if constant.ndim > len(shape):
        return Refusal(
            Reason.BROADCAST_CHANGES_SHAPE,
            f"its constant of shape {constant.shape} raises the rank of an input of rank {len(shape)}",
        )
    offset = len(shape) - constant.ndim
    for position, size in enumerate(constant.shape):
        dim = shape[offset + position]
        if size == 1 or dim == size:
            continue
        if isinstance(dim, int):
            return Refusal(
                Reason.BROADCAST_CHANGES_SHAPE,
                f"its constant of shape {constant.shape} broadcasts an input of shape {described(shape)}",
            )
        return Refusal(Reason.UNKNOWN_SHAPE, f"axis {offset + position} of its input has no known length")
    if constant.size == 0:
        return Refusal(Reason.PARAMETERS_INVALID, "its constant is empty")
    wide = constant.astype(np.float64)
    varying = [
        position
        for position, size in enumerate(constant.shape)
        if size > 1 and not np.array_equal(wide, np.broadcast_to(wide.take([0], position), wide.shape))
    ]
    if len(varying) > 1:
        return Refusal(Reason.AXIS_MISMATCH, f"its constant of shape {constant.shape} varies along several axes")
    if not varying:
        return None, wide.reshape(-1)[:1]
    index = tuple(slice(None) if position == varying[0] else 0 for position in range(constant.ndim))
    return offset + varying[0], wide[index]
