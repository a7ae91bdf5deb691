"""Rewrite a model so that every floating-point value in it is float64.

float16, bfloat16 and float32 become float64 wherever a type is written: weights, constants, casts, graph inputs and
outputs. Integers, booleans, float8 and float4 stay: their coarse steps are part of the function, not rounding error.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import onnx_ir as ir


class NotInFloat64Error(Exception):
    """A model, an operator, or one setting of it, that cannot be evaluated in float64; the message says why."""


NARROW_FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16})

#: Constants of so many elements are widened when they are read, and let go again: all of them take twice to four times
#: the memory that the file does.
LARGE = 1 << 18

#: Integer attributes that name a data type. ``stash_type`` is left alone: it tells how to accumulate, and
#: the reference implementations accumulate in the data's own type.
_TYPE_ATTRIBUTES: Mapping[str, str] = {
    "Bernoulli": "dtype",
    "BlackmanWindow": "output_datatype",
    "Cast": "to",
    "DequantizeLinear": "output_dtype",
    "EyeLike": "dtype",
    "HammingWindow": "output_datatype",
    "HannWindow": "output_datatype",
    "MelWeightMatrix": "output_datatype",
    "SequenceEmpty": "dtype",
}

#: Of these, the ones that mean float32 where a node leaves the attribute out.
_FLOAT_BY_DEFAULT = frozenset({"BlackmanWindow", "HammingWindow", "HannWindow", "MelWeightMatrix"})


def widen(model: ir.Model) -> None:
    """Make ``model`` compute in float64, in place; it must hold no calls of local functions."""
    for graph in (model.graph, *model.graph.subgraphs()):
        for value in (*graph.inputs, *graph.outputs):
            _widen_value(value)
        for value in graph.initializers.values():
            _widen_value(value)
            if value.const_value is not None:
                value.const_value = _widen_tensor(value.const_value)
        for node in graph:
            _widen_node(node)


def _widen_value(value: ir.Value) -> None:
    if value.type is not None:
        value.type = _widen_type(value.type)


def _widen_type(declared: ir.TypeProtocol) -> ir.TypeProtocol:
    """The type with float64 in it: a new one, since a copied model shares its types with the original."""
    if declared.dtype not in NARROW_FLOATS:
        return declared
    if isinstance(declared, (ir.SequenceType, ir.OptionalType)):
        return type(declared)(_widen_type(declared.elem_type))
    if isinstance(declared, ir.SparseTensorType):
        return ir.SparseTensorType(ir.DataType.DOUBLE)
    return ir.TensorType(ir.DataType.DOUBLE)


def _widen_tensor(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    if tensor.dtype not in NARROW_FLOATS:
        return tensor

    def wide() -> ir.TensorProtocol:
        return ir.tensor(tensor.numpy().astype(np.float64), name=tensor.name)

    if tensor.size < LARGE:
        return wide()
    shape = ir.Shape(tensor.numpy().shape)
    return ir.LazyTensor(wide, dtype=ir.DataType.DOUBLE, shape=shape, name=tensor.name)


def _widen_node(node: ir.Node) -> None:
    for value in node.outputs:
        _widen_value(value)
    for attribute in list(node.attributes.values()):
        if isinstance(attribute, ir.Attr) and not attribute.is_ref():
            widened = _widen_attribute(node, attribute)
            if widened is not attribute:
                del node.attributes[attribute.name]
                node.attributes[widened.name] = widened
    if node.op_type in _FLOAT_BY_DEFAULT and "output_datatype" not in node.attributes:
        node.attributes["output_datatype"] = ir.AttrInt64("output_datatype", int(ir.DataType.DOUBLE))
    if node.op_type == "ConstantOfShape" and "value" not in node.attributes:
        zero = ir.tensor(np.zeros(1, dtype=np.float64))  # the default is a float32 zero
        node.attributes["value"] = ir.AttrTensor("value", zero)


def _widen_attribute(node: ir.Node, attribute: ir.Attr) -> ir.Attr:
    if attribute.type == ir.AttributeType.TENSOR:
        return ir.AttrTensor(attribute.name, _widen_tensor(attribute.as_tensor()))
    if node.op_type == "Constant" and attribute.name == "value_float":
        return _constant(np.float64(attribute.as_float()))
    if node.op_type == "Constant" and attribute.name == "value_floats":
        return _constant(attribute.as_floats())
    if _TYPE_ATTRIBUTES.get(node.op_type) == attribute.name and ir.DataType(attribute.as_int()) in NARROW_FLOATS:
        return ir.AttrInt64(attribute.name, int(ir.DataType.DOUBLE))
    return attribute


def _constant(values: Iterable[float] | float) -> ir.Attr:
    return ir.AttrTensor("value", ir.tensor(np.asarray(values, dtype=np.float64)))
