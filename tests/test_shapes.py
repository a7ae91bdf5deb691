"""What is known of shapes that are computed, at operator sets of which the inference itself knows less."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator

from bnfold.fold import fold
from bnfold.graph import ModelGraph
from bnfold.opset14 import as_of_14
from bnfold.shapes import infer_shapes

CONSTANTS = (
    "int64[1] zero = {0}, int64[1] one = {1}, int64[1] two = {2}, int64[1] rest = {-1}, int64[1] k = {3}, int64[1] many = {120}, "
    "float[4] twice = {1, 1, 2, 2}, int64[4] sizes = {2, 3, 4, 1}"
)
IMAGE = "float[N,6,4,5] x"


def model(opset: int, body: str, inputs: str = IMAGE) -> ir.Model:
    text = f'<ir_version: 7, opset_import: ["": {opset}]> g ({inputs}) => (float y) <{CONSTANTS}> {{ {body} }}'
    proto = onnx.parser.parse_model(text)
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    return ir.from_proto(proto)


def known(made: ir.Model) -> dict[str, tuple[int | str | None, ...] | None]:
    shapes = infer_shapes(made)
    return {str(value.name): shapes.inferred(value) for node in made.graph for value in node.outputs}


#: opset, how a shape is computed, the dimensions of y but the first; ``_`` is a computed Reshape of x, of two axes.
FLAT = "s = Shape(x) n = Gather(s, zero) f = Concat<axis=0>(n, many) _ = Reshape(x, f)"
SHAPES = [
    (9, "s = Shape(x) n = Slice<axes=[0], starts=[0], ends=[2]>(s) t = Concat<axis=0>(n, rest) y = Reshape(x, t)", (6, None)),
    (9, "s = Shape(x) n = Slice<starts=[0], ends=[2]>(s) t = Concat<axis=0>(n, rest) r = Reshape(x, t) y = Relu(r)", (6, None)),
    (11, "s = Shape(x) n = Slice(s, zero, two, zero, one) t = Concat<axis=0>(n, rest) y = Reshape(x, t)", (6, None)),
    (12, "s = Shape(x) n = Gather(s, one) m = Mul(n, two) t = Concat<axis=0>(rest, m) y = Reshape(x, t)", (12,)),
    (13, "s = Shape(x) n = Slice(s, zero, two, zero, one) t = Concat<axis=0>(n, rest) y = Reshape(x, t)", (6, None)),
    (12, f"{FLAT} u = Unsqueeze<axes=[2,-1]>(_) y = Squeeze<axes=[2]>(u)", (120, 1)),
    (12, f"{FLAT} a, b = Split<axis=1, split=[20,100]>(_) y = Relu(b)", (100,)),
    (12, f"{FLAT} y = ReduceSum<axes=[1], keepdims=1>(_)", (1,)),
    (9, f"{FLAT} y = Slice<axes=[1], starts=[10], ends=[2147483647]>(_)", (110,)),
    (9, f"{FLAT} y = Pad<pads=[0,1,0,2], value=0.5>(_)", (123,)),
    (9, f"{FLAT} y, i = TopK<axis=1, k=7>(_)", (7,)),
    (10, f"{FLAT} y, i = TopK<axis=1>(_, k)", (3,)),
    (9, f"{FLAT} c = Clip<min=0.0, max=6.0>(_) d = Dropout<ratio=0.3>(c) y = Softmax(d)", (120,)),
    (9, f"{FLAT} u = Upsample(x, twice) y = Relu(u)", (6, 8, 10)),
    (10, f"{FLAT} u = Resize(x, twice) y = Relu(u)", (6, 8, 10)),
]  # fmt: skip


@pytest.mark.parametrize(("opset", "body", "wanted"), SHAPES, ids=[f"{row[0]} {row[1][-50:]}" for row in SHAPES])
def test_shapes_behind_a_reshape_to_a_computed_shape_are_known(
    opset: int, body: str, wanted: tuple[int | None, ...]
) -> None:
    found = known(model(opset, body.replace("_", "flat")))
    assert None not in found.values()
    assert tuple(size if isinstance(size, int) else None for size in (found["y"] or ())[1:]) == wanted


def test_what_is_inferred_inside_of_branches_is_kept() -> None:
    body = (
        "s = Shape(x) n = Slice(s, zero, two, zero, one) t = Concat<axis=0>(n, rest) r = Reshape(x, t)"
        " y = If(c) <then_branch = a () => (float a1) { u = Unsqueeze<axes=[0]>(r) a1 = Squeeze<axes=[0]>(u) },"
        " else_branch = b () => (float b1) { b1 = Neg(r) }>"
    )
    made = model(11, body, f"{IMAGE}, bool c")
    shapes = infer_shapes(made)
    inner = {str(v.name): shapes.inferred(v) for node in made.graph.all_nodes() for v in node.outputs}
    assert {name: len(inner[name] or ()) for name in ("u", "a1", "b1")} == {"u": 4, "a1": 3, "b1": 3}


def test_a_mask_that_is_made_of_numbers_is_not_taken_for_truth_values() -> None:
    """Those of a Dropout are in 9, and are not in 14."""
    made = model(9, f"{FLAT} d, m = Dropout(x) z = Relu(_) y = Add(m, d)".replace("_", "flat"))
    shapes = infer_shapes(made)
    values = {str(value.name): value for node in made.graph for value in node.outputs}
    assert shapes.dtype(values["m"]) is not ir.DataType.BOOL


def test_nothing_of_14_is_believed_where_it_knows_less() -> None:
    """Of a batch norm that trains, say, which told so by its outputs in 9."""
    body = f"{FLAT} c, m1, v1, m2, v2 = BatchNormalization(x, p, p, p, p) z = Relu(_) y = Neg(c)".replace("_", "flat")
    found = known(model(9, body, f"{IMAGE}, float[6] p"))
    assert found["c"] == ("N", 6, 4, 5)
    assert found["z"] is None


@pytest.mark.parametrize("more", ["", "c, m1, v1, m2, v2 = BatchNormalization(x, p, p, p, p)"])
def test_size_that_a_slice_changed_does_not_keep_its_name(more: str) -> None:
    """In 10, the inference says that it does; 14 knows, but is not believed where it knows less of something else."""
    found = known(model(10, f"v = Slice(x, zero, one, zero, one) {more} y = Relu(v)", f"{IMAGE}, float[6] p"))
    assert found["v"] is not None
    assert found["v"][0] != "N"
    assert found["v"][1:] == (6, 4, 5)


@pytest.mark.parametrize("opset", [8, 14, 17])
def test_other_operator_sets_are_left_alone(opset: int) -> None:
    assert as_of_14(ir.to_proto(model(opset, "y = Relu(x)"))) is None


#: Bounds of a Slice that are computed, of which the inference takes what it does not know for 0.
BOUNDS = [
    ("st = Mod(one, two) d = Slice(s, st, many, zero)", [20]),
    ("st = Identity(one) d = Slice(s, st, many)", [20]),
    ("st = Div(two, two) en = Mod(two, k) d = Slice(s, st, en, zero, one)", [20]),
    ("st = Mod(two, k) d = Slice(s, zero, many, zero, st)", [4]),
]


@pytest.mark.parametrize(("body", "sizes"), BOUNDS)
@pytest.mark.parametrize("opset", [13, 14, 21])
def test_slice_of_a_shape_by_computed_bounds_is_not_taken_for_another(opset: int, body: str, sizes: list[int]) -> None:
    """Otherwise the size below would be written into the file as the 1 that the inference found."""
    text = f"s = Shape(x) {body} c = Concat<axis=0>(rest, d) r = Reshape(x, c) t = Shape(r) n = Gather(t, zero) y = Cast<to=1>(n)"
    made = model(opset, text, "float[4,20] x")
    graph = ModelGraph(made)
    value = next(value for node in made.graph for value in node.outputs if value.name == "n")
    found = graph.constants.array(value)
    assert found is None or found.tolist() == [80 // sizes[0]]
    fold(made, tidy=True)
    feeds = {"x": np.ones((4, 20), np.float32)}
    assert ReferenceEvaluator(ir.to_proto(made)).run(None, feeds)[0].tolist() == [80 // sizes[0]]
