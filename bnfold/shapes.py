"""Shapes and dtypes of a model's values, worked out once; folding changes neither."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir
import onnx_ir.passes.common as common_passes

#: One dimension: its length, its symbolic name, or None where nothing is known.
Dim = int | str | None


@dataclass(frozen=True)
class ValueInfo:
    """What is known of one value: its dimensions (None where the rank is unknown) and its dtype."""

    shape: tuple[Dim, ...] | None
    dtype: ir.DataType | None


class ShapeTable:
    """The shape and dtype of each value, whatever it is renamed to later."""

    def __init__(self, infos: dict[ir.Value, ValueInfo]) -> None:
        self._infos = infos

    def copy(self, source: ir.Value, target: ir.Value) -> None:
        """Let a new value have the shape and dtype of another."""
        self._infos[target] = ValueInfo(self.shape(source), self.dtype(source))

    def shape(self, value: ir.Value) -> tuple[Dim, ...] | None:
        """The dimensions of ``value``, or None where its rank is unknown."""
        info = self._infos.get(value)
        return info.shape if info else _shape_of(value)

    def rank(self, value: ir.Value) -> int | None:
        """The number of dimensions, or None where it is unknown."""
        shape = self.shape(value)
        return None if shape is None else len(shape)

    def dtype(self, value: ir.Value) -> ir.DataType | None:
        """The element type, or None where it is unknown."""
        info = self._infos.get(value)
        return info.dtype if info else value.dtype


def infer_shapes(model: ir.Model) -> ShapeTable:
    """Infer the shapes of all values, subgraphs included, with ONNX's own shape inference.

    What the inference finds counts for more than what the file says of its inner values: such annotations go
    stale when tools edit a graph, and a wrong rank would put an affine on the wrong axis. They are used only
    where the inference finds nothing (after an op of a custom domain, say). Neither does the inference see the
    values of initializers that a caller may override. The model is not changed.
    """
    copy = model.clone()
    for graph in copy.graphs():
        outputs = set(graph.outputs)
        for node in graph:
            for value in node.outputs:
                value.shape = None
                if value not in outputs:  # an output must say what it is
                    value.type = None
    if copy.ir_version >= 4:
        for value in copy.graph.inputs:
            if value.name is not None and value.name in copy.graph.initializers:
                del copy.graph.initializers[value.name]
    common_passes.ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(copy)
    infos: dict[ir.Value, ValueInfo] = {}
    for original, inferred in zip(model.graphs(), copy.graphs(), strict=True):
        named = ir.convenience.create_value_mapping(inferred)
        for name, value in ir.convenience.create_value_mapping(original).items():
            twin = named.get(name, value)
            shape = _shape_of(twin)
            infos[value] = ValueInfo(
                shape=shape if shape is not None else _shape_of(value),
                dtype=twin.dtype if twin.dtype is not None else value.dtype,
            )
    return ShapeTable(infos)


def _shape_of(value: ir.Value) -> tuple[Dim, ...] | None:
    if value.shape is None:
        return None
    return tuple(dim if isinstance(dim, int) else dim.value for dim in value.shape)
