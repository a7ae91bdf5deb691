"""What a model of operator set 9 to 13 is in 14, as far as shape inference is concerned.

From 14 on, a Reshape heeds what the inference knows of a shape that is computed: that its first size is that of the
input and its last is -1, say. Before 13, nothing of a Slice or Concat is known. Most exports with an open batch compute
such shapes, and nothing would be known behind their first Reshape.
"""

from __future__ import annotations

from collections.abc import Iterator, MutableSequence
from uuid import uuid4

import numpy as np
import onnx

from bnfold.protos import DEFAULT_DOMAINS, bodies_of, nodes_of

#: The attributes on which a shape depends and that became inputs until 14, and where.
_INPUTS = {
    "Pad": {"pads": 1},
    "ReduceSum": {"axes": 1},
    "Slice": {"starts": 1, "ends": 2, "axes": 3},
    "Split": {"split": 1},
    "Squeeze": {"axes": 1},
    "TopK": {"k": 1},
    "Unsqueeze": {"axes": 1},
}

_OLDEST, _TARGET = 9, 14


def as_of_14(model: onnx.ModelProto) -> onnx.ModelProto | None:
    """A copy of which the inference finds the same and more; None where the operator set is an older or newer one.

    It is not a model to run: numbers on which no shape depends, such as a Clip's bounds, are left where they were.

    Raises:
        ValueError: an attribute is not of the type that the specification gives it.
    """
    versions = [entry.version for entry in model.opset_import if entry.domain in DEFAULT_DOMAINS]
    if len(versions) != 1 or not _OLDEST <= versions[0] < _TARGET:
        return None
    if versions[0] < 10 and any(node.op_type == "Dropout" and len(node.output) > 1 for node in nodes_of(model)):
        return None  # the mask has the type of the data there, and is of truth values later
    later = onnx.ModelProto()
    later.CopyFrom(model)
    for holder in (later, *later.functions):
        for entry in holder.opset_import:
            if entry.domain in DEFAULT_DOMAINS:
                entry.version = _TARGET
    _renew(later.graph.node, versions[0])
    for function in later.functions:
        _renew(function.node, versions[0])
    return later


def _renew(nodes: MutableSequence[onnx.NodeProto], version: int) -> None:
    """Give each node of a graph, and of the graphs in its attributes, its form of 14."""
    renewed = [new for node in list(nodes) for new in _renewed(node, version)]
    del nodes[:]
    nodes.extend(renewed)


def _renewed(node: onnx.NodeProto, version: int) -> Iterator[onnx.NodeProto]:
    """A node, after the constants that its attributes became."""
    for graph in bodies_of(node):
        _renew(graph.node, version)
    if node.domain not in DEFAULT_DOMAINS:
        yield node
        return
    if node.op_type in ("Upsample", "Resize") and version < 11 and len(node.input) == 2:
        node.op_type = "Resize"
        node.input.insert(1, "")  # the region of interest
    places = _INPUTS.get(node.op_type, {})
    for attribute in [attribute for attribute in node.attribute if attribute.name in places]:
        place, name = places[attribute.name], uuid4().hex  # which no value of the model has
        numbers = np.atleast_1d(np.array(onnx.helper.get_attribute_value(attribute), np.int64))
        node.input.extend([""] * (place + 1 - len(node.input)))
        node.input[place] = name
        node.attribute.remove(attribute)
        yield onnx.helper.make_node("Constant", [], [name], value=onnx.numpy_helper.from_array(numbers))
    yield node
