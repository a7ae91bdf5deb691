"""What ONNX itself says of an operator: the version that holds, and which attributes only repeat what holds anyway."""

from __future__ import annotations

from typing import Any

import onnx
import onnx_ir as ir

from bnfold.graph import in_default_domain

#: Lists that say nothing where all their numbers are this one.
_NEUTRAL = {"dilations": 1, "output_padding": 0, "pads": 0, "strides": 1}

#: Operators whose weight tells the kernel's shape.
_CONVOLUTIONS = frozenset({"Conv", "ConvTranspose", "DeformConv"})


def schema_of(node: ir.Node, opset: int) -> Any | None:
    """The definition of a node's operator in a version of the default operator set; None for other domains."""
    if not in_default_domain(node):
        return None
    try:
        return onnx.defs.get_schema(node.op_type, opset, "")
    except onnx.defs.SchemaError:
        return None


def implied_attributes(node: ir.Node, schema: Any | None) -> frozenset[str]:
    """The names of those attributes of a node that could as well be left out."""
    if schema is None:
        return frozenset()
    return frozenset(name for name, attribute in node.attributes.items() if _implied(node, schema, name, attribute))


def _implied(node: ir.Node, schema: Any, name: str, attribute: ir.Attr) -> bool:
    if attribute.is_ref() or name not in schema.attributes:
        return False
    if name in _NEUTRAL and attribute.type == ir.AttributeType.INTS:
        return all(number == _NEUTRAL[name] for number in attribute.as_ints())
    if name == "kernel_shape" and node.op_type in _CONVOLUTIONS:
        return True
    default = schema.attributes[name].default_value
    return bool(default.name) and ir.from_proto(default).value == attribute.value
