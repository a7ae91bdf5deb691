"""Read linear ops in a row from the graph, as what could be merged: chains of convolutions and affines.

Only shapes and attributes are read here until :meth:`Chain.convolution` asks for the numbers, so that a merge which
would cost more than it saves is turned down before any weight is touched.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from bnfold.affine import ChannelAffine
from bnfold.fold.absorb import Pending, read_linear
from bnfold.fold.commute import RULES
from bnfold.fold.convolution import Convolution, Geometry, in_sequence
from bnfold.fold.linear_ops import LINEAR_OPS
from bnfold.fold.plan import view_of
from bnfold.fold.report import Reason, Refusal
from bnfold.fold.sites import Selection, Site, read_affine
from bnfold.graph import ModelGraph, attributes_of, in_default_domain, input_of, label
from bnfold.shapes import Dim


@dataclass(frozen=True)
class Frame:
    """Where the channels of a value lie, and how many spatial axes follow them.

    Attributes:
        axis: of the channels.
        spatial: number of axes over which kernels slide; 0 for dense layers, which act on one axis.
    """

    axis: int
    spatial: int


@dataclass(frozen=True, eq=False)
class Stage:
    """One op of a chain.

    Attributes:
        node: the op.
        source: what it reads.
        frame: of a linear op or a pool; None for an affine, which goes along with its neighbours.
        geometry: of a linear op or a pool, or why it has none; None for an affine.
        affine: of an affine, the identity for an op that changes nothing; None for all others.
    """

    node: ir.Node
    source: ir.Value
    frame: Frame | None = None
    geometry: Geometry | Refusal | None = None
    affine: ChannelAffine | None = None

    @property
    def is_linear(self) -> bool:
        """Whether the op holds weights of its own."""
        return self.affine is None and self.node.op_type in LINEAR_OPS


@dataclass(frozen=True, eq=False)
class Chain:
    """Ops in a row, each the only reader of the one before; none of them is the identity.

    Attributes:
        source: what the first one reads.
        stages: in order.
    """

    source: ir.Value
    stages: tuple[Stage, ...]

    @property
    def nodes(self) -> tuple[ir.Node, ...]:
        """The ops of the chain."""
        return tuple(stage.node for stage in self.stages)

    @property
    def linears(self) -> tuple[Stage, ...]:
        """Those that hold weights."""
        return tuple(stage for stage in self.stages if stage.is_linear)

    def frame(self) -> Frame | Refusal | None:
        """Where its channels lie; None where nothing but affines tells."""
        frames = {stage.frame for stage in self.stages if stage.frame is not None}
        if len(frames) > 1:
            return Refusal(Reason.AXIS_MISMATCH, "the ops of one branch do not act on the same axis")
        return frames.pop() if frames else None

    def geometries(self, frame: Frame, channels: int) -> list[Geometry] | Refusal:
        """The geometry of each stage, for a source of so many channels."""
        found: list[Geometry] = []
        for stage in self.stages:
            if isinstance(stage.geometry, Refusal):
                return stage.geometry
            if stage.affine is not None and stage.affine.axis not in (None, frame.axis):
                return Refusal(Reason.AXIS_MISMATCH, f"{label(stage.node)} does not scale the channels")
            if stage.affine is not None and stage.affine.axis is not None and stage.affine.size != channels:
                return Refusal(Reason.PARAMETERS_INVALID, f"{label(stage.node)} does not have {channels} channels")
            geometry = stage.geometry or Geometry.depthwise(channels, (1,) * frame.spatial)
            if geometry.in_channels != channels:
                return Refusal(Reason.BROADCAST_CHANGES_SHAPE, f"{label(stage.node)} does not have {channels} channels")
            found.append(geometry)
            channels = geometry.out_channels
        return found

    def geometry(self, frame: Frame, channels: int) -> Geometry | Refusal:
        """That of all stages as one."""
        whole = Geometry.depthwise(channels, (1,) * frame.spatial)
        parts = self.geometries(frame, channels)
        if isinstance(parts, Refusal):
            return parts
        for part in parts:
            combined = in_sequence(whole, part)
            if isinstance(combined, Refusal):
                return combined
            whole = combined
        return whole

    def work(self, frame: Frame, channels: int) -> int:
        """Multiply-adds for one position of the chain's output, given that it has a geometry.

        An op that yields more positions than it reads is taken to cost as if those before it were free.
        """
        parts = self.geometries(frame, channels)
        assert not isinstance(parts, Refusal)
        total = 0
        for stage, part in zip(self.stages, parts, strict=True):
            total = 0 if any(excess > 0 for excess in part.excess) else total * math.prod(part.strides)
            if stage.affine is None or not stage.affine.is_identity:
                total += part.weights
        return total

    def convolution(self, frame: Frame, channels: int, graph: ModelGraph, pending: Pending) -> Convolution | Refusal:
        """All stages as one convolution, in float64."""
        whole: Convolution | None = None
        for stage in self.stages:
            if stage.affine is not None:
                arriving = channels if whole is None else whole.geometry.out_channels
                part: Convolution | Refusal = _affine_convolution(stage.affine, arriving, frame.spatial)
            else:
                assert isinstance(stage.geometry, Geometry)
                part = _numbers(stage.node, stage.geometry, graph, pending)
            combined = part if whole is None or isinstance(part, Refusal) else whole.then(part)
            if isinstance(combined, Refusal):
                return combined
            whole = combined
        return whole or _affine_convolution(ChannelAffine.identity(), channels, frame.spatial)


def chains_to(
    value: ir.Value, scope: ir.Graph | ir.Function | None, graph: ModelGraph, pending: Pending, selected: Selection
) -> Iterator[Chain]:
    """Every chain of one scope that ends with ``value`` and that nobody else sees into, the empty one first."""
    chain = Chain(value, ())
    yield chain
    while not value.is_graph_output() and len(value.uses()) == 1:
        stage = stage_before(value, graph, pending, selected)
        if stage is None or stage.node.graph is not scope:
            return
        value = stage.source
        chain = Chain(value, (stage, *chain.stages))
        yield chain


def stage_before(value: ir.Value, graph: ModelGraph, pending: Pending, selected: Selection) -> Stage | None:
    """The op that produces ``value``, if it may be part of a chain."""
    node = value.producer()
    if node is None or not in_default_domain(node) or not selected(node) or node.outputs[0] is not value:
        return None
    if any(other.uses() or other.is_graph_output() for other in node.outputs[1:]):  # a Dropout's mask
        return None
    reading = read_affine(node, graph, pending.affines)
    if isinstance(reading, Site):
        return Stage(node, reading.source, affine=reading.affine)
    source = node.inputs[0] if node.inputs else None
    if source is None:
        return None
    if node.op_type in ("Identity", "Dropout"):
        crossing = RULES[node.op_type].backward(view_of(node, graph, pending), 0, ChannelAffine.identity())
        return None if isinstance(crossing, Refusal) else Stage(node, source, affine=ChannelAffine.identity())
    if node.op_type in LINEAR_OPS and not LINEAR_OPS[node.op_type].window_is_data:
        frame = _frame_of(node, graph)
        return None if frame is None else Stage(node, source, frame, _linear_geometry(node, graph, pending))
    if node.op_type == "AveragePool":
        geometry = _pool_geometry(node, graph)
        spatial = len(node.attributes.get_ints("kernel_shape", ()))
        return Stage(node, source, Frame(1, spatial), geometry)
    return None


def _frame_of(node: ir.Node, graph: ModelGraph) -> Frame | None:
    source = input_of(node, 0)
    axis = LINEAR_OPS[node.op_type].input_axis(graph.shapes.rank(source), attributes_of(node))
    if axis is None:
        return None
    if node.op_type in ("Conv", "ConvTranspose"):
        rank = graph.shapes.rank(input_of(node, 1))
        return None if rank is None else Frame(axis, rank - 2)
    return Frame(axis, 0)


def _linear_geometry(node: ir.Node, graph: ModelGraph, pending: Pending) -> Geometry | Refusal:
    attributes = attributes_of(node)
    if node in pending.linears:
        linear = pending.linears[node]
        (group, out, inner, _), taps = linear.kernel.shape, linear.taps
    else:
        shape = graph.shapes.shape(input_of(node, 1))
        static = [dim for dim in shape or () if isinstance(dim, int)]
        if not static or 0 in static or shape is None or len(static) != len(shape):
            return Refusal(Reason.UNKNOWN_SHAPE, f"the shape of the weight of {label(node)} is not known")
        slides = node.op_type in ("Conv", "ConvTranspose")
        if (slides and len(static) < 3) or (node.op_type == "Gemm" and len(static) != 2):
            return Refusal(Reason.PARAMETERS_INVALID, f"a weight of shape {shape} in {label(node)}")
        group = int(attributes.get("group", 1))
        taps = LINEAR_OPS[node.op_type].taps(tuple(static))
        match node.op_type:
            case "Conv":
                out, inner = static[0] // max(group, 1), static[1]
            case "ConvTranspose":
                out, inner = static[1], static[0] // max(group, 1)
            case "Gemm" if attributes.get("transB", 0):
                out, inner = static
            case _:
                inner, out = static[-2:] if len(static) > 1 else (static[0], 0)
    if node.op_type in ("Gemm", "MatMul"):
        if taps or not out or attributes.get("transA", 0):
            return Refusal(Reason.AXIS_MISMATCH, f"{label(node)} is no plain product with one matrix")
        return Geometry(1, out, inner)
    source_shape = graph.shapes.shape(input_of(node, 0))
    window = _transposed_window(node, taps) if node.op_type == "ConvTranspose" else None
    window = window or _window(node, taps, (source_shape or ())[2:])
    if isinstance(window, Refusal):
        return window
    return replace(window, group=group, out=out, inner=inner)


def _transposed_window(node: ir.Node, taps: tuple[int, ...]) -> Geometry | Refusal | None:
    """A ConvTranspose keeps its attributes whatever it is merged with; only plain ones can be told to be alike."""
    attributes = attributes_of(node)
    plain = attributes.get("auto_pad", "NOTSET") in ("NOTSET", "VALID")
    if not plain or attributes.get("output_shape") or any(attributes.get("output_padding", ())):
        return Refusal(Reason.UNSUPPORTED_OP, f"{label(node)} says how long its output is, not how it pads")
    window = _window(node, taps, ())
    return window if isinstance(window, Refusal) else replace(window, transposed=True)


def _window(node: ir.Node, taps: tuple[int, ...], lengths: Sequence[Dim]) -> Geometry | Refusal:
    """The window of a Conv or a pool, its channels left out."""
    attributes: dict[str, Any] = attributes_of(node)
    count = len(taps)
    strides = tuple(int(n) for n in attributes.get("strides", ())) or (1,) * count
    dilations = tuple(int(n) for n in attributes.get("dilations", ())) or (1,) * count
    pads = tuple(int(n) for n in attributes.get("pads", ())) or (0,) * (2 * count)
    if not len(strides) == len(dilations) == count or len(pads) != 2 * count or min(pads, default=0) < 0:
        return Refusal(Reason.PARAMETERS_INVALID, f"the attributes of {label(node)} do not fit its kernel")
    window = Geometry(1, 1, 1, taps, strides, dilations, (0,) * count, (0,) * count)
    match attributes.get("auto_pad", "NOTSET"):
        case "NOTSET":
            return replace(window, begins=pads[:count], ends=pads[count:])
        case "VALID":
            return window
        case auto_pad:
            totals = [_same_padding(window, axis, lengths) for axis in range(count)]
            known = [total for total in totals if total is not None]
            if len(known) != count:
                return Refusal(Reason.UNKNOWN_SHAPE, f"how much {label(node)} pads follows from an unknown length")
            less, more = tuple(total // 2 for total in known), tuple(total - total // 2 for total in known)
            begins, ends = (less, more) if auto_pad == "SAME_UPPER" else (more, less)
            return replace(window, begins=begins, ends=ends)


def _same_padding(window: Geometry, axis: int, lengths: Sequence[Dim]) -> int | None:
    """What ``auto_pad`` of SAME adds along one axis, so that the output is ``⌈length / stride⌉`` long."""
    span, stride = window.dilations[axis] * (window.sizes[axis] - 1), window.strides[axis]
    if stride == 1:
        return span
    length = lengths[axis] if axis < len(lengths) else None
    return max((math.ceil(length / stride) - 1) * stride + span + 1 - length, 0) if isinstance(length, int) else None


def _pool_geometry(node: ir.Node, graph: ModelGraph) -> Geometry | Refusal:
    attributes = attributes_of(node)
    shape = graph.shapes.shape(input_of(node, 0))
    channels = shape[1] if shape is not None and len(shape) > 1 else None
    if not isinstance(channels, int) or shape is None:
        return Refusal(Reason.UNKNOWN_SHAPE, f"the channels of {label(node)} are not counted")
    if attributes.get("ceil_mode", 0):
        return Refusal(Reason.PADDING, f"{label(node)} may divide by fewer taps at the border (ceil_mode=1)")
    window = _window(node, tuple(int(n) for n in attributes.get("kernel_shape", ())), shape[2:])
    if isinstance(window, Refusal):
        return window
    if window.pads and not attributes.get("count_include_pad", 0):
        return Refusal(Reason.PADDING, f"{label(node)} divides by fewer taps at the border (count_include_pad=0)")
    return replace(window, group=channels)


def _affine_convolution(affine: ChannelAffine, channels: int, spatial: int) -> Convolution:
    geometry = Geometry.depthwise(channels, (1,) * spatial)
    scale = np.broadcast_to(affine.scale, channels).reshape(channels, 1, 1, *geometry.sizes)
    return Convolution(geometry, scale, np.broadcast_to(affine.shift, channels))


def _numbers(node: ir.Node, geometry: Geometry, graph: ModelGraph, pending: Pending) -> Convolution | Refusal:
    shape = (geometry.group, geometry.out, geometry.inner, *geometry.sizes)
    if node.op_type == "AveragePool":
        return Convolution(geometry, np.full(shape, 1 / math.prod(geometry.sizes)), np.zeros(geometry.out_channels))
    linear = read_linear(node, graph, pending, bias_matters=True)
    if isinstance(linear, Refusal):
        return linear
    if linear.quantization is not None:
        return Refusal(Reason.WEIGHT_QUANTIZED, f"the quantized weight of {label(node)} cannot be added to another")
    bias = np.zeros(1) if linear.bias is None else linear.bias
    if bias.size != 1 and bias.shape[-1:] != (bias.size,):  # a Gemm's may have rows
        return Refusal(Reason.AXIS_MISMATCH, f"the bias of {label(node)} differs from row to row")
    return Convolution(
        geometry, linear.exact().reshape(shape), np.broadcast_to(bias.reshape(-1), geometry.out_channels)
    )
