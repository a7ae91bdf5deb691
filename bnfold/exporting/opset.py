"""Bring a model down to the opset that was asked for, or say which node does not exist there.

torch's exporter starts at opset 18; its own converter fails on most models below, at times without saying so.
A node can go to a lower opset ``t`` when

1. its operator has not changed between ``t`` and the model's opset; or
2. it has an adapter here, which rewrites it; or
3. the operator of ``t`` has the same inputs and outputs, and knows every attribute that is not at its
default.

The third rule reads the operators' signatures and cannot see a change of meaning, and so relies on what comes
after it: the specification's checker, and the comparison of the file with the network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import onnx
import onnx_ir as ir

from bnfold.errors import ModelError
from bnfold.model_check import check_model


def set_opset(model: ir.Model, opset: int) -> None:
    """Make ``opset`` the model's default operator set, in place, with the oldest IR version that allows it.

    Raises:
        ModelError: the opset is unknown to the installed onnx, or a node cannot be expressed in it.
    """
    if opset > onnx.defs.onnx_opset_version():
        raise ModelError(
            f"opset {opset} is newer than the installed onnx knows, which ends at "
            f"{onnx.defs.onnx_opset_version()}; ask for that or install a newer onnx"
        )
    current = model.opset_imports[""]
    if current < opset:
        raise ModelError(f"torch's exporter wrote opset {current} where {opset} was asked for; ask for {current}")
    if current > opset:
        for node in list(model.graph.all_nodes()):
            if node.domain == "":
                _lower(node, current, opset)
        model.opset_imports[""] = opset
        model.graph.opset_imports[""] = opset
    # Initializers need not be inputs from IR version 4 on.
    model.ir_version = max(4, onnx.helper.find_min_ir_version_for([onnx.helper.make_opsetid("", opset)]))
    check_model(ir.to_proto(model), "the export")


def _lower(node: ir.Node, current: int, opset: int) -> None:
    """Rewrite ``node`` for ``opset``."""
    old = _schema(node.op_type, opset)
    new = _schema(node.op_type, current)
    if new is None or (old is not None and old.since_version == new.since_version):
        return
    if old is None:
        raise _not_in(node, opset, f"there is no {node.op_type} in it")
    adapter = _ADAPTERS.get(node.op_type)
    if adapter is not None:
        adapter(node, old)
    _drop_defaults(node, old, new)
    unknown = sorted(set(node.attributes) - set(old.attributes))
    if unknown:
        raise _not_in(node, opset, f"its {unknown[0]} is not known there")
    if not old.min_input <= len(node.inputs) <= old.max_input or len(node.outputs) > old.max_output:
        raise _not_in(node, opset, "its inputs are others there")


def _schema(op_type: str, opset: int) -> onnx.defs.OpSchema | None:
    try:
        return onnx.defs.get_schema(op_type, opset, "")
    except onnx.defs.SchemaError:
        return None


def _not_in(node: ir.Node, opset: int, why: str) -> ModelError:
    return ModelError(
        f"the export cannot be brought to opset {opset}: {node.name} is a {node.op_type}, and {why}; "
        "ask for a higher opset"
    )


def _drop_defaults(node: ir.Node, old: onnx.defs.OpSchema, new: onnx.defs.OpSchema) -> None:
    """Remove attributes that say what was the only choice in the older operator."""
    for name in [name for name in node.attributes if name not in old.attributes and name in new.attributes]:
        default = new.attributes[name].default_value
        if not default.HasField("type"):
            continue
        value = onnx.helper.get_attribute_value(default)
        if node.attributes[name].value == (value.decode() if isinstance(value, bytes) else value):
            node.attributes.pop(name)


def _axes_to_attribute(node: ir.Node, old: onnx.defs.OpSchema) -> None:
    """ReduceMean and its kind, Squeeze, Unsqueeze: axes were an attribute before they were an input."""
    if "axes" not in old.attributes or len(node.inputs) < 2:
        return
    axes = node.inputs[1]
    node.resize_inputs(1)
    if axes is None:
        return
    constant = ir.convenience.get_const_tensor(axes)
    if constant is None:
        raise ModelError(
            f"the export cannot be brought to a lower opset: the axes of {node.name} are computed; "
            "ask for a higher opset, or for a clean export"
        )
    node.attributes["axes"] = ir.AttrInt64s("axes", [int(axis) for axis in constant.numpy().reshape(-1)])
    _discard_if_unused(axes)


def _discard_if_unused(value: ir.Value) -> None:
    graph = value.graph
    if graph is not None and value.is_initializer() and not value.uses():
        graph.initializers.pop(str(value.name))


_REDUCTIONS = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")

_ADAPTERS: Mapping[str, Callable[[ir.Node, onnx.defs.OpSchema], None]] = {
    **{f"Reduce{name}": _axes_to_attribute for name in _REDUCTIONS},
    "Squeeze": _axes_to_attribute,
    "Unsqueeze": _axes_to_attribute,
}
