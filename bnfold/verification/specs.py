"""What a graph takes: the inputs that a caller must feed, and which integers make sense in them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from bnfold.draws import integer_limits
from bnfold.errors import ModelError
from bnfold.shapes import ShapeTable, infer_shapes

#: Operators that hand on the elements of their first input as they are, or some of them.
_HANDED_ON = frozenset(
    {
        "Concat",
        "Expand",
        "Flatten",
        "Identity",
        "Reshape",
        "Slice",
        "Split",
        "Squeeze",
        "Tile",
        "Transpose",
        "Unsqueeze",
    }
)

#: Operators that read their own results, step after step.
RECURRENT = frozenset({"GRU", "LSTM", "RNN"})

#: The input at which they take the lengths of sequences. Where it is not known how long the data is, each sequence is
#: of one step: an open axis may be given that length, if it looks like one of samples.
_LENGTHS, _SHORTEST = 4, 1

#: Integers that only ever become numbers are drawn between minus this and this.
_NUMBERS = 100


@dataclass(frozen=True)
class InputSpec:
    """One input of a graph.

    Attributes:
        name: the graph input's name.
        dtype: its data type.
        shape: each dimension an int, the name of a symbolic one, or None; None as a whole where unknown.
        limits: the lowest integer that makes sense, and the first that is too high; of no meaning for other types.
    """

    name: str
    dtype: ir.DataType
    shape: tuple[int | str | None, ...] | None
    limits: tuple[int, int] = (0, 2)


def input_specs(model: ir.Model) -> list[InputSpec]:
    """The inputs that a caller must feed: an initializer that is an input too has a value already.

    Raises:
        ModelError: an input is not a tensor of numbers.
    """
    shapes = infer_shapes(model) if any(map(_takes_lengths, model.graph)) else None
    specs = []
    for value in model.graph.inputs:
        if value.name in model.graph.initializers:
            continue
        if value.dtype is None or not isinstance(value.type, ir.TensorType):
            raise ModelError(f"input {value.name!r} is not a tensor of a known type; bnfold verifies models on tensors")
        if value.dtype in (ir.DataType.STRING, ir.DataType.COMPLEX64, ir.DataType.COMPLEX128):
            raise ModelError(f"input {value.name!r} has the type {value.dtype.name}, which bnfold cannot draw")
        specs.append(InputSpec(str(value.name), value.dtype, _dimensions(value), _limits(value, value.dtype, shapes)))
    return specs


def _dimensions(value: ir.Value) -> tuple[int | str | None, ...] | None:
    if value.shape is None:
        return None
    return tuple(int(d) if isinstance(d, int) else (str(d.value) if d.value is not None else None) for d in value.shape)


def _limits(value: ir.Value, dtype: ir.DataType, shapes: ShapeTable | None) -> tuple[int, int]:
    """Indices stay inside the table that they look up, lengths inside the data; what becomes a number may be any."""
    usual = integer_limits(dtype.numpy())
    if not dtype.is_integer():
        return usual
    uses = set(_uses(value, shapes))
    lengths = [use for kind, use in uses if kind == "length"]
    if lengths:
        return 1, max(min(lengths), 1) + 1
    rows = [use for kind, use in uses if kind == "row"]
    if rows:
        return 0, max(min(rows), 1)
    if {kind for kind, _ in uses} == {"number"} and usual == (0, 2):
        return (-_NUMBERS if dtype.is_signed() else 0), _NUMBERS + 1
    return usual


def _uses(value: ir.Value, shapes: ShapeTable | None) -> Iterator[tuple[str, int]]:
    """What an integer is for: an index of a ``row`` of so many, a ``length`` up to that, a ``number``, or ``else``."""
    for node, index in value.uses():
        rows = _table_rows(node, index)
        if rows is not None:
            yield "row", rows
        elif shapes is not None and index == _LENGTHS and _takes_lengths(node):
            yield "length", _longest(node, shapes)
        elif node.op_type in _HANDED_ON and (index == 0 or node.op_type == "Concat"):
            for output in node.outputs:
                yield from _uses(output, shapes)
        elif node.op_type == "Cast":
            target = ir.DataType(node.attributes.get_int("to", 0) or 0)
            if target.is_floating_point():
                yield "number", 0
            else:
                yield from _uses(node.outputs[0], shapes)
        else:
            yield "else", 0


def _table_rows(node: ir.Node, index: int) -> int | None:
    """How many rows the table has that the ``index``-th input of ``node`` looks up; None if it looks up nothing."""
    if index != 1 or node.op_type not in ("Gather", "GatherElements", "GatherND", "ScatterElements", "ScatterND"):
        return None
    data = node.inputs[0]
    if data is None or data.shape is None:
        return None
    axis = node.attributes.get_int("axis", 0) or 0
    sizes = data.shape if node.op_type.endswith("ND") else [data.shape[axis]]
    known = [size for size in sizes if isinstance(size, int)]
    return min(known) if known else None


def _takes_lengths(node: ir.Node) -> bool:
    return node.op_type in RECURRENT and len(node.inputs) > _LENGTHS and node.inputs[_LENGTHS] is not None


def _longest(node: ir.Node, shapes: ShapeTable) -> int:
    """How long the sequences of a node's data may be, so that they are sure to be no longer than the data."""
    data = node.inputs[0]
    shape = shapes.shape(data) if data is not None else None
    time = int(bool(node.attributes.get_int("layout", 0)))
    size = shape[time] if shape is not None and len(shape) > time else None
    return size if isinstance(size, int) else _SHORTEST


def listed(specs: Sequence[InputSpec]) -> str:
    """The names of inputs, for a sentence."""
    return ", ".join(spec.name for spec in specs) or "no inputs"


def shown(shape: Sequence[int | str | None]) -> str:
    """A shape, for a sentence."""
    return "(" + ", ".join("?" if d is None else str(d) for d in shape) + ")"
