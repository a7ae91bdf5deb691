"""Sizes that ops demand of their data: a batch norm as many channels as it has scales, an LSTM its number of inputs.

Shape inference follows the data forward, and loses a size where a shape is computed, as in ``x.view(t * n, -1)`` of a
network with open axes. The op that reads the result does not run on any other size than that of its weights.
"""

from __future__ import annotations

import onnx_ir as ir

from bnfold.protos import DEFAULT_DOMAINS
from bnfold.shapes import ShapeTable

#: The axis of the data, input 0, that is as long as an axis of the weights, input 1.
_DEMANDS = {"BatchNormalization": (1, 0), "GRU": (2, 2), "LSTM": (2, 2), "RNN": (2, 2)}

#: Ops whose result has the shape of their data.
_KEEPING = frozenset({"BatchNormalization"})


def add_demanded_sizes(model: ir.Model, shapes: ShapeTable) -> None:
    """Add to what is known of shapes. What an op demands holds in its own graph: a body need not be run."""
    for graph in model.graphs():
        for node in graph:
            demand = _DEMANDS.get(node.op_type) if node.domain in DEFAULT_DOMAINS else None
            if demand is None or len(node.inputs) < 2:
                continue
            data, weight = node.inputs[:2]
            sizes = shapes.shape(weight) if weight is not None and weight.const_value is not None else None
            axis, weights_axis = demand
            size = sizes[weights_axis] if sizes is not None and len(sizes) > weights_axis else None
            kept = node.outputs[:1] if node.op_type in _KEEPING else ()
            for value in (data, *kept):
                if value is not None and value.graph is graph and isinstance(size, int):
                    _set(value, axis, size, shapes)


def _set(value: ir.Value, axis: int, size: int, shapes: ShapeTable) -> None:
    known = shapes.inferred(value)
    if known is not None and len(known) > axis and not isinstance(known[axis], int):
        shapes.set(value, (*known[:axis], size, *known[axis + 1 :]), shapes.dtype(value))
