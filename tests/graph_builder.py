"""Grows random graphs, one node at a time: each is run as it is made, so that every graph runs, with small numbers.

A step of random_steps.py or random_joins.py draws a node or two and hands them to :meth:`Builder.add`; an op that does
not apply to what was drawn is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from bnfold.verification.double import NotInFloat64Error
from bnfold.verification.evaluator import Evaluator64

BATCH = 2

#: Beyond them a node is left out: the tolerance of the comparison is relative to the outputs.
_MOST_ELEMENTS, _LARGEST = 6000, 1e4

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Tensor:
    """A value of the graph, and what it is for one input."""

    value: ir.Value
    array: Array

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape


@dataclass
class Builder:
    """Grows a graph in double, one node at a time.

    Attributes:
        random: for the choices and the numbers of the present step.
        opset: of the model.
        dynamic: whether the first axis has a symbolic length; then no op touches it.
        graph: what has been made.
        tensors: the floating-point values that ops may read.
        stored: the constants, and the indices and shapes computed at run time.
        axis: the axis of the channels of the last linear op.
        loyalty: how often, of a hundred times, the newest value is read.
    """

    random: np.random.Generator
    opset: int
    dynamic: bool
    graph: ir.Graph = field(init=False)
    tensors: list[Tensor] = field(default_factory=list)
    stored: dict[ir.Value, Array] = field(default_factory=dict)
    axis: int = 1
    loyalty: int = 85

    def __post_init__(self) -> None:
        self.graph = ir.Graph([], [], nodes=[], opset_imports={"": self.opset}, name="random")
        dims = [self.one(3, 4, 4, 5) for _ in range(self.one(0, 1, 1, 2, 2, 2, 2, 3))]
        self.axis = 1 if dims or self.chance(50) else -1
        self.tensors.append(self.input((BATCH, self.number(1, 4), *dims)))

    def input(self, shape: tuple[int, ...], array: Array | None = None) -> Tensor:
        array = self.random.normal(size=shape) if array is None else array
        value = ir.val(f"x{len(self.graph.inputs)}", ir.DataType.from_numpy(array.dtype), self.declared(shape))
        self.graph.inputs.append(value)
        return Tensor(value, array)

    def indices(self, shape: tuple[int, ...]) -> ir.Value:
        """An input of the indices 0 and 1, as they are fed."""
        found = self.input(shape, self.random.integers(0, 2, shape))
        self.stored[found.value] = found.array
        return found.value

    def declared(self, shape: tuple[int, ...]) -> list[int | str]:
        return ["N", *shape[1:]] if self.dynamic else list(shape)

    # What a step draws from.

    def one(self, *choices: Any) -> Any:
        return choices[self.random.integers(len(choices))]

    def number(self, least: int, most: int) -> int:
        return int(self.random.integers(least, most, endpoint=True))

    def chance(self, percent: int) -> bool:
        return self.number(1, 100) <= percent

    def floats(self, *shape: int) -> Array:
        return self.random.normal(size=shape)

    def pick(self) -> Tensor:
        """Mostly the newest value that has an axis to touch: long chains with some forks."""
        found = [tensor for tensor in self.tensors if len(tensor.shape) > int(self.dynamic)]
        return found[-1] if self.chance(self.loyalty) else self.one(*found)

    def axis_of(self, tensor: Tensor) -> int:
        """Any axis that may be touched."""
        return self.number(int(self.dynamic), len(tensor.shape) - 1)

    def channels_of(self, tensor: Tensor) -> int:
        """The axis of the affines: mostly that of the last linear op."""
        rank = len(tensor.shape)
        return self.axis % rank if -rank <= self.axis < rank and self.chance(85) else self.axis_of(tensor)

    def vector(self, size: int) -> Array:
        """Numbers for the channels of an axis: at times alike in blocks, as what repeats channels needs them."""
        parts = [n for n in range(1, size) if size % n == 0]
        if not parts or not self.chance(50):
            return self.floats(size)
        part = self.one(*parts)
        return self.one(np.tile, np.repeat)(self.floats(part), size // part)

    def constant(self, array: Array, *, share: bool = False, plain: bool = False) -> ir.Value:
        """An initializer, a Constant node, or computed from one; one of the same shape again, if shared."""
        array = np.asarray(array)
        same = [
            value for value, other in self.stored.items() if (other.shape, other.dtype) == (array.shape, array.dtype)
        ]
        if share and same and self.chance(40):
            return self.one(*same)
        name = f"c{len(self.stored)}"
        form = "stored" if plain else self.one(*["stored"] * 60, *["node"] * 4, *["identity"] * 4, "input")
        if form == "node":
            node = ir.node("Constant", [], attributes={"value": ir.tensor(array)})
            node.outputs[0].name, node.outputs[0].dtype = name, ir.DataType.from_numpy(array.dtype)
            self.graph.append(node)
            value = node.outputs[0]
        else:
            value = ir.val(name, const_value=ir.tensor(array, name=name))
            self.graph.register_initializer(value)
        if form == "input":
            self.graph.inputs.append(value)
        if form == "identity":
            node = ir.node("Identity", [value])
            node.outputs[0].name, node.outputs[0].dtype = f"{name}i", value.dtype
            self.graph.append(node)
            value = node.outputs[0]
        self.stored[value] = array
        return value

    def ints(self, *numbers: int) -> ir.Value:
        return self.constant(np.array(numbers, np.int64), plain=True)

    def add(
        self, op_type: str, inputs: Sequence[Tensor | ir.Value | None], outputs: int = 1, **attributes: Any
    ) -> bool:
        """Append a node, if it runs; its outputs are values to go on with."""
        node = ir.node(
            op_type,
            [item.value if isinstance(item, Tensor) else item for item in inputs],
            attributes={name: value for name, value in attributes.items() if value is not None},
            num_outputs=outputs,
        )
        node.name = f"{op_type}_{len(self.graph)}"
        for index, output in enumerate(node.outputs):
            output.name = f"v{len(self.graph)}" + "bcd"[:index]
        arrays = self._run(node)
        if arrays is None:
            for step in (node, *(step for body in bodies(node) for step in body)):
                for index in range(len(step.inputs)):
                    step.replace_input_with(index, None)
            return False
        self.graph.append(node)
        for output, array in zip(node.outputs, arrays, strict=True):
            output.dtype = ir.DataType.from_numpy(array.dtype)
            if array.dtype == np.float64:
                self.tensors.append(Tensor(output, array))
        return True

    def aside(self, op_type: str, x: Tensor | ir.Value, array: Array, *more: ir.Value, **attributes: Any) -> ir.Value:
        """Append a node that computes indices or a shape, known to be ``array``."""
        node = ir.node(op_type, [x.value if isinstance(x, Tensor) else x, *more], attributes=attributes)
        node.outputs[0].name, node.outputs[0].dtype = f"v{len(self.graph)}", ir.DataType.INT64
        self.graph.append(node)
        self.stored[node.outputs[0]] = array
        return node.outputs[0]

    def _run(self, node: ir.Node) -> list[Array] | None:
        """The results of one node; None where it fails, or gives something too large."""
        known = self.stored | {tensor.value: tensor.array for tensor in self.tensors}
        reads = {value: known[value] for value in (*node.inputs, *captured(node)) if value is not None}
        graph = onnx.helper.make_graph(
            [ir.serde.serialize_node(node)],
            "one",
            [onnx.ValueInfoProto(name=value.name) for value in reads],
            [onnx.ValueInfoProto(name=value.name) for value in node.outputs],
        )
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", self.opset)])
        try:
            with np.errstate(all="ignore"):
                results = Evaluator64(model).run(None, {str(value.name): array for value, array in reads.items()})
        except NotInFloat64Error:
            return None
        arrays = [np.asarray(result) for result in results]
        for array in arrays:
            if not 0 < array.size <= _MOST_ELEMENTS or not np.all(np.abs(array) < _LARGEST):
                return None
            if self.dynamic and array.shape[:1] != (BATCH,):
                return None
        return arrays


def bodies(node: ir.Node) -> list[ir.Graph]:
    """The subgraphs of a node."""
    return [attribute.as_graph() for attribute in node.attributes.values() if attribute.type is ir.AttributeType.GRAPH]


def captured(node: ir.Node) -> list[ir.Value]:
    """The values of the outer scope that the bodies of a node read."""
    made = {output for body in bodies(node) for step in body for output in step.outputs}
    found = [value for body in bodies(node) for step in body for value in step.inputs if value is not None]
    return list(dict.fromkeys(value for value in found if value not in made))


Step = Callable[[Builder], object]
