"""The ops that stand for an affine in a graph: Add, Mul or BatchNormalization, made new or rewritten."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bnfold.affine import ChannelAffine, Float64Array
from bnfold.fold.sites import is_batch_norm
from bnfold.graph import ModelGraph, NewOp, label

#: Of batch norms that bnfold makes itself.
_EPSILON = 1e-5


def single_op(affine: ChannelAffine, like: ir.Value, graph: ModelGraph) -> NewOp | None:
    """The one op that computes ``affine`` on a tensor like ``like``; None where one op cannot.

    An Add for a shift, a Mul for a scale, a batch norm for both: ONNX Runtime runs that in one pass.
    """
    dtype, rank = graph.shapes.dtype(like), graph.shapes.rank(like)
    if dtype is None or (rank is None and affine.axis is not None):
        return None
    if not (affine.has_scale and affine.has_shift):
        op_type = "Mul" if affine.has_scale else "Add"
        constant = rounded(_broadcastable(affine.scale if affine.has_scale else affine.shift, affine.axis, rank), dtype)
        if constant is None:
            return None
        return NewOp(op_type, (graph.add_constant(constant, f"{like.name}_{op_type.lower()}"),))
    shape = graph.shapes.shape(like)
    if shape is None or len(shape) < 2 or not isinstance(shape[1], int) or affine.axis not in (1, None):
        return None
    arrays = [rounded(array, dtype) for array in _batch_norm_parameters(affine.spread(1, shape[1]), _EPSILON)]
    constants = [
        graph.add_constant(array, f"{like.name}_batchnorm_{name}")
        for name, array in zip(("scale", "bias", "mean", "var"), arrays, strict=True)
        if array is not None
    ]
    return NewOp("BatchNormalization", tuple(constants), {"epsilon": _EPSILON}) if len(constants) == 4 else None


def expressible(op_type: str, affine: ChannelAffine) -> bool:
    """Whether one op of this type can hold ``affine``, so that it can absorb another without adding an op."""
    match op_type:
        case "Add":
            return not affine.has_scale
        case "Mul":
            return not affine.has_shift
        case "BatchNormalization":
            return affine.axis in (1, None)
        case _:
            return False


def rewrite(node: ir.Node, affine: ChannelAffine, graph: ModelGraph) -> None:
    """Give an Add, Mul or batch norm the constants that make it compute ``affine``."""
    dtype = graph.shapes.dtype(node.outputs[0])
    assert dtype is not None
    if is_batch_norm(node):
        channels = graph.constants.array(_input(node, 1))
        assert channels is not None
        epsilon = node.attributes.get_float("epsilon", 1e-5)
        for index, array in enumerate(_batch_norm_parameters(affine.spread(1, channels.size), epsilon), start=1):
            old = _input(node, index)
            stored = array.astype((graph.shapes.dtype(old) or dtype).numpy())
            graph.set_constant(node, index, stored, old.name or label(node))
        return
    index = 0 if graph.constants.array(_input(node, 0)) is not None else 1
    vector = affine.scale if node.op_type == "Mul" else affine.shift
    constant = _broadcastable(vector, affine.axis, graph.shapes.rank(node.outputs[0]))
    graph.set_constant(node, index, constant.astype(dtype.numpy()), _input(node, index).name or label(node))


def rounded(array: Float64Array, dtype: ir.DataType) -> NDArray[np.generic] | None:
    """The array in ``dtype``, or None where that overflows."""
    with np.errstate(over="ignore"):
        stored = array.astype(dtype.numpy())
    return stored if np.all(np.isfinite(stored.astype(np.float64))) else None


def _batch_norm_parameters(affine: ChannelAffine, epsilon: float) -> tuple[Float64Array, ...]:
    """Scale, bias, mean and variance of the batch norm that computes ``affine``.

    The mean is 0 and the variance 1, and what ε adds to it is taken into the scale, in float64.
    """
    scale = affine.scale * np.sqrt(1.0 + float(np.float32(epsilon)))
    return scale, affine.shift, np.zeros(affine.size), np.ones(affine.size)


def _broadcastable(vector: Float64Array, axis: int | None, rank: int | None) -> Float64Array:
    """The vector in the shape that broadcasts along ``axis`` of a tensor of ``rank`` dimensions."""
    if axis is None or rank is None:
        return vector.reshape(())
    return vector.reshape(-1, *([1] * (rank - axis - 1)))


def _input(node: ir.Node, index: int) -> ir.Value:
    value = node.inputs[index]
    assert value is not None
    return value
