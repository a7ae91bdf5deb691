"""A Pad with zeros, of the axes along which a Conv or an AveragePool slides, is those ops' own padding.

Keras writes ``ZeroPadding2D`` before a strided convolution, and PyTorch ``ZeroPad2d``, as an op of its own. Where all
that read it can pad by as much themselves, it goes: a Conv adds to its ``pads``, and so does an AveragePool, which from
then on counts them (``count_include_pad=1``). A MaxPool pads with something else than zeros.

Source: the ONNX operator specification of Pad, Conv and AveragePool.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bnfold.fold.sites import Selection
from bnfold.graph import ModelGraph, attributes_of, in_default_domain, input_of, integers, is_read_once

#: Of batch and channels, which none of the ops below slides along.
_LEADING = 2


def pad_in_place(node: ir.Node, graph: ModelGraph, selected: Selection) -> bool:
    """Let the readers of a Pad pad by themselves, if all can.

    Args:
        node: the Pad.
        graph: the model.
        selected: which nodes may be touched.

    Returns:
        Whether it went.
    """
    padded = node.outputs[0]
    added = _added(node, graph)
    if added is None or padded.is_graph_output() or not padded.uses():
        return False
    changes: dict[ir.Node, Mapping[str, Any]] = {}
    for reader, index in padded.uses():
        alone = index == 0 and reader.graph is node.graph and in_default_domain(reader) and selected(reader)
        change = _change(reader, added, graph) if alone else None
        if change is None:
            return False
        changes[reader] = change
    for reader, change in changes.items():
        graph.set_attributes(reader, change)
    graph.bypass([node], input_of(node, 0), padded, rename=False)
    return True


def exposes_pad(source: ir.Value, output: ir.Value, graph: ModelGraph) -> bool:
    """Whether without the ops between two values a Pad would stand alone before a pool that it cannot go into.

    ONNX Runtime (as of 1.31) takes a Pad with zeros into whatever pool alone reads it: a MaxPool then pads with less
    than any number, and a pool whose window may lie in the padding altogether is not loaded.
    """
    return (
        is_read_once(source) and is_read_once(output) and _is_pad_before_pool(source, *next(iter(output.uses())), graph)
    )


def would_be_exposed(node: ir.Node, graph: ModelGraph) -> bool:
    """Whether the same would come of removing a node because nobody reads it."""
    return any(_leaves_a_pool(value, node, graph) for value in node.inputs if value is not None)


def _leaves_a_pool(value: ir.Value, node: ir.Node, graph: ModelGraph) -> bool:
    others = [(user, index) for user, index in value.uses() if user is not node]
    return len(others) == 1 and not value.is_graph_output() and _is_pad_before_pool(value, *others[0], graph)


def _is_pad_before_pool(padded: ir.Value, reader: ir.Node, index: int, graph: ModelGraph) -> bool:
    """Whether ``padded`` comes from a Pad, and its reader is a pool that cannot pad by itself as much as that does."""
    pad = padded.producer()
    if pad is None or pad.op_type != "Pad" or not in_default_domain(pad) or index != 0:
        return False
    if reader.op_type not in ("MaxPool", "AveragePool") or not in_default_domain(reader):
        return False
    added = _added(pad, graph)
    return added is None or _change(reader, added, graph) is None


def _added(node: ir.Node, graph: ModelGraph) -> NDArray[np.int64] | None:
    """How many zeros a Pad adds before and after each axis that may be slid along; None where it does anything else."""
    if node.attributes.get_string("mode", "constant") != "constant" or _value(node, graph) != 0:
        return None
    pads, rank = integers(node, 1, graph, "pads"), graph.shapes.rank(input_of(node, 0))
    axes = integers(node, 3, graph)
    if pads is None or axes is None or rank is None or rank <= _LEADING:
        return None
    places = axes if axes.size else np.arange(rank)
    if pads.size != 2 * places.size or (pads < 0).any() or (places < -rank).any() or (places >= rank).any():
        return None
    added = np.zeros((2, rank), np.int64)
    added[:, places % rank] = pads.reshape(2, -1)
    return None if added[:, :_LEADING].any() else added[:, _LEADING:]


def _value(node: ir.Node, graph: ModelGraph) -> float | None:
    """What a Pad adds; None where that is computed at run time."""
    if graph.opset < 11:
        return node.attributes.get_float("value", 0.0)
    value = node.inputs[2] if len(node.inputs) > 2 else None
    if value is None:
        return 0.0
    array = graph.constants.array(value)
    return float(array.reshape(-1)[0]) if array is not None and array.size == 1 else None


def _change(reader: ir.Node, added: NDArray[np.int64], graph: ModelGraph) -> Mapping[str, Any] | None:
    """The attributes by which an op pads by so much more; None where it cannot."""
    attributes = attributes_of(reader)
    auto_pad = attributes.get("auto_pad", "NOTSET")
    if auto_pad not in ("NOTSET", "VALID"):
        return None
    told = attributes.get("pads") if auto_pad == "NOTSET" else None
    own = np.array(told or np.zeros(added.size), np.int64)
    if own.size != added.size or (own < 0).any():
        return None
    pads = own.reshape(added.shape) + added
    change = {"pads": pads.reshape(-1).tolist(), "auto_pad": None}
    if reader.op_type == "Conv":
        return change
    if reader.op_type != "AveragePool" or graph.opset < 7 or attributes.get("ceil_mode", 0):
        return None
    counted = attributes.get("count_include_pad", 0) or not own.any()
    sizes = np.array(attributes.get("kernel_shape", ()), np.int64)
    if not counted or sizes.size != pads.shape[1] or (pads >= sizes).any():  # a window must see something
        return None
    return change | {"count_include_pad": 1}
