"""Random graphs of linear, affine, commuting and blocking ops, with forks, joins, shared weights and odd shapes.

A step draws a node or two and hands them to :meth:`Builder.add`, which runs each: an op that does not apply to what was
drawn is left out, and so every graph runs, with small numbers in it. hypothesis draws only which steps there are, each
with the seed of its own random numbers: so a failing graph shrinks by whole steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from hypothesis import strategies as st
from numpy.typing import NDArray

from bnfold.verification.double import NotInFloat64Error
from bnfold.verification.evaluator import Evaluator64

BATCH = 2

#: From the first with today's BatchNormalization on; those between change the form of some op that folding reads.
OPSETS = (7, 8, 9, 10, 11, 13, 14, 15, 17, 18, 19, 21, 22, 24)

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
        dims = [self.number(3, 5) for _ in range(self.one(0, 1, 1, 2, 2, 2, 2, 3))]
        self.axis = 1 if dims or self.chance(50) else -1
        self.tensors.append(self.input((BATCH, self.number(1, 4), *dims)))

    def input(self, shape: tuple[int, ...], array: Array | None = None) -> Tensor:
        array = self.random.normal(size=shape) if array is None else array
        value = ir.val(f"x{len(self.graph.inputs)}", ir.DataType.from_numpy(array.dtype), self.declared(shape))
        self.graph.inputs.append(value)
        return Tensor(value, array)

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
        if not parts or not self.chance(35):
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

    def aside(self, op_type: str, x: Tensor, array: Array, **attributes: Any) -> ir.Value:
        """Append a node that computes indices or a shape, known to be ``array``."""
        node = ir.node(op_type, [x.value], attributes=attributes)
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

# Linear ops.


def window(b: Builder, spatial: tuple[int, ...], kernel: Sequence[int]) -> dict[str, Any]:
    """Strides, dilations and pads of a convolution or pool, mostly absent."""
    rank = len(spatial)
    drawn: dict[str, Any] = {}
    if b.chance(20):
        drawn["strides"] = [b.one(1, 2) for _ in range(rank)]
    if b.chance(15):
        drawn["dilations"] = [b.one(1, 2) for _ in range(rank)]
    if b.chance(15):
        drawn["auto_pad"] = b.one("SAME_UPPER", "SAME_LOWER", "VALID")
    elif b.chance(35):
        drawn["pads"] = [b.number(0, max(0, size - 1)) for size in (*kernel, *kernel)]
    return drawn


def conv(b: Builder) -> None:
    x = b.pick()
    if len(x.shape) < 3:
        return
    c, spatial = x.shape[1], x.shape[2:]
    group = b.one(*[g for g in (1, 1, 2, c) if c % g == 0])
    out = group * b.number(1, 3)
    kernel = [b.one(1, 1, 2, 3) for _ in spatial]
    weight = b.constant(b.floats(out, c // group, *kernel), share=True)
    bias = b.constant(b.floats(out)) if b.chance(50) else None
    b.axis = 1
    b.add("Conv", [x, weight, bias][: 3 if bias else 2], group=group, **window(b, spatial, kernel))


def transposed_conv(b: Builder) -> None:
    x = b.pick()
    if len(x.shape) < 3:
        return
    c, spatial = x.shape[1], x.shape[2:]
    group = b.one(*[g for g in (1, 2) if c % g == 0])
    kernel = [b.number(1, 2) for _ in spatial]
    inputs = [x, b.constant(b.floats(c, b.number(1, 2), *kernel), share=True)]
    strides = [b.one(1, 1, 2) for _ in spatial]
    b.axis = 1
    pads = [b.one(0, 0, 1) for _ in (*kernel, *kernel)] if b.chance(20) else None
    b.add("ConvTranspose", inputs, group=group, strides=strides, pads=pads)


def matmul(b: Builder) -> None:
    x = b.pick()
    b.axis = -1
    weight = b.constant(b.floats(x.shape[-1], b.number(1, 5)), share=True)
    if b.add("MatMul", [x, weight]) and b.chance(50):
        x = b.tensors[-1]
        bias = b.constant(b.floats(b.one(x.shape[-1], 1)))
        b.add("Add", [x, bias] if b.chance(50) else [bias, x])


def gemm(b: Builder) -> None:
    x = b.pick()
    if len(x.shape) != 2:
        return
    out, transposed, flipped = b.number(1, 5), b.chance(50), not b.dynamic and b.chance(15)
    inner = x.shape[0] if flipped else x.shape[1]
    weight = b.constant(b.floats(*((out, inner) if transposed else (inner, out))), share=True)
    shape = b.one(None, (), (1,), (out,), (1, out)) if b.opset >= 11 else (out,)
    bias = [] if shape is None else [b.constant(b.floats(*shape))]
    b.axis = -1
    b.add("Gemm", [x, weight, *bias], transA=int(flipped), transB=int(transposed), alpha=0.5, beta=2.0)


# Affines.


def batch_norm(b: Builder) -> None:
    x = b.pick()
    if len(x.shape) < 2:
        return
    c = x.shape[1]
    scale, shift, mean = b.vector(c), b.vector(c), b.vector(c)
    if b.chance(50):
        scale = np.abs(scale) + 0.1
    if b.chance(25):
        shift, mean = np.zeros(c), np.zeros(c)
    var = np.full(c, 1.0) if b.chance(35) else np.abs(b.floats(c)) + 0.1
    b.add("BatchNormalization", [x, *(b.constant(p, share=True) for p in (scale, shift, mean, var))])


def along(b: Builder, x: Tensor, axes: Sequence[int]) -> Array:
    """A constant that varies along some axes of a tensor, of its rank or of a lower one that does as well."""
    dims = [1] * len(x.shape)
    for axis in axes:
        dims[axis] = x.shape[axis]
    array = b.vector(dims[axes[0]]).reshape(dims) if len(axes) == 1 else b.floats(*dims)
    while b.opset >= 7 and array.ndim and array.shape[0] == 1 and b.chance(50):
        array = array[0]
    return array


def binary(b: Builder) -> None:
    x, op_type = b.pick(), b.one("Add", "Sub", "Mul", "Mul", "Div")
    kind = b.one("none", "one", "one", "one", "one", "two")
    first = int(b.dynamic)
    if kind == "two" and len(x.shape) - first >= 2:
        axes = sorted((first + b.random.permutation(len(x.shape) - first)[:2]).tolist())
    else:
        axes = [] if kind == "none" else [b.channels_of(x)]
    if any(axis < first for axis in axes):
        return
    array = along(b, x, axes)
    if op_type == "Div" or (op_type == "Mul" and b.chance(60)):
        array = np.abs(array) + 0.3
    inputs: list[Tensor | ir.Value] = [x, b.constant(array, share=True)]
    if op_type != "Div" and b.chance(30):
        inputs.reverse()
    b.add(op_type, inputs)


# Ops that affines cross.


def unary(b: Builder) -> None:
    b.add(b.one("Relu", "LeakyRelu", "Identity", "Neg", "Dropout", "Abs"), [b.pick()])


def prelu(b: Builder) -> None:
    x = b.pick()
    b.add("PRelu", [x, b.constant(along(b, x, [b.channels_of(x)] if not b.dynamic or len(x.shape) > 1 else []))])


def transpose(b: Builder) -> None:
    x = b.pick()
    rank, first = len(x.shape), int(b.dynamic)
    order = [*range(first), *(first + b.random.permutation(rank - first)).tolist()]
    if b.add("Transpose", [x], perm=order) and b.axis % rank in order:
        b.axis = order.index(b.axis % rank)


def reshape(b: Builder) -> None:
    x = b.pick()
    rank = len(x.shape)
    kind = b.one("Reshape", "Flatten", "Squeeze", "Unsqueeze")
    if kind == "Flatten":
        b.add("Flatten", [x], axis=1 if b.dynamic else b.number(0, rank))
    elif kind == "Reshape":
        cut = b.number(1, rank)
        b.add("Reshape", [x, b.ints(*([0] * cut), *b.one((), (-1,), (-1, 1), (1, -1), (2, -1)))])
    else:
        ones = [axis for axis, size in enumerate(x.shape) if size == 1 and axis >= int(b.dynamic)]
        choices = ones if kind == "Squeeze" else list(range(int(b.dynamic), rank + 1))
        if not choices or rank + (kind == "Unsqueeze") > 5:
            return
        axis = b.one(*choices)
        if b.opset < 13:
            b.add(kind, [x], axes=[axis])
        else:
            b.add(kind, [x, b.ints(axis)])


def pool(b: Builder) -> None:
    x = b.pick()
    if len(x.shape) < 3:
        return
    op_type = b.one("AveragePool", "AveragePool", "MaxPool", "MaxPool", "GlobalAveragePool", "GlobalMaxPool")
    if op_type == "GlobalMaxPool" and len(x.shape) != 4:
        return  # the reference of onnx 1.23 takes the largest over the last two axes, whatever the rank
    if op_type.startswith("Global"):
        b.add(op_type, [x])
        return
    kernel = [b.one(1, 2, 3) for _ in x.shape[2:]]
    drawn = window(b, x.shape[2:], kernel)
    if b.opset < (10 if op_type == "MaxPool" else 19):
        drawn.pop("dilations", None)
    if b.opset >= 10 and min(kernel) > 1 and drawn.keys() <= {"strides"}:  # a window of padding alone is not agreed on
        drawn["ceil_mode"] = b.one(0, 1)
    if op_type == "AveragePool":
        drawn["count_include_pad"] = b.one(0, 1)
    outputs = 1 + (op_type == "MaxPool" and b.opset >= 8 and b.chance(10))
    b.add(op_type, [x], outputs, kernel_shape=kernel, **drawn)


def reduce(b: Builder) -> None:
    x = b.pick()
    op_type = b.one("ReduceMean", "ReduceMax", "ReduceMin", "ReduceSum", "ReduceSum")
    axes = sorted({b.axis_of(x) for _ in range(b.one(1, 1, 2))})
    if b.chance(50):
        axes = [axis - len(x.shape) for axis in axes] if b.opset >= 11 else axes
    if b.opset < (13 if op_type == "ReduceSum" else 18):
        b.add(op_type, [x], axes=axes, keepdims=b.one(0, 1))
    else:
        b.add(op_type, [x, b.ints(*axes)], keepdims=b.one(0, 1))


def pad(b: Builder) -> None:
    x, axis = b.pick(), None
    axis, mode = b.axis_of(x), b.one("constant", "edge", "reflect", "wrap" if b.opset >= 19 else "edge")
    pads = np.zeros((2, len(x.shape)), np.int64)
    pads[:, axis] = b.one((0, 1), (1, 1), (1, -1), (2, 0))
    if b.opset < 11:
        b.add("Pad", [x], pads=pads.ravel().tolist(), mode=mode)
    elif b.opset >= 18 and b.chance(30):
        b.add("Pad", [x, b.ints(*pads[:, axis]), None, b.ints(axis)], mode=mode)
    else:
        b.add("Pad", [x, b.ints(*pads.ravel())], mode=mode)


def slice_(b: Builder) -> None:
    x = b.pick()
    axis, start, end = b.axis_of(x), b.number(-6, 3), b.number(-5, 6)
    if b.opset < 10:
        b.add("Slice", [x], starts=[start], ends=[end], axes=[axis])
    else:
        b.add("Slice", [x, *(b.ints(n) for n in (start, end, axis, b.one(1, 1, 2, -1, -2)))])


def gather(b: Builder) -> None:
    x = b.pick()
    axis = b.axis_of(x)
    size = x.shape[axis]
    lowest = -size if b.opset >= 11 else 0
    indices = np.array([b.number(lowest, size - 1) for _ in range(b.number(1, 4))])
    form = b.one("vector", "vector", "scalar", "matrix", "input")
    if form == "scalar":
        indices = np.array(indices[0])
    if form == "matrix":
        indices = indices.reshape(1, -1)
    if form == "input" and not b.dynamic and size > 1:  # whose feeds are 0 and 1
        source = b.input(indices.shape, np.abs(indices) % 2)
        b.stored[source.value] = source.array
        b.add("Gather", [x, source.value], axis=axis)
        return
    b.add("Gather", [x, b.constant(indices, plain=True)], axis=axis)


def embedding(b: Builder) -> None:
    """Rows of a constant table, picked at run time."""
    if b.opset < 11:
        return
    x = b.pick()
    rows = b.aside("ArgMax", x, x.array.argmax(axis=-1), axis=len(x.shape) - 1, keepdims=0)
    table = b.constant(b.floats(x.shape[-1], b.number(1, 4)), share=True)
    b.axis = -1
    b.add("Gather", [table, rows], axis=0)


def split(b: Builder) -> None:
    x = b.pick()
    axis = b.channels_of(x)
    if x.shape[axis] < 2 or axis < int(b.dynamic):
        return
    first = b.number(1, x.shape[axis] - 1)
    lengths = [first, x.shape[axis] - first]
    if b.opset < 13:
        b.add("Split", [x], outputs=2, axis=axis, split=lengths)
    else:
        b.add("Split", [x, b.ints(*lengths)], outputs=2, axis=axis)


def blocks(b: Builder) -> None:
    x = b.pick()
    if len(x.shape) == 4:
        mode = b.one("DCR", "CRD") if b.opset >= 11 else None
        wide = x.shape[1] % 4 == 0
        b.add("DepthToSpace", [x], blocksize=2, mode=mode) if wide else b.add("SpaceToDepth", [x], blocksize=2)


def resize(b: Builder) -> None:
    x = b.pick()
    scales = [1.0] * len(x.shape)
    scales[b.axis_of(x)] = 2.0
    mode = b.one("nearest", "linear")
    stored = None if b.opset < 9 else b.constant(np.array(scales, np.float32), plain=True)
    if b.opset < 9:
        b.add("Upsample", [x], scales=scales, mode=mode)
    elif b.opset == 9:
        b.add("Upsample", [x, stored], mode=mode)
    elif b.opset == 10:
        b.add("Resize", [x, stored], mode=mode)
    else:
        roi = None if b.opset >= 13 else b.constant(np.zeros(0, np.float32), plain=True)
        b.add("Resize", [x, roi, stored], mode=mode)


def expand(b: Builder) -> None:
    x = b.pick()
    target = [b.one(size, size, 3) if size == 1 else size for size in x.shape]
    if b.opset < 8 or len(target) > 4:
        return
    if b.chance(25) and not b.dynamic:
        target = [b.one(1, 2), *target]
    target[0] = 1 if b.dynamic else target[0]
    b.add("Expand", [x, b.ints(*target)])


def tile(b: Builder) -> None:
    x = b.pick()
    repeats = [1] * len(x.shape)
    repeats[b.channels_of(x) if b.chance(70) else b.axis_of(x)] = 2
    repeats[0] = 1 if b.dynamic else repeats[0]
    b.add("Tile", [x, b.ints(*repeats)])


# Joins.

JOINS = ("Add", "Add", "Add", "Sub", "Sum", "Sum", "Mean", "Max", "Min", "Mul", "Div")


def join(b: Builder) -> None:
    x, op_type = b.pick(), b.one(*JOINS)
    same = [other for other in b.tensors if other.shape == x.shape]
    near = [other for other in b.tensors if broadcasts(other.shape, x.shape)] if b.opset >= 8 else same
    others = [b.one(*(near if b.chance(40) else same)) for _ in range(b.one(1, 1, 2))]
    b.add(op_type, [x, *(others[:1] if op_type in ("Add", "Sub", "Mul", "Div") else others)])


def broadcasts(shape: tuple[int, ...], target: tuple[int, ...]) -> bool:
    pairs = zip(shape[::-1], target[::-1], strict=False)
    return len(shape) <= len(target) and all(size in (1, wanted) for size, wanted in pairs)


def branches(b: Builder) -> None:
    """Two convolutions or products of one value that meet again."""
    x = b.pick()
    for step in (linear, linear):
        b.tensors.append(x)
        b.axis = b.axis if len(x.shape) < 3 else 1
        step(b)
    join(b)


def linear(b: Builder) -> None:
    x = b.tensors[-1]
    if len(x.shape) >= 3:
        b.add("Conv", [x, b.constant(b.floats(x.shape[1], x.shape[1], *[1] * (len(x.shape) - 2)), share=True)])
    else:
        b.add("MatMul", [x, b.constant(b.floats(x.shape[-1], x.shape[-1]), share=True)])


def concat(b: Builder) -> None:
    x = b.pick()
    axis = b.axis_of(x)
    fitting = [
        other
        for other in b.tensors
        if len(other.shape) == len(x.shape) and _without(other.shape, axis) == _without(x.shape, axis)
    ]
    b.add("Concat", [x, b.one(*fitting)], axis=axis - len(x.shape) if b.opset >= 11 else axis)


def _without(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return (*shape[:axis], *shape[axis + 1 :])


def constant_join(b: Builder) -> None:
    """An Add, Max or product of a constant that is no affine along one axis: a positional embedding, say."""
    x = b.pick()
    first, rank = int(b.dynamic), len(x.shape)
    axes = [axis for axis in range(first, rank) if b.chance(70)]
    array = along(b, x, axes) if len(axes) != 1 or b.chance(50) else np.abs(along(b, x, axes))
    op_type = b.one("Add", "Sub", "Mul", "Div", *(() if b.opset < 8 else ("Add", "Sum", "Max", "Min", "Mean")))
    inputs: list[Tensor | ir.Value] = [x, b.constant(np.abs(array) + 0.2 if op_type == "Div" else array, share=True)]
    if b.chance(40) and op_type != "Div":
        inputs.reverse()
    b.add(op_type, inputs)


def constant_concat(b: Builder) -> None:
    """A class token, or padding by values of one's own."""
    x = b.pick()
    axis = b.axis_of(x)
    shape = [*x.shape]
    shape[axis] = b.number(1, 2)
    token: Tensor | ir.Value = b.constant(b.floats(*shape), share=True)
    if b.dynamic or b.chance(50):
        shape = [1, *x.shape[1:]]
        if b.opset < 8 or not b.add(
            "Expand", [b.constant(b.floats(*shape), share=True), b.aside("Shape", x, np.array(x.shape))]
        ):
            return
        token = b.tensors[-1]
    b.add("Concat", [token, x] if b.chance(50) else [x, token], axis=axis)


def product(b: Builder) -> None:
    """Attention scores: a MatMul of two activations."""
    x = b.pick()
    if len(x.shape) < 3:
        return
    rank = len(x.shape)
    if b.add("Transpose", [x], perm=[*range(rank - 2), rank - 1, rank - 2]):
        other = b.tensors[-1]
        b.add("MatMul", [x, other] if b.chance(50) else [other, x])


def left_matmul(b: Builder) -> None:
    """A constant matrix on the left."""
    x = b.pick()
    if len(x.shape) >= 3:
        b.axis = len(x.shape) - 2
        b.add("MatMul", [b.constant(b.floats(b.number(1, 4), x.shape[-2]), share=True), x])


def gate(b: Builder) -> None:
    """A squeeze-and-excitation: a factor for each channel that is computed at run time."""
    x = b.pick()
    if len(x.shape) >= 3 and b.add("GlobalAveragePool", [x]) and b.add("Sigmoid", [b.tensors[-1]]):
        b.add("Mul", [x, b.tensors[-1]] if b.chance(50) else [b.tensors[-1], x])


# Ops that nothing crosses.


def block(b: Builder) -> None:
    b.add(b.one("Tanh", "Sigmoid", "Softplus"), [b.pick()])


def branch(b: Builder) -> None:
    """An If whose one body holds a convolution or product and an affine."""
    x = b.pick()
    if len(x.shape) < 2 or b.opset < 11:
        return
    flag = b.constant(np.array(b.chance(50)), plain=True)
    rank = len(x.shape)
    if rank >= 3:
        weight = b.constant(b.floats(x.shape[1], x.shape[1], *[1] * (rank - 2)), share=True)
        inner = ir.node("Conv", [x.value, weight])
    else:
        weight = b.constant(b.floats(x.shape[1], x.shape[1]), share=True)
        inner = ir.node("MatMul", [x.value, weight])
    scale = b.constant(b.floats(x.shape[1], *[1] * (rank - 2)), share=True)
    count = len(b.graph)
    nodes = [inner, ir.node("Mul", [inner.outputs[0], scale])]
    other = [ir.node("Relu", [x.value])]
    pair = []
    for name, steps in (("then", nodes), ("else", other)):
        for index, step in enumerate(steps):
            step.name, step.outputs[0].name = f"{name}{count}_{index}", f"{name}{count}_{index}"
            step.outputs[0].dtype = ir.DataType.DOUBLE
        pair.append(ir.Graph([], [steps[-1].outputs[0]], nodes=steps, name=f"{name}{count}"))
    b.add("If", [flag], then_branch=pair[0], else_branch=pair[1])


LINEAR: list[Step] = [conv, conv, conv, transposed_conv, matmul, matmul, gemm, left_matmul]
AFFINE: list[Step] = [batch_norm, batch_norm, binary, binary]
CROSSED: list[Step] = [
    *(unary, unary, unary, unary, prelu, transpose, transpose, reshape, reshape, reshape, pool, pool, pool),
    *(reduce, reduce, pad, slice_, gather, embedding, split, blocks, blocks, resize, expand, tile, join, join),
    *(branches, branches, concat, constant_join, constant_join, constant_concat, product, gate),
]
BLOCKING: list[Step] = [block, branch]


def behind(b: Builder) -> None:
    """An affine that might go back into a linear op."""
    along_a_chain(b, [LINEAR, *[CROSSED] * b.number(0, 3), AFFINE])


def ahead(b: Builder) -> None:
    """An affine that might go forward into a linear op."""
    along_a_chain(b, [BLOCKING, AFFINE, *[CROSSED] * b.number(0, 3), LINEAR])


def along_a_chain(b: Builder, kinds: Sequence[Sequence[Step]]) -> None:
    b.loyalty, before = 97, b.loyalty
    for steps in kinds:
        b.one(*steps)(b)
    b.loyalty = before


STEPS: list[Step] = [*[behind, ahead] * 10, *LINEAR, *AFFINE, *CROSSED]


@dataclass(frozen=True)
class Recipe:
    """All that decides a graph: the steps, each with the seed of its random numbers."""

    seed: int
    opset: int
    dynamic: bool
    steps: tuple[tuple[Step, int], ...]

    def __repr__(self) -> str:
        steps = ", ".join(f"({step.__name__}, {seed})" for step, seed in self.steps)
        return f"Recipe({self.seed}, {self.opset}, {self.dynamic}, ({steps},))"

    def model(self) -> ir.Model:
        """The model in double; all loose ends and some of the inner values are its outputs."""
        b = Builder(np.random.default_rng(self.seed), self.opset, self.dynamic)
        for step, seed in self.steps:
            b.random = np.random.default_rng(seed)
            step(b)
        if len(b.tensors) == 1:
            b.add("Tanh", [b.tensors[0]])
        made = {tensor.value: tensor for tensor in b.tensors if tensor.value.producer() is not None}
        for value, tensor in made.items():
            if not value.uses() or b.chance(4):
                value.shape = ir.Shape(b.declared(tensor.shape))
                b.graph.outputs.append(value)
        return ir.Model(b.graph, ir_version=8)


_SEEDS = st.integers(0, 2**20)

#: Recipes of graphs of some five to twenty nodes.
recipes = st.builds(
    Recipe,
    _SEEDS,
    st.sampled_from(OPSETS),
    st.booleans(),
    st.lists(st.tuples(st.sampled_from(STEPS), _SEEDS), min_size=2, max_size=6).map(tuple),
)
