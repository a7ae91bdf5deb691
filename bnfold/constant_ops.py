"""The ops of which exported constants are made, computed with numpy.

ONNX's reference implementation computes every op, and takes a fifth of a second to import and half a millisecond a
node. Exporters make constants of a dozen ops, and whole networks of them; these are done here. What this table does
not take (another op, another type, an old operator set) is None, and left to the reference.

Source: the ONNX operator specification; ``tests/test_constant_ops.py`` holds each entry against the reference.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

Array = NDArray[Any]

#: From the inputs of a node and its attributes to its output.
_Evaluate = Callable[[Sequence[Array], Mapping[str, Any]], Array | None]

#: Since this operator set, elementwise ops broadcast as numpy does.
_BROADCASTING = 7

_PLAIN = frozenset({np.dtype(t) for t in (np.float16, np.float32, np.float64, np.int32, np.int64)})


def evaluate(op_type: str, inputs: Sequence[Array], attributes: Mapping[str, Any], opset: int) -> Array | None:
    """The output of an op of the default domain, or None where this table does not take it, or it is malformed."""
    known = _TABLE.get(op_type)
    if known is None or opset < _BROADCASTING or any(array.dtype not in _PLAIN for array in inputs):
        return None
    try:
        with np.errstate(all="ignore"):
            result = known(inputs, attributes)
    except (ValueError, IndexError, TypeError, KeyError):
        return None
    return None if result is None else np.asarray(result)


def _binary(function: Callable[[Array, Array], Array], *, floats_only: bool = False) -> _Evaluate:
    def result(inputs: Sequence[Array], _attributes: Mapping[str, Any]) -> Array | None:
        left, right = inputs
        if left.dtype != right.dtype or (floats_only and left.dtype.kind != "f"):
            return None
        return function(left, right)

    return result


def _unary(function: Callable[[Array], Array]) -> _Evaluate:
    def result(inputs: Sequence[Array], _attributes: Mapping[str, Any]) -> Array | None:
        (array,) = inputs
        return function(array) if array.dtype.kind == "f" else None

    return result


def _cast(inputs: Sequence[Array], attributes: Mapping[str, Any]) -> Array | None:
    """To a wider or narrower float; from floats to integers, runtimes differ."""
    dtype = ir.DataType(attributes["to"]).numpy()
    return inputs[0].astype(dtype) if dtype in _PLAIN and dtype.kind == "f" else None


def _reshape(inputs: Sequence[Array], attributes: Mapping[str, Any]) -> Array:
    array, wanted = inputs
    copied = not attributes.get("allowzero", 0)
    return array.reshape([array.shape[i] if n == 0 and copied else n for i, n in enumerate(wanted.tolist())])


def _axes(inputs: Sequence[Array], attributes: Mapping[str, Any]) -> tuple[int, ...] | None:
    """An attribute first, an input since operator set 13."""
    axes = attributes.get("axes", inputs[1].tolist() if len(inputs) > 1 else None)
    return None if axes is None else tuple(axes)


def _unsqueeze(inputs: Sequence[Array], attributes: Mapping[str, Any]) -> Array | None:
    axes = _axes(inputs, attributes)
    return None if axes is None else np.expand_dims(inputs[0], axes)


def _squeeze(inputs: Sequence[Array], attributes: Mapping[str, Any]) -> Array:
    return np.squeeze(inputs[0], _axes(inputs, attributes))


def _expand(inputs: Sequence[Array], _attributes: Mapping[str, Any]) -> Array:
    array, wanted = inputs
    return np.broadcast_to(array, np.broadcast_shapes(array.shape, tuple(wanted.tolist())))


def _constant_of_shape(inputs: Sequence[Array], attributes: Mapping[str, Any]) -> Array | None:
    value = attributes["value"].numpy() if "value" in attributes else np.zeros(1, np.float32)
    return np.full(inputs[0].tolist(), value.item(), value.dtype) if value.dtype in _PLAIN else None


_TABLE: Mapping[str, _Evaluate] = {
    "Add": _binary(np.add),
    "Cast": _cast,
    "Concat": lambda inputs, attributes: np.concatenate(inputs, attributes["axis"]),
    "ConstantOfShape": _constant_of_shape,
    "Div": _binary(np.divide, floats_only=True),
    "Expand": _expand,
    "Identity": lambda inputs, _attributes: inputs[0],
    "Mul": _binary(np.multiply),
    "Neg": _unary(np.negative),
    "Reciprocal": _unary(np.reciprocal),
    "Reshape": _reshape,
    "Sqrt": _unary(np.sqrt),
    "Squeeze": _squeeze,
    "Sub": _binary(np.subtract),
    "Transpose": lambda inputs, attributes: np.transpose(inputs[0], attributes.get("perm")),
    "Unsqueeze": _unsqueeze,
}
