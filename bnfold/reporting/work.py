"""How much a node computes: multiply-adds of one sample, from the shapes.

A convolution does ``out pixels · out channels · in channels / group · kernel`` of them, a matrix product
``M · N · K``, a recurrent op ``gates · hidden · (in + hidden)`` at each step in each direction, and a batch norm one
for each element. Other ops count nothing.
"""

from __future__ import annotations

import math

import onnx_ir as ir

from bnfold.graph import in_default_domain
from bnfold.shapes import Dim, ShapeTable


def samples_dimensions(model: ir.Model) -> frozenset[str]:
    """The symbolic names of the batch: the first dimensions of the model's inputs."""
    firsts = [value.shape[0] for value in model.graph.inputs if value.shape is not None and len(value.shape) > 0]
    return frozenset(dim.value for dim in firsts if isinstance(dim, ir.SymbolicDim) and dim.value is not None)


def multiply_adds(node: ir.Node, shapes: ShapeTable, samples: frozenset[str]) -> int | None:
    """Multiply-adds of one node for one sample.

    Args:
        node: any node.
        shapes: of the model.
        samples: names of symbolic dimensions that count as one (:func:`samples_dimensions`).

    Returns:
        The number, 0 for an op that is none of the above, None where a shape that decides is not known.
    """
    if not in_default_domain(node):
        return 0

    def dims(value: ir.Value | None) -> tuple[Dim, ...]:
        return (shapes.shape(value) if value is not None else None) or (None,)

    match node.op_type:
        case "Conv" | "DeformConv":
            return _product(_pixels(dims(node.outputs[0])) + dims(node.inputs[1]), samples)
        case "ConvTranspose":
            return _product(_pixels(dims(node.inputs[0])) + dims(node.inputs[1]), samples)
        case "Gemm":  # by its inputs: what inference knows of the output is often less
            columns = dims(node.inputs[1])[0 if node.attributes.get_int("transB", 0) else -1]
            return _product((*dims(node.inputs[0]), columns), samples)
        case "MatMul":
            left, right = dims(node.inputs[0]), dims(node.inputs[1])
            if len(right) == 2:
                return _product((*left, right[-1]), samples)
            return _product((*dims(node.outputs[0]), left[-1]), samples)
        case "LSTM" | "GRU" | "RNN":
            steps, rows = dims(node.inputs[0])[:2], dims(node.inputs[1])[:2]
            parts = [_product((*steps, *rows, dims(weight)[-1]), samples) for weight in node.inputs[1:3]]
            return None if None in parts else sum(part for part in parts if part is not None)
        case "BatchNormalization":
            return _product(dims(node.outputs[0]), samples)
    return 0


def _pixels(shape: tuple[Dim, ...]) -> tuple[Dim, ...]:
    """The dimensions of (batch, channels, …) without the channels, which are those of the weight."""
    return (shape[0], *shape[2:])


def _product(dims: tuple[Dim, ...], samples: frozenset[str]) -> int | None:
    sizes = [1 if isinstance(dim, str) and dim in samples else dim for dim in dims]
    known = [size for size in sizes if isinstance(size, int)]
    return math.prod(known) if len(known) == len(sizes) else None
