"""What is said of a value's shape, and of values that are said not to change, holds whatever is fed.

Graphs of shape arithmetic are drawn node by node, and run as they are drawn with inputs of two sizes; what fails to run
with either is left out. ``BNFOLD_GRAPHS=20000 pytest tests/test_shapes_random.py`` runs the deep profile.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import NodeProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from bnfold.graph import ModelGraph

GRAPHS = int(os.environ.get("BNFOLD_GRAPHS", "300"))

Array = NDArray[Any]

#: Larger arrays are left out of the graphs.
_LARGEST = 4096

#: Where a Slice begins and ends.
_STARTS, _ENDS = (0, 0, 1, 1, -2), (1, 2, 9, 9, -1)

#: What the input may be declared as, and the sizes that it is fed with.
INPUTS: list[tuple[Sequence[int | str], Sequence[Sequence[int]]]] = [
    (["N", 6, "M"], [[2, 6, 5], [3, 6, 4]]),
    ([4, 20], [[4, 20]]),
    (["N", 20], [[1, 20], [3, 20]]),
]


@dataclass
class Drawing:
    """A graph that is being drawn, with the value of everything in it for each of the feeds.

    Attributes:
        opset: the operator set.
        declared: the shape of the input, and
        fed: those that it is fed with.
        nodes: so far.
        constants: the initializers.
        values: of everything with a name, for each of the feeds.
    """

    opset: int
    declared: Sequence[int | str]
    fed: Sequence[Sequence[int]]
    nodes: list[NodeProto] = field(default_factory=list)
    constants: dict[str, Array] = field(default_factory=dict)
    values: list[dict[str, Array]] = field(init=False)

    def __post_init__(self) -> None:
        self.values = [{"x": np.zeros(shape, np.float32)} for shape in self.fed]
        self.add("Shape", ["x"])

    def named(self, accepts: Callable[[Array], bool]) -> list[str]:
        """The names of values of a kind but constants, the latest first."""
        found = [name for name, value in self.values[0].items() if accepts(value) and name not in self.constants]
        return found[::-1]

    def constant(self, *numbers: int) -> str:
        """A new vector of integers."""
        name = f"k{len(self.constants)}"
        self.constants[name] = np.array(numbers, np.int64)
        for values in self.values:
            values[name] = self.constants[name]
        return name

    def add(self, op_type: str, inputs: Sequence[str], **attributes: Any) -> None:
        """Append a node, unless it does not run with each of the feeds, or makes something large or empty.

        What is empty has a size of 0, which a Reshape takes for another than the inference does.
        """
        name = f"v{len(self.nodes)}"
        node = helper.make_node(op_type, list(inputs), [name], **attributes)
        try:
            results = [_run(node, values, self.opset) for values in self.values]
        except Exception:  # of any class: the reference implementation has none of its own
            return
        if all(isinstance(result, np.ndarray | np.generic) and 0 < result.size <= _LARGEST for result in results):
            self.nodes.append(node)
            for values, result in zip(self.values, results, strict=True):
                values[name] = np.asarray(result)

    def model(self) -> ir.Model:
        """The model, of which the last value is the output."""
        inputs = [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, self.declared)]
        output = onnx.ValueInfoProto(name=self.nodes[-1].output[0])
        weights = [numpy_helper.from_array(array, name) for name, array in self.constants.items()]
        graph = helper.make_graph(self.nodes, "g", inputs, [output], weights)
        return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)]))


def _run(node: NodeProto, values: dict[str, Array], opset: int) -> Any:
    inputs = {name: values[name] for name in node.input if name}
    graph = helper.make_graph(
        [node],
        "one",
        [onnx.ValueInfoProto(name=name) for name in inputs],
        [onnx.ValueInfoProto(name=node.output[0])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    return ReferenceEvaluator(model).run(None, inputs)[0]


def _is_tensor(value: Array) -> bool:
    return value.dtype == np.float32


def _is_integers(value: Array) -> bool:
    return value.dtype == np.int64 and value.ndim <= 1


def _is_one(value: Array) -> bool:
    return _is_integers(value) and value.shape == (1,)


@st.composite
def drawings(draw: Callable[[st.SearchStrategy[Any]], Any]) -> Drawing:
    """A graph that begins with ``Shape(x)``."""
    drawing = Drawing(draw(st.sampled_from([9, 10, 11, 12, 13, 14, 17, 21])), *draw(st.sampled_from(INPUTS)))
    for _ in range(draw(st.integers(2, 12))):
        _draw_node(drawing, draw)
    return drawing


def _draw_node(drawing: Drawing, draw: Callable[[st.SearchStrategy[Any]], Any]) -> None:
    def one_of(accepts: Callable[[Array], bool]) -> str:
        found = drawing.named(accepts)
        latest = found[: 2 if draw(st.booleans()) else None]  # what is made is to be read
        return str(draw(st.sampled_from(latest))) if found else drawing.constant(draw(small))

    def bound(numbers: Sequence[int]) -> str:
        how = draw(st.sampled_from(["stored", "stored", "Identity", "Mod", "computed", "computed"]))
        if how == "computed":
            return one_of(_is_one)
        stored = drawing.constant(draw(st.sampled_from(numbers)))
        if how == "stored":
            return stored
        # The inference computes neither, and should not know better for that.
        drawing.add(how, [stored, drawing.constant(7)] if how == "Mod" else [stored])
        return drawing.nodes[-1].output[0]

    small = st.integers(-3, 6)
    kind = draw(st.sampled_from(["size", "integers", "integers", "slice", "part", "tensor", "tensor"]))
    match kind:
        case "size":
            bounds = {"start": draw(st.integers(-2, 2)), "end": draw(st.integers(-1, 4))}
            drawing.add(*draw(st.sampled_from([("Shape", [one_of(_is_tensor)]), ("Size", [one_of(_is_tensor)])])))
            if drawing.opset >= 15:
                drawing.add("Shape", [one_of(_is_tensor)], **bounds)
        case "integers":
            _draw_integers(drawing, draw, one_of(_is_integers), one_of(_is_integers))
        case "slice":
            data, axis = (
                one_of(lambda value: _is_tensor(value) or _is_integers(value)),
                draw(st.sampled_from([0, 0, 1, -1])),
            )
            if drawing.opset < 10:
                starts, ends = draw(st.sampled_from(_STARTS)), draw(st.sampled_from(_ENDS))
                drawing.add("Slice", [data], axes=[axis], starts=[starts], ends=[ends])
            else:
                steps = draw(st.sampled_from([1, 1, 2, -1]))
                drawing.add(
                    "Slice", [data, bound(_STARTS), bound(_ENDS), drawing.constant(axis), drawing.constant(steps)]
                )
        case "part" if drawing.opset >= 10:  # of sizes, along the only axis that they have
            drawing.add("Slice", [one_of(_is_integers), bound(_STARTS), bound(_ENDS)])
        case "tensor":
            _draw_tensor(drawing, draw, one_of(_is_tensor), one_of(_is_integers))


def _draw_integers(drawing: Drawing, draw: Callable[[st.SearchStrategy[Any]], Any], one: str, other: str) -> None:
    """A node that makes integers of integers."""
    op_type = draw(
        st.sampled_from(["Gather", "Concat", "Add", "Sub", "Mul", "Div", "ReduceProd", "Squeeze", "Identity"])
    )
    match op_type:
        case "Gather":
            places = draw(st.lists(st.integers(-3, 2), min_size=1, max_size=3))
            drawing.add("Gather", [one, drawing.constant(*places)], axis=0)
        case "Concat":
            drawing.add(
                "Concat", [one, other if draw(st.booleans()) else drawing.constant(draw(st.integers(-1, 3)))], axis=0
            )
        case "ReduceProd":
            drawing.add("ReduceProd", [one], keepdims=draw(st.integers(0, 1)))
        case "Squeeze" if drawing.opset < 13:
            drawing.add("Squeeze", [one], axes=[0])
        case "Squeeze":
            drawing.add("Squeeze", [one, drawing.constant(0)])
        case "Identity":
            drawing.add("Identity", [one])
        case _:
            drawing.add(op_type, [one, other if draw(st.booleans()) else drawing.constant(draw(st.integers(1, 4)))])


def _draw_tensor(drawing: Drawing, draw: Callable[[st.SearchStrategy[Any]], Any], one: str, sizes: str) -> None:
    """A node that makes a tensor of a tensor, or of sizes."""
    kinds = ["Reshape"] * 4 + ["ConstantOfShape"] * 3 + ["Expand"] * 2
    kinds += ["Tile", "Flatten", "Transpose", "Relu", "ReduceMean", "Unsqueeze", "Concat"]
    op_type = draw(st.sampled_from(kinds))
    axis = draw(st.integers(-2, 2))
    match op_type:
        case "Tile" if drawing.values[0][one].ndim != drawing.values[0][sizes].size:
            return  # numpy would, and ONNX does not
        case "Reshape" | "Expand" | "Tile":
            drawing.add(op_type, [one, sizes])
        case "ConstantOfShape":
            drawing.add(op_type, [sizes])
        case "Flatten":
            drawing.add(op_type, [one], axis=abs(axis))
        case "ReduceMean" if drawing.opset < 18:
            drawing.add(op_type, [one], axes=[abs(axis)], keepdims=draw(st.integers(0, 1)))
        case "ReduceMean":
            drawing.add(op_type, [one, drawing.constant(axis)], keepdims=draw(st.integers(0, 1)))
        case "Unsqueeze" if drawing.opset < 13:
            drawing.add(op_type, [one], axes=[abs(axis)])
        case "Unsqueeze":
            drawing.add(op_type, [one, drawing.constant(axis)])
        case "Concat":
            drawing.add(op_type, [one, one], axis=abs(axis))
        case _:
            drawing.add(op_type, [one])


@settings(max_examples=GRAPHS, deadline=None, suppress_health_check=list(HealthCheck))
@given(drawings())
def test_shapes_and_constants_are_what_runs(drawing: Drawing) -> None:
    graph = ModelGraph(drawing.model())
    for values in drawing.values:
        named = dict(zip(drawing.declared, values["x"].shape, strict=True))
        for node in graph.model.graph:
            output = node.outputs[0]
            value = values[str(output.name)]
            constant = graph.constants.array(output)
            assert constant is None or np.array_equal(constant, value), f"{output.name} is no constant"
            shape = graph.shapes.shape(output)
            assert shape is None or len(shape) == value.ndim, f"{output.name} has not the rank of {shape}"
            for said, size in zip(shape or (), value.shape, strict=False):
                known = named.setdefault(said, size) if isinstance(said, str) else said
                assert known in (None, size), f"{output.name} is {value.shape}, not {shape}"
