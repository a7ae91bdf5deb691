"""The ops that stand for an affine in a graph: Add, Mul or BatchNormalization, made new or rewritten."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bnfold.affine import ChannelAffine, Float64Array
from bnfold.fold.linear import unit_roundoff
from bnfold.fold.sites import is_batch_norm
from bnfold.graph import ModelGraph, NewOp, input_of, label

#: Of batch norms that bnfold makes itself.
_EPSILON = 1e-5


def single_op(affine: ChannelAffine, like: ir.Value, graph: ModelGraph) -> NewOp | None:
    """The one op that computes ``affine`` on a tensor like ``like``; None where one op cannot.

    An Add for a shift, a Mul for a scale, a batch norm for both: ONNX Runtime runs that in one pass.
    """
    dtype, rank = graph.shapes.dtype(like), graph.shapes.rank(like)
    if dtype is None or not is_single_op(affine, like, graph):
        return None
    if not (affine.has_scale and affine.has_shift):
        op_type = "Mul" if affine.has_scale else "Add"
        vector = affine.scale if affine.has_scale else affine.shift
        constant = _broadcastable(vector, affine.axis, rank).astype(dtype.numpy())
        return NewOp(op_type, (graph.add_constant(constant, f"{like.name}_{op_type.lower()}"),))
    channels = _channels(like, graph)
    assert channels is not None
    constants = tuple(
        graph.add_constant(array.astype(dtype.numpy()), f"{like.name}_batchnorm_{name}")
        for name, array in _batch_norm_parameters(affine.spread(1, channels), _EPSILON).items()
    )
    return NewOp("BatchNormalization", constants, {"epsilon": _EPSILON})


def is_single_op(affine: ChannelAffine, like: ir.Value, graph: ModelGraph) -> bool:
    """Whether one op can compute ``affine`` on a tensor like ``like``: the one that :func:`single_op` makes."""
    dtype, rank = graph.shapes.dtype(like), graph.shapes.rank(like)
    if dtype is None or (rank is None and affine.axis is not None) or not storable(affine, dtype):
        return False
    if not (affine.has_scale and affine.has_shift):
        return True
    if dtype is ir.DataType.BFLOAT16 and graph.opset < 14:  # the operator takes it from there on
        return False
    return affine.axis in (1, None) and _channels(like, graph) is not None


def _channels(value: ir.Value, graph: ModelGraph) -> int | None:
    """The length of axis 1, if there is one and it is known."""
    shape = graph.shapes.shape(value)
    return shape[1] if shape is not None and len(shape) > 1 and isinstance(shape[1], int) else None


def expressible(node: ir.Node, affine: ChannelAffine, graph: ModelGraph) -> bool:
    """Whether a binary op or batch norm can hold ``affine`` in place of its own, in its own dtype."""
    dtype, rank = graph.shapes.dtype(node.outputs[0]), graph.shapes.rank(node.outputs[0])
    if dtype is None or (rank is None and affine.axis is not None) or not storable(affine, dtype):
        return False
    if is_batch_norm(node):
        stored = _batch_norm_parameters(affine, _epsilon(node))["scale"]
        return affine.axis in (1, None) and storable(ChannelAffine.along(affine.axis, stored, 0.0), dtype)
    held = _constant_of(node, affine, graph)
    if held is None or node.op_type != "Div":
        return held is not None
    return storable(ChannelAffine.along(affine.axis, held[1], 0.0), dtype)


def _constant_of(node: ir.Node, affine: ChannelAffine, graph: ModelGraph) -> tuple[int, Float64Array] | None:
    """The index and the vector of the constant with which a binary op computes ``affine``, if it can."""
    first = graph.constants.array(input_of(node, 0)) is not None
    match node.op_type:
        case "Add" if not affine.has_scale:
            return (0 if first else 1), affine.shift
        case "Sub" if not first and not affine.has_scale:
            return 1, -affine.shift
        case "Sub" if first and np.all(affine.scale == -1.0):
            return 0, affine.shift
        case "Mul" if not affine.has_shift:
            return (0 if first else 1), affine.scale
        case "Div" if not first and not affine.has_shift and np.all(affine.scale != 0.0):
            return 1, 1.0 / affine.scale
    return None


def storable(affine: ChannelAffine, dtype: ir.DataType) -> bool:
    """Whether scale and shift can be rounded to ``dtype`` without overflow, and no scale underflows.

    A shift may underflow: what is added to it is a number of the same dtype, and resolves no finer.
    """
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        scale, shift = (v.astype(dtype.numpy()).astype(np.float64) for v in (affine.scale, affine.shift))
    if not (np.all(np.isfinite(scale)) and np.all(np.isfinite(shift))):
        return False
    error = np.abs(scale - affine.scale)
    return bool(np.all(error <= 2 * unit_roundoff(np.dtype(dtype.numpy())) * np.abs(affine.scale)))


def rewrite(node: ir.Node, affine: ChannelAffine, graph: ModelGraph) -> None:
    """Give a binary op or batch norm the constants that make it compute ``affine``, which it is known to hold."""
    if is_batch_norm(node):
        channels = graph.constants.array(input_of(node, 1))
        assert channels is not None
        parameters = _batch_norm_parameters(affine.spread(1, channels.size), _epsilon(node))
        dtype = graph.shapes.dtype(node.outputs[0])
        assert dtype is not None
        for index, array in enumerate(parameters.values(), start=1):
            # A batch norm of wide data may have narrow parameters, which would not hold the new ones.
            _store(node, index, array, graph, at_least=np.dtype(dtype.numpy()))
        return
    held = _constant_of(node, affine, graph)
    assert held is not None
    index, vector = held
    _store(node, index, _broadcastable(vector, affine.axis, graph.shapes.rank(node.outputs[0])), graph)


def _store(
    node: ir.Node, index: int, array: NDArray[Any], graph: ModelGraph, at_least: np.dtype[Any] | None = None
) -> None:
    """Replace one constant of a node by another of the same dtype, or of a wider one."""
    old = input_of(node, index)
    before = graph.constants.array(old)
    assert before is not None
    wider = at_least is not None and at_least.itemsize > before.dtype.itemsize
    dtype = at_least if wider else before.dtype
    graph.set_constant(node, index, array.astype(dtype), old.name or label(node))


def _epsilon(node: ir.Node) -> float:
    return node.attributes.get_float("epsilon", _EPSILON)


def _batch_norm_parameters(affine: ChannelAffine, epsilon: float) -> dict[str, Float64Array]:
    """The inputs of the batch norm that computes ``affine``, in their order.

    The mean is 0 and the variance 1, and what ε adds to it is taken into the scale, in float64.
    """
    return {
        "scale": affine.scale * np.sqrt(1.0 + float(np.float32(epsilon))),
        "bias": affine.shift,
        "mean": np.zeros(affine.size),
        "var": np.ones(affine.size),
    }


def _broadcastable(vector: Float64Array, axis: int | None, rank: int | None) -> Float64Array:
    """The vector in the shape that broadcasts along ``axis`` of a tensor of ``rank`` dimensions."""
    if axis is None or rank is None:
        return vector.reshape(())
    return vector.reshape(-1, *([1] * (rank - axis - 1)))
