"""Which ops give what they read: they compute nothing, and an exporter left them behind."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir

from bnfold.affine import ChannelAffine
from bnfold.fold.absorb import Pending
from bnfold.fold.commute import RULES
from bnfold.fold.plan import view_of
from bnfold.fold.report import Refusal
from bnfold.graph import ModelGraph, input_of, integers

#: Bounds of a Slice from here on mean "to the end": exporters write the largest integer of some type.
_TO_THE_END = 2**31 - 1


def is_noop(node: ir.Node, graph: ModelGraph) -> bool:
    """Whether the first output of an op of the default domain is its first input, and nobody reads its others."""
    test = _NOOPS.get(node.op_type)
    return test is not None and node.inputs[0] is not None and test(node, graph)


def _reads_one(node: ir.Node) -> bool:
    """Whether nobody reads but the first output."""
    return not any(output.uses() or output.is_graph_output() for output in node.outputs[1:])


def _drops_nothing(node: ir.Node, graph: ModelGraph) -> bool:
    """Whether a Dropout runs as in inference, and nobody reads its mask."""
    view = view_of(node, graph, Pending())
    return _reads_one(node) and not isinstance(RULES["Dropout"].backward(view, 0, ChannelAffine.identity()), Refusal)


def _has_one_input(node: ir.Node, _graph: ModelGraph) -> bool:
    return len(node.inputs) == 1


def _keeps_type(node: ir.Node, graph: ModelGraph) -> bool:
    before, after = graph.shapes.dtype(input_of(node, 0)), graph.shapes.dtype(node.outputs[0])
    is_constant = graph.constants.array(node.outputs[0]) is not None  # which is written out as a whole
    return before is not None and before is after and not is_constant


def _keeps_shape(node: ir.Node, graph: ModelGraph) -> bool:
    before, after = graph.shapes.inferred(input_of(node, 0)), graph.shapes.inferred(node.outputs[0])
    return before is not None and before == after and all(isinstance(dim, int) for dim in before)


def _keeps_all(node: ir.Node, graph: ModelGraph) -> bool:
    """Whether a Slice goes from the first to the last along each of its axes."""
    names = ("", "starts", "ends", "axes", "")
    starts, ends, axes, steps = (integers(node, index, graph, names[index]) for index in (1, 2, 3, 4))
    if starts is None or ends is None or axes is None or steps is None:
        return False
    places = axes if axes.size else np.arange(ends.size)
    if not starts.size == ends.size == places.size or starts.any() or (steps != 1).any():
        return False
    shape = graph.shapes.inferred(input_of(node, 0))
    return all(end >= _TO_THE_END or _reaches(end, axis, shape) for end, axis in zip(ends, places, strict=True))


def _reaches(end: int, axis: int, shape: tuple[int | str | None, ...] | None) -> bool:
    length = shape[axis] if shape is not None and -len(shape) <= axis < len(shape) else None
    return isinstance(length, int) and end >= length


def _pads_nothing(node: ir.Node, graph: ModelGraph) -> bool:
    """Whether all that a Pad adds and takes away is 0 long."""
    pads = integers(node, 1, graph, "paddings" if graph.opset < 2 else "pads")
    return pads is not None and pads.size > 0 and not pads.any()


def _repeats_once(node: ir.Node, graph: ModelGraph) -> bool:
    """Whether a Tile repeats each axis once; before operator set 6, it had one axis and other inputs."""
    repeats = integers(node, 1, graph) if graph.opset >= 6 else None
    return repeats is not None and repeats.size > 0 and bool((repeats == 1).all())


def _keeps_order(node: ir.Node, _graph: ModelGraph) -> bool:
    """Whether a Transpose leaves each axis where it is."""
    perm = node.attributes.get_ints("perm", ())
    return len(perm) > 0 and list(perm) == list(range(len(perm)))


def _takes_each_by_itself(node: ir.Node, _graph: ModelGraph) -> bool:
    """Whether a pooling looks at windows of one element, and at each."""
    attributes = node.attributes
    size, strides, pads = (attributes.get_ints(name, ()) for name in ("kernel_shape", "strides", "pads"))
    return len(size) > 0 and {*size, *strides} == {1} and not any(pads) and _reads_one(node)


_NOOPS: Mapping[str, Callable[[ir.Node, ModelGraph], bool]] = {
    "Identity": _has_one_input,
    "Dropout": _drops_nothing,
    "Cast": _keeps_type,
    "CastLike": _keeps_type,
    "Slice": _keeps_all,
    "Expand": _keeps_shape,
    "Pad": _pads_nothing,
    "Tile": _repeats_once,
    "Transpose": _keeps_order,
    "AveragePool": _takes_each_by_itself,
    "MaxPool": _takes_each_by_itself,
    "Concat": _has_one_input,
    "Sum": _has_one_input,
    "Max": _has_one_input,
    "Min": _has_one_input,
    "Mean": _has_one_input,
}
