"""Figures about a model for the result of an export."""

from __future__ import annotations

import onnx_ir as ir
from torch import nn


def batch_norm_count(model: ir.Model) -> int:
    """The number of ``BatchNormalization`` nodes, in subgraphs and functions too."""
    scopes = [model.graph, *(function.graph for function in model.functions.values())]
    return sum(node.op_type == "BatchNormalization" for graph in scopes for node in graph.all_nodes())


def open_shape(value: ir.Value) -> tuple[int | str, ...]:
    """The shape of ``value`` with a name, or ``?``, for each size that is open."""
    if value.shape is None:
        return ()
    return tuple(size if isinstance(size, int) else str(size.value or "?") for size in value.shape)


def parameter_count(module: nn.Module) -> int:
    """The number of values in parameters and floating-point buffers (running statistics)."""
    return sum(tensor.numel() for tensor in module.state_dict().values() if tensor.is_floating_point())
