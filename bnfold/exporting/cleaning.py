"""Turn what torch's exporter writes into a graph that is fit to be read, by people and by optimizers.

1. Constant sub-graphs become initializers (``Expand(CastLike(0, x), Shape(w))`` for an absent bias, and the
   like). Batch norm is not folded.
2. The zeros that stand for the bias of a convolution without one go.
3. A Reshape to a computed shape of which one size is open, as ``flatten(1)`` becomes, takes a constant
shape with
   −1 there: the number of elements decides that size either way.
4. Nodes and initializers that nothing uses go.
5. A node is called after its module, ``/stages/0/bn1/BatchNormalization``, and so is its output; a module's
weights
   keep the names of its state dict.
6. Notes that torch leaves at each node, file paths of this machine among them, go.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

import numpy as np
import onnx_ir as ir
from onnxscript import optimizer

_TORCH_NOTES = "pkg.torch."
_SCOPES = "pkg.torch.onnx.name_scopes"


def clean_model(model: ir.Model) -> None:
    """Clean ``model`` in place, as this module's docstring says. Its inputs and outputs keep their names."""
    weights = frozenset(model.graph.initializers)
    optimizer.fold_constants(model)
    _drop_zero_biases(model, weights)
    _fix_reshapes(model)
    optimizer.remove_unused_nodes(model)
    _name_after_modules(model)
    for node in model.graph.all_nodes():
        _forget(node.metadata_props)
        for value in node.outputs:
            _forget(value.metadata_props)
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        _forget(value.metadata_props)
    _forget(model.metadata_props)
    _forget(model.graph.metadata_props)


def _drop_zero_biases(model: ir.Model, weights: frozenset[str]) -> None:
    """Leave out a bias that is zero and is none of the network's own ``weights``."""
    for node in model.graph.all_nodes():
        if node.op_type not in ("Conv", "ConvTranspose") or len(node.inputs) < 3:
            continue
        bias = node.inputs[2]
        if bias is None or bias.name in weights:
            continue
        constant = ir.convenience.get_const_tensor(bias)
        if constant is not None and not constant.numpy().any():
            node.resize_inputs(2)


def _fix_reshapes(model: ir.Model) -> None:
    """Give each Reshape whose result has one open size, and none that is 0, a constant shape."""
    for node in model.graph:
        shape = node.outputs[0].shape if node.op_type == "Reshape" and node.domain == "" else None
        target = node.inputs[1] if shape is not None else None
        if shape is None or target is None or target.const_value is not None:
            continue
        sizes = [size if isinstance(size, int) else -1 for size in shape]
        if sizes.count(-1) > 1 or 0 in sizes:
            continue
        name = _fresh(f"{node.outputs[0].name}_shape", set(model.graph.initializers))
        constant = ir.Value(
            name=name,
            shape=ir.Shape([len(sizes)]),
            type=ir.TensorType(ir.DataType.INT64),
            const_value=ir.tensor(np.array(sizes, dtype=np.int64), name=name),
        )
        model.graph.register_initializer(constant)
        node.replace_input_with(1, constant)
        node.attributes.pop("allowzero", None)  # no size is 0


def _forget(notes: dict[str, str]) -> None:
    for key in [key for key in notes if key.startswith(_TORCH_NOTES)]:
        del notes[key]


def _name_after_modules(model: ir.Model) -> None:
    taken: set[str] = {str(value.name) for value in (*model.graph.inputs, *model.graph.outputs)}
    taken.update(model.graph.initializers)
    keep = set(map(id, model.graph.outputs))
    for node in model.graph:
        name = _fresh("/".join(("", *_scope(node), node.op_type)), taken)
        node.name = name
        for index, value in enumerate(node.outputs):
            if id(value) not in keep:
                value.name = _fresh(f"{name}_output_{index}", taken)


def _scope(node: ir.Node) -> Iterator[str]:
    """The path of the module that a node comes from: the last scope but one of those that torch notes."""
    try:
        scopes = ast.literal_eval(node.metadata_props.get(_SCOPES, "[]"))
    except (ValueError, SyntaxError):
        return
    if len(scopes) > 1 and not str(scopes[-2]).startswith("_empty_nn_module"):  # torch's word for "none"
        yield from (part for part in str(scopes[-2]).split(".") if part)


def _fresh(name: str, taken: set[str]) -> str:
    """``name``, with a number where it is taken; taken from now on."""
    number, candidate = 1, name
    while candidate in taken:
        candidate = f"{name}_{number}"
        number += 1
    taken.add(candidate)
    return candidate
