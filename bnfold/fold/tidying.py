"""Ops that exporters leave behind and that others make needless, taken away before anything folds.

1. What gives what it reads (:mod:`bnfold.fold.noops`): an Identity, a Dropout as inference runs it, a Cast to the type
   that is there, a Slice of everything, a Pad by nothing, a pooling of windows of one element, a Concat of one value.
2. A list of pieces from which each is taken out again: SplitToSequence and SequenceAt are a Split.
3. Sizes for a Reshape of which one is computed while the model runs: it is -1, and what computed it goes.
4. A Reshape, Flatten, Squeeze or Unsqueeze before a Reshape that would do alone.
5. Such ops in a row of which the last gives back the shape that was there before.
6. A Transpose of a Transpose.
7. A Pad with zeros before ops that can pad themselves (:mod:`bnfold.fold.padding`).
8. What nobody reads, and is no affine: each of those has its record.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from bnfold.fold.noops import is_noop
from bnfold.fold.padding import exposes_pad, pad_in_place, would_be_exposed
from bnfold.fold.sites import Selection, Site, is_batch_norm, read_affine
from bnfold.graph import ModelGraph, has_body, in_default_domain, input_of, integers, is_dead, is_read_once
from bnfold.shapes import Dim

#: Ops that give the same elements in the same order another shape.
_RELAYOUTS = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")


def take_idle_ops_away(graph: ModelGraph, selected: Selection) -> bool:
    """Take such ops away, in place.

    Args:
        graph: the model.
        selected: which nodes may be touched.

    Returns:
        Whether anything went. More may then be known of the model's shapes.
    """
    changed = False
    for node in list(graph.nodes()):
        if node.graph is None or not in_default_domain(node) or not selected(node):
            continue
        source = input_of(node, 0) if is_noop(node, graph) else _origin(node, graph)
        if source is not None:
            changed |= not exposes_pad(source, node.outputs[0], graph) and _take_away(node, source, graph)
        elif node.op_type == "SplitToSequence":
            changed |= _split_at_once(node, graph, selected)
        elif node.op_type == "Transpose":
            changed |= _transpose_at_once(node, graph, selected)
        elif node.op_type == "Pad":
            changed |= pad_in_place(node, graph, selected)
        elif node.op_type == "Reshape":
            changed |= _fix_sizes(node, graph, selected)
            changed |= _reshape_at_once(node, graph, selected)
    return _drop_unread(graph, selected) or changed


# 1. No-ops


def _take_away(node: ir.Node, source: ir.Value, graph: ModelGraph) -> bool:
    """Let readers of an op read an equal value, unless the op is all that tells an output from another with a name."""
    output = node.outputs[0]
    is_output = output.is_graph_output()
    if is_output:
        own = source.producer() is not None and source.graph is output.graph
        if not own or source.is_graph_output():
            return False
    graph.bypass([node], source, output, rename=is_output)
    return True


# 2. Lists of pieces


def _split_at_once(node: ir.Node, graph: ModelGraph, selected: Selection) -> bool:
    """Write a SplitToSequence of constant sizes and the SequenceAt of constant positions that read it as a Split."""
    pieces, source = node.outputs[0], input_of(node, 0)
    sizes = _sizes(node, graph)
    if sizes is None or graph.opset < 13 or pieces.is_graph_output() or not node.attributes.get_int("keepdims", 1):
        return False
    places: dict[ir.Node, int] = {}
    for reader, index in pieces.uses():
        takes_one = reader.op_type == "SequenceAt" and in_default_domain(reader) and reader.graph is node.graph
        place = integers(reader, 1, graph) if takes_one else None
        if index != 0 or place is None or place.size != 1 or not selected(reader):
            return False
        if not -len(sizes) <= place[0] < len(sizes):
            return False
        places[reader] = int(place[0]) % len(sizes)
    named = [place for reader, place in places.items() if reader.outputs[0].is_graph_output()]
    if len(set(named)) < len(named):
        return False  # one piece under two names
    axis = node.attributes.get_int("axis", 0)
    likes = {f"{pieces.name}_{number}": _like(number, places) for number in range(len(sizes))}
    inputs = [source, graph.add_constant(np.array(sizes, np.int64), f"{pieces.name}_sizes")]
    parts = graph.add_before(node, "Split", inputs, {"axis": axis}, likes)
    for reader, position in places.items():
        part, output = parts[position], reader.outputs[0]
        graph.bypass([reader], part, output, rename=output.is_graph_output())
    graph.remove([node])
    return True


def _like(place: int, places: Mapping[ir.Node, int]) -> ir.Value | None:
    return next((reader.outputs[0] for reader, own in places.items() if own == place), None)


def _sizes(node: ir.Node, graph: ModelGraph) -> list[int] | None:
    """The sizes of the pieces, if they are known; one number stands for all, of which the last may be smaller."""
    value = node.inputs[1] if len(node.inputs) > 1 else None
    array = None if value is None else graph.constants.array(value)
    if array is None or not array.size or array.dtype.kind not in "iu" or array.ndim > 1:
        return None
    if array.ndim:
        return [int(size) for size in array]
    shape, size, axis = graph.shapes.inferred(input_of(node, 0)) or (), int(array), node.attributes.get_int("axis", 0)
    length = shape[axis] if -len(shape) <= axis < len(shape) else None
    if not isinstance(length, int) or size < 1:
        return None
    return [min(size, length - start) for start in range(0, length, size)] or None


# 3. and 4. Reshapes


def _fix_sizes(node: ir.Node, graph: ModelGraph, selected: Selection) -> bool:
    """Where all sizes but one are known, the last one follows from the number of elements.

    It does, because none of the others is 0 or -1: whatever the one is while the model runs, a size, 0 or -1, the
    result has this shape or the Reshape fails.
    """
    sizes = input_of(node, 1) if len(node.inputs) > 1 and node.inputs[1] is not None else None
    producer = sizes.producer() if sizes is not None else None
    if sizes is None or producer is None or producer.op_type != "Concat" or not in_default_domain(producer):
        return False
    found: list[int | None] = []  # None where one is computed
    for part in producer.inputs:
        if part is None:
            return False
        array = graph.constants.array(part)
        if array is None and graph.shapes.inferred(part) != (1,):
            return False
        if array is not None and array.dtype.kind not in "iu":
            return False
        found += [None] if array is None else [int(size) for size in array.reshape(-1)]
    if found.count(None) != 1 or any(size is not None and size < 1 for size in found):
        return False
    fixed = np.array([-1 if size is None else size for size in found], np.int64)
    graph.use(node, 1, graph.add_constant(fixed, f"{sizes.name}_fixed"))
    graph.discard_sizes(sizes, selected)
    return True


def _reshape_at_once(node: ir.Node, graph: ModelGraph, selected: Selection) -> bool:
    """Let a Reshape to constant sizes read what the op before it reads, if nobody else needs that op."""
    sizes = integers(node, 1, graph)
    if sizes is None or not sizes.size or (sizes == 0).any():  # 0 stands for a size of the input
        return False
    changed = False
    while (before := _relayout_before(node, graph, selected)) is not None:
        told = [value for value in before.inputs[1:] if value is not None]
        graph.use(node, 0, input_of(before, 0))
        graph.remove([before])
        for value in told:
            graph.discard_sizes(value, selected)
        changed = True
    return changed


def _relayout_before(node: ir.Node, graph: ModelGraph, selected: Selection) -> ir.Node | None:
    """The op that another shape goes through for nobody but a Reshape; a constant is written out as a whole."""
    between = input_of(node, 0)
    before = between.producer() if graph.constants.array(between) is None else None
    if before is None or before.op_type not in _RELAYOUTS or not in_default_domain(before) or not selected(before):
        return None
    return before if is_read_once(between) and before.graph is node.graph else None


# 5. Back to the shape that was there


def _origin(node: ir.Node, graph: ModelGraph) -> ir.Value | None:
    """What the result of some relayouts in a row is equal to, shape and all."""
    if node.op_type not in _RELAYOUTS or graph.constants.array(node.outputs[0]) is not None:
        return None
    shape = graph.shapes.inferred(node.outputs[0])
    value = input_of(node, 0)
    while shape is not None:
        before = value.producer()
        if before is None or before.op_type not in _RELAYOUTS or before.graph is not node.graph:
            return None
        if not in_default_domain(before):
            return None
        value = input_of(before, 0)
        if _is_same_shape(graph.shapes.inferred(value), shape):
            return value
    return None


def _is_same_shape(shape: tuple[Dim, ...] | None, other: tuple[Dim, ...]) -> bool:
    """Whether two values of as many elements have the same sizes: one that is not known follows from the others."""
    if shape is None or len(shape) != len(other):
        return False
    told = [(a, b) for a, b in zip(shape, other, strict=True) if isinstance(a, int) and isinstance(b, int)]
    return len(told) >= len(shape) - 1 and all(a == b > 0 for a, b in told)


# 6. Transposes


def _transpose_at_once(node: ir.Node, graph: ModelGraph, selected: Selection) -> bool:
    """Let a Transpose read what the one before it reads, if nobody else needs that one."""
    between = input_of(node, 0)
    before = between.producer() if graph.constants.array(between) is None else None
    if before is None or before.op_type != "Transpose" or not in_default_domain(before) or not selected(before):
        return False
    first, second = _order(before, graph), _order(node, graph)
    alone = is_read_once(between) and before.graph is node.graph
    if not alone or first is None or second is None or len(first) != len(second):
        return False
    graph.set_attributes(node, {"perm": [first[axis] for axis in second]})
    graph.use(node, 0, input_of(before, 0))
    graph.remove([before])
    return True


def _order(node: ir.Node, graph: ModelGraph) -> list[int] | None:
    """The axes of its input in the order in which a Transpose gives them."""
    rank = graph.shapes.rank(input_of(node, 0))
    told = [int(axis) for axis in node.attributes.get_ints("perm", ())]
    if told or rank is None:
        return told if sorted(told) == list(range(len(told))) and told else None
    return list(range(rank))[::-1]


# 8. What nobody reads


def _drop_unread(graph: ModelGraph, selected: Selection) -> bool:
    """Take away ops without effect, those that read others first."""
    changed = False
    for node in reversed(list(graph.nodes())):
        if node.graph is None or not in_default_domain(node) or not selected(node) or not node.outputs:
            continue
        # A body may hold sites, and ops of other domains.
        if not is_dead(node) or is_batch_norm(node) or isinstance(read_affine(node, graph, {}), Site) or has_body(node):
            continue
        if would_be_exposed(node, graph):
            continue
        graph.remove([node])
        changed = True
    return changed
