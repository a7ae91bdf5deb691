"""Constants among the inputs of joins, affine ops on the way back, and joins that broadcast."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from folding import Array, constants, folded, model_of, norm, ops, reason_of, used

from bnfold.fold import fold

BN = "BatchNormalization(c, scale, bias, mean, var)"
POOL = constants(
    w=(4, 3, 3, 3), v=(4, 3, 3, 3), w1=(1, 3, 3, 3), m=(6, 6), part=(2, 5, 6, 6), column=(2, 4, 6, 1), full=(4, 6, 6),
    image=(6, 6), two=(1, 4, 1, 6), pixels=(1, 1, 6, 6), poss=(4, 6, 6), poscols=(6,), token=(1, 4, 6, 1),
) | {"four": np.array([2, 4, 6, 6]), "empty": np.zeros((1, 4, 1, 1))}  # fmt: skip

# What stands between a convolution d of shape (2, 4, 6, 6) and the batch norm of c, and the shape of c.
TAKEN = [
    ("Concat of channels", "c = Concat<axis=1>(d, part)", "2,9,6,6"),
    ("Concat of channels, constant first", "c = Concat<axis=-3>(part, d)", "2,9,6,6"),
    ("Concat of columns", "c = Concat<axis=3>(d, column)", "2,4,6,7"),
    ("Concat of a token for each sample", "s = Shape(d) t = Expand(token, s) c = Concat<axis=3>(t, d)", "2,4,6,12"),
    ("Add of all channels and pixels", "c = Add(d, full)", "2,4,6,6"),
    ("Add of pixels", "c = Add(image, d)", "2,4,6,6"),
    ("Add of pixels in full rank", "c = Add(pixels, d)", "2,4,6,6"),
    ("Add of channels and columns", "c = Add(d, two)", "2,4,6,6"),
    ("Sub", "c = Sub(d, full)", "2,4,6,6"),
    ("Sub from", "c = Sub(image, d)", "2,4,6,6"),
    ("Sum", "e = Conv(x, v) c = Sum(d, image, e)", "2,4,6,6"),
    ("Mean", "c = Mean(d, image)", "2,4,6,6"),
    ("Max", "c = Max(d, image)", "2,4,6,6"),
    ("Min", "c = Min(two, d)", "2,4,6,6"),
    ("several", "p = Max(d, empty) q = Add(image, p) c = Concat<axis=3>(q, column)", "2,4,6,7"),
    ("a constant that is computed", "i = Identity(full) c = Add(d, i)", "2,4,6,6"),
    ("a constant of a node", "i = Constant<value = double[1,6] {1.0, 2.0, 3.0, 4.0, 5.0, 6.0}>() c = Max(d, i)", "2,4,6,6"),
    ("the same constant twice", "e = Add(d, full) f = Max(e, full) c = Add(f, full)", "2,4,6,6"),
    ("the same constant twice in one op", "c = Concat<axis=1>(part, d, part)", "2,14,6,6"),
]  # fmt: skip


def graph(body: str, shape: str, *, positive: bool = True) -> ir.Model:
    text = f"g (double[2,3,8,8] x) => (double[{shape}] y) {{ d = Conv(x, w) {body} y = {BN} }}"
    parameters = norm(int(shape.split(",")[1]))
    if positive:
        parameters["scale"] = np.abs(parameters["scale"])
    return model_of(text, used(text, POOL | parameters))


@pytest.mark.parametrize(("body", "shape"), [row[1:] for row in TAKEN], ids=[row[0] for row in TAKEN])
def test_constant_takes_its_part_of_the_affine(body: str, shape: str) -> None:
    model, report = folded(graph(body, shape), merge=False)
    assert "BatchNormalization" not in ops(model)
    assert [record.fate for record in report.records] == ["folded"]
    assert "Add" not in ops(model) or "Add" in body


@pytest.mark.parametrize(
    ("body", "scale"),
    [
        ("c = Mul(d, full)", True),
        ("c = Mul(image, d)", True),
        ("c = Div(image, d)", True),
        ("c = Div(d, poss)", True),
        ("c = MatMul(m, d)", False),
    ],
)
def test_factor_takes_the_scale(body: str, scale: bool) -> None:
    """Of several factors a constant takes it, which ends the search; a divisor never does."""
    end = "y = Mul(c, k)"
    text = f"g (double[2,3,8,8] x) => (double[2,4,6,6] y) {{ e = Conv(x, w) d = Tanh(e) {body} {end} }}"
    arrays = POOL | {"k": POOL["poss"][:, :1, :1] if scale else POOL["poss"][:1, :, :1]}
    source = model_of(text, used(text, arrays))
    model, _ = folded(source)
    assert ops(model).get("Mul", 0) == ops(source)["Mul"] - ("poss)" not in body)


BESIDE = [
    ("positions behind a bias", "b = Add(a, k4) y = Add(b, full)", {"Tanh": 1, "Add": 1}),
    ("bias behind a Sub", "b = Add(a, k4) y = Sub(full, b)", {"Tanh": 1, "Sub": 1}),
    ("and the other way round", "b = Add(a, k4) y = Sub(b, image)", {"Tanh": 1, "Sub": 1}),
    ("among several", "b = Sub(a, k4) d = Tanh(x) y = Sum(b, image, d)", {"Tanh": 2, "Sum": 1}),
    ("factors of pixels", "b = Mul(a, k4) y = Mul(b, image)", {"Tanh": 1, "Mul": 1}),
    ("factors past a gate", "b = Mul(a, k4) g = Sigmoid(x) c = Mul(b, g) y = Mul(c, full)", {"Tanh": 1, "Sigmoid": 1, "Mul": 2}),
    ("a scale does not go into a sum", "b = Mul(a, k4) y = Add(b, full)", {"Tanh": 1, "Mul": 1, "Add": 1}),
    ("nor a shift into a product", "b = Add(a, k4) y = Mul(b, full)", {"Tanh": 1, "Add": 1, "Mul": 1}),
    ("nor a scale into a divisor", "b = Mul(a, k4) y = Div(b, poss)", {"Tanh": 1, "Mul": 1, "Div": 1}),
    ("nor twice into one op", "b = Add(a, k4) c = Identity(b) y = Sum(b, c, full)", {"Tanh": 1, "Add": 1, "Identity": 1, "Sum": 1}),
]  # fmt: skip


@pytest.mark.parametrize(("body", "left"), [row[1:] for row in BESIDE], ids=[row[0] for row in BESIDE])
def test_constant_beside_an_affine_takes_it(body: str, left: dict[str, int]) -> None:
    text = f"g (double[2,4,6,6] x) => (double[2,4,6,6] y) {{ a = Tanh(x) {body} }}"
    model, _ = folded(model_of(text, used(text, POOL | constants(k4=(4, 1, 1)))))
    assert ops(model) == left


def test_merged_branches_leave_the_constant_between_them() -> None:
    text = (
        f"g (double[2,3,8,8] x) => (double[2,4,6,6] y) {{ d = Conv(x, w) e = Conv(x, v) c = Sum(d, e, full) y = {BN} }}"
    )
    model, _ = folded(model_of(text, used(text, POOL | norm(4))))
    assert ops(model) == {"Conv": 1, "Sum": 1}


def test_constant_takes_the_shift_that_a_matmul_has_no_bias_for() -> None:
    text = f"g (double[2,5,3] x) => (double[2,5,4] y) {{ d = MatMul(x, w) c = Add(d, k) y = {BN} }}"
    model, report = folded(model_of(text, constants(w=(3, 4), k=(5, 4)) | norm(5)))
    assert ops(model) == {"MatMul": 1, "Add": 1, "BatchNormalization": 1}
    assert reason_of(report) == "axis-mismatch"
    text = "g (double[2,5,3] x) => (double[2,5,4] y) { d = MatMul(x, w) c = Add(d, k) e = Mul(c, s) y = Add(e, t) }"
    model, report = folded(model_of(text, constants(w=(3, 4), k=(5, 4), s=(4,), t=(4,))))
    assert ops(model) == {"MatMul": 1, "Add": 1}
    assert report.records[0].to_json()["into"] == ["d", "k"]


def test_constant_with_other_readers_is_copied() -> None:
    text = f"g (double[2,3,8,8] x) => (double[2,4,6,6] y, double[4,6,6] z) {{ d = Conv(x, w) c = Add(d, full) y = {BN} z = Tanh(full) }}"
    model, _ = folded(model_of(text, used(text, POOL | norm(4))))
    assert "BatchNormalization" not in ops(model)
    assert np.array_equal(model.graph.initializers["full"].const_value.numpy(), POOL["full"])
    assert "full_1" in model.graph.initializers


def test_constant_that_is_an_output_is_copied() -> None:
    text = f"g (double[2,3,8,8] x) => (double[2,4,6,6] y, double[4,6,6] full) {{ d = Conv(x, w) c = Add(d, full) y = {BN} }}"
    model, _ = folded(model_of(text, used(text, POOL | norm(4))))
    assert "BatchNormalization" not in ops(model)


def test_constant_of_one_reader_keeps_its_name() -> None:
    model, _ = folded(graph("c = Add(d, full)", "2,4,6,6"))
    assert sorted(model.graph.initializers) == ["full", "w"]


def test_constant_that_callers_may_feed_is_none() -> None:
    text = f"g (double[2,3,8,8] x, double[4,6,6] full) => (double[2,4,6,6] y) {{ d = Conv(x, w) c = Add(d, full) y = {BN} }}"
    model, report = folded(model_of(text, used(text, POOL | norm(4))))
    assert reason_of(report) == "overridable-input"
    assert np.array_equal(model.graph.initializers["full"].const_value.numpy(), POOL["full"])


def test_constant_of_ir_version_3_stays_an_input() -> None:
    text = f"g (double[2,3,8,8] x) => (double[2,9,6,6] y) {{ d = Conv(x, w) c = Concat<axis=1>(d, part) y = {BN} }}"
    model, _ = folded(model_of(text, used(text, POOL | norm(9)), opset=8, ir_version=3))
    assert "BatchNormalization" not in ops(model)
    assert {v.name for v in model.graph.inputs} == {"x", *model.graph.initializers}


def test_constant_of_the_outer_scope_serves_a_branch() -> None:
    text = (
        "g (double[2,3,8,8] x, bool flag) => (double[2,4,6,6] y) { y = If (flag) <"
        f"then_branch = t () => (double[2,4,6,6] p) {{ d = Conv(x, w) c = Add(d, full) p = {BN} }},"
        "else_branch = e () => (double[2,4,6,6] q) { f = Conv(x, v) q = Add(f, full) }> }"
    )
    model, _ = folded(model_of(text, used(text, POOL | norm(4))))
    assert "BatchNormalization" not in ops(model)


def test_constant_that_would_overflow_is_an_obstacle() -> None:
    text = "g (float16[2,3,4,4] x) => (float16[2,4,4,4] y) { d = Conv(x, w) c = Add(d, k) y = Mul(c, s) }"
    arrays = {
        "w": np.ones((4, 3, 1, 1), np.float16),
        "k": np.linspace(1000, 2000, 16).reshape(4, 4).astype(np.float16),
        "s": np.array([50, 60, 70, 80], np.float16).reshape(4, 1, 1),
    }
    model = model_of(text, arrays)
    assert reason_of(fold(model)) == "overflow"
    assert ops(model) == {"Conv": 1, "Add": 1, "Mul": 1}


def test_factor_that_would_underflow_is_an_obstacle() -> None:
    """The other factor may be large, so that the product is none too small."""
    text = "g (float16[2,4,6] x) => (float16[2,4,6] y) { a = Tanh(x) c = MatMul(k, a) y = Mul(c, s) }"
    arrays = {
        "k": np.full((4, 4), 0.5, np.float16),
        "s": np.array([1, 1, 1, 1e-6]).reshape(4, 1).astype(np.float16),
    }
    model = model_of(text, arrays)
    assert reason_of(fold(model)) == "underflow"
    arrays["s"] = np.array([1, 1, 1, 0]).reshape(4, 1).astype(np.float16)
    model = model_of(text, arrays)
    fold(model)
    assert "Mul" not in ops(model)


def test_constant_is_rounded_once_however_many_affines_reach_it() -> None:
    text = (
        "g (float16[2,3,4,4] x) => (float16[2,4,4,5] y) { d = Conv(x, w) c = Concat<axis=3>(d, k) "
        "e = Mul(c, s) f = Identity(e) g = Mul(f, t) h = Add(g, u) y = Identity(h) }"
    )
    arrays = constants(w=(4, 3, 1, 1), k=(2, 4, 4, 1), s=(4, 1, 1), t=(4, 1, 1), u=(4, 1, 1))
    stored = {name: array.astype(np.float16) for name, array in arrays.items()}
    model = model_of(text, stored)
    fold(model)
    wide = {name: array.astype(np.float64) for name, array in stored.items()}
    wanted = (wide["k"] * (wide["s"] * wide["t"]) + wide["u"]).astype(np.float16)
    assert "Mul" not in ops(model)
    assert np.array_equal(model.graph.initializers["k"].const_value.numpy(), wanted)


@pytest.mark.parametrize(
    ("body", "shape", "arrays"),
    [
        ("c = Add(d, big)", (1, 64, 40, 40), constants(big=(40, 40))),
        ("c = Add(d, big) z = Tanh(big)", (1, 64, 40, 40), constants(big=(64, 40, 40))),
        (
            "e = Expand(big, to) c = Add(d, e)",
            (1, 1100, 8, 8),
            constants(big=(1, 8, 8)) | {"to": np.array([1100, 8, 8])},
        ),
        ("e = Identity(big) z = Tanh(big) c = Add(d, e)", (1, 64, 40, 40), constants(big=(64, 40, 40))),
    ],
    ids=["grows", "shared", "expanded", "shared behind an op"],
)
def test_file_does_not_grow_for_an_op_less(body: str, shape: tuple[int, ...], arrays: dict[str, Array]) -> None:
    channels, *pixels = shape[1:]
    text = (
        f"g (double[1,1,{pixels[0]},{pixels[1]}] x) => (double[1,{channels},{pixels[0]},{pixels[1]}] y) "
        f"{{ d = Conv(x, w) {body} y = {BN} }}"
    )
    model = model_of(text, constants(w=(channels, 1, 1, 1)) | norm(channels) | arrays)
    assert reason_of(fold(model)) == "more-work"


def test_large_constant_that_is_rearranged_gives_way() -> None:
    text = f"g (double[1,1,40,40] x) => (double[1,64,40,40] y) {{ d = Conv(x, w) e = Transpose<perm=[2,0,1]>(big) c = Add(d, e) y = {BN} }}"
    model, _ = folded(model_of(text, constants(w=(64, 1, 1, 1), big=(40, 40, 64)) | norm(64)))
    assert ops(model) == {"Conv": 1, "Add": 1}


def test_embedding_takes_the_scale_of_what_it_looks_up() -> None:
    text = "g (int64[N,7] i) => (double[N,7,5] y) { e = Gather(table, i) f = Mul(e, k) y = Tanh(f) }"
    model, _ = folded(model_of(text, constants(table=(9, 5)) | {"k": np.array(2.5)}))
    assert ops(model) == {"Gather": 1, "Tanh": 1}


# Affine ops on the way back.

BETWEEN = [
    (
        "bias of a matmul before a transpose",
        "g (double[N,7,5] x) => (double[N,4,7] y) { a = MatMul(x, w) b = Add(a, k) c = Transpose<perm=[0,2,1]>(b) "
        f"y = {BN} }}",
        constants(w=(5, 4), k=(4,)) | norm(4),
        {"MatMul": 1, "Add": 1, "Transpose": 1},
    ),
    (
        "bias of a matmul that is subtracted",
        "g (double[N,3,5] x) => (double[N,3,4] y) { a = MatMul(x, w) b = Sub(a, k) d = MatMul(x, v) c = Max(b, d, l) y = Mul(c, s) }",
        {n: np.abs(a) if n == "s" else a for n, a in constants(w=(5, 4), v=(5, 4), k=(4,), l=(4,), s=(4,)).items()},
        {"MatMul": 2, "Sub": 1, "Max": 1},
    ),
    (
        "subtracted from a constant",
        f"g (double[N,5] x) => (double[N,4] y) {{ a = MatMul(x, w) r = Relu(a) b = Sub(k, r) c = Max(b, l) y = {BN} }}",
        constants(w=(5, 4), k=(1, 1), l=(4,)) | {n: np.abs(a) if n in ("scale", "var") else a for n, a in norm(4).items()},
        {"MatMul": 1, "Relu": 1, "Sub": 1, "Max": 1},
    ),
    (
        "batch norm that could go nowhere",
        "g (double[N,4,6,6] x) => (double[N,4,5,5] y) { a = Tanh(x) b = BatchNormalization(a, s, bias, mean, var) "
        f"c = MaxPool<kernel_shape=[2,2]>(b) y = {BN} }}",
        {n: np.abs(a) if n == "scale" else a for n, a in norm(4).items()} | constants(3, s=(4,)),
        {"Tanh": 1, "BatchNormalization": 1, "MaxPool": 1},
    ),
    (
        "factor and divisor",
        "g (double[N,4,6,6] x) => (double[N,4,6,6] y) { a = Tanh(x) b = Mul(a, k) c = Dropout(b) d = Div(c, pos) "
        "e = Dropout(d) f = Mul(e, k) y = Tanh(f) }",
        constants(k=(4, 1, 1), pos=(4, 1, 1)),
        {"Tanh": 2, "Mul": 1, "Dropout": 2},
    ),
    (
        "scale of the columns behind a scale of the channels",
        "g (double[2,4,6,5] x) => (double[2,4,6,6] y) { a = MatMul(x, w) b = Mul(a, k) c = Dropout(b) y = Mul(c, l) }",
        constants(w=(5, 6), k=(4, 1, 1), l=(6,)),
        {"MatMul": 1, "Mul": 1, "Dropout": 1},
    ),
    (
        "attention: scales of the heads' channels go back to the values",
        "g (double[N,7,5] x, double[N,7,7] scores) => (double[N,7,4] y) { a = MatMul(x, w) b = Add(a, k) v = Mul(b, k) "
        "c = MatMul(scores, v) d = Mul(c, k) y = Tanh(d) }",
        constants(w=(5, 4), k=(4,)),
        {"MatMul": 2, "Add": 1, "Tanh": 1},
    ),
    (
        "attention: the factor of the scores stays where runtimes look for it",
        "g (double[N,7,5] x) => (double[N,7,7] y) { q = MatMul(x, w) kk = MatMul(x, v) "
        "kt = Transpose<perm=[0,2,1]>(kk) s = MatMul(q, kt) d = Div(s, r) y = Softmax(d) }",
        constants(w=(5, 4), v=(5, 4)) | {"r": np.array(2.0)},
        {"MatMul": 3, "Transpose": 1, "Div": 1, "Softmax": 1},
    ),
]  # fmt: skip


@pytest.mark.parametrize(("text", "arrays", "left"), [c[1:] for c in BETWEEN], ids=[c[0] for c in BETWEEN])
def test_affine_op_on_the_way_back_absorbs_or_lets_pass(
    text: str, arrays: dict[str, Array], left: dict[str, int]
) -> None:
    model, _ = folded(model_of(text, arrays))
    assert ops(model) == left


def test_affine_op_that_was_not_chosen_absorbs_nothing() -> None:
    text = BETWEEN[0][1]
    model, report = folded(model_of(text, BETWEEN[0][2]), selected=lambda node: node.op_type != "Add")
    assert ops(model)["BatchNormalization"] == 1
    assert "not-selected" in {str(record.outcome.backward.reason) for record in report.batch_norms}  # type: ignore[union-attr]


SUMS = [
    ("gate first", "g = Sigmoid(d) c = Mul(g, e)", True),
    ("gate last", "g = Sigmoid(d) c = Mul(e, g)", True),
    ("shift past a Relu, to the second", "r = Relu(d) c = Add(r, e)", False),
    ("shift past a Relu, to the first", "r = Relu(d) c = Sub(e, r)", False),
    ("shift to the last of a nest", "r = Relu(d) f = Conv(x, w) s = Relu(f) h = Add(s, e) c = Add(r, h)", False),
    ("shift to the second of a sum", "r = Relu(d) f = Conv(x, w) s = Relu(f) c = Sum(r, e, s)", False),
]


@pytest.mark.parametrize(("body", "scale"), [row[1:] for row in SUMS], ids=[row[0] for row in SUMS])
def test_input_that_can_take_it_is_found(body: str, scale: bool) -> None:
    text = f"g (double[2,3,8,8] x) => (double[2,4,6,6] y) {{ d = Conv(x, w) e = Conv(x, v) {body} y = {BN} }}"
    parameters = norm(4)
    parameters["scale"] = np.abs(parameters["scale"])
    if scale:
        parameters["bias"], parameters["mean"] = np.zeros(4), np.zeros(4)
    model, _ = folded(model_of(text, used(text, POOL | parameters)))
    assert "BatchNormalization" not in ops(model)


def test_shift_behind_a_factor_has_no_place() -> None:
    text = (
        "g (double[N,4,6,6] x) => (double[N,4,6,6] y) { a = Tanh(x) b = Mul(a, k) d = Sigmoid(x) e = Mul(d, k) "
        f"c = Add(b, e) y = {BN} }}"
    )
    factor = np.array([1.5, 0.0, -2.0, 3.0]).reshape(4, 1, 1)  # nothing can be divided by it
    model, report = folded(model_of(text, {"k": factor} | norm(4)))
    assert ops(model)["BatchNormalization"] == 1
    assert str(report.batch_norms[0].outcome.backward.reason) == "nonzero-shift"  # type: ignore[union-attr]


def test_shift_of_another_axis_stays() -> None:
    text = (
        "g (double[2,4,6,5] x) => (double[2,4,6,6] y) { a = MatMul(x, w) b = Add(a, k) c = Dropout(b) y = Mul(c, l) }"
    )
    model, report = folded(model_of(text, constants(w=(5, 6), k=(4, 1, 1), l=(6,))))
    assert ops(model)["Mul"] == 1
    assert reason_of(report) == "axis-mismatch"


def test_both_halves_of_a_split_go_back_to_one_conv() -> None:
    text = (
        "g (double[N,3,8,8] x) => (double[N,2,6,6] y, double[N,2,6,6] z) { d = Conv(x, w) c, e = Split<axis=1>(d, halves) "
        f"y = {BN} z = BatchNormalization(e, scale, bias, mean, var) }}"
    )
    model, _ = folded(model_of(text, constants(w=(4, 3, 3, 3)) | norm(2) | {"halves": np.array([2, 2])}))
    assert ops(model) == {"Conv": 1, "Split": 1}


# Chains of which a part can go.

PARTS = [
    (
        "scale back across a Relu, the shift stays",
        "g (double[N,3,8,8] x) => (double[N,4,6,6] y) { a = Conv(x, w) b = Relu(a) c = Mul(b, pos) d = Add(c, k) y = Tanh(d) }",
        constants(w=(4, 3, 3, 3), pos=(4, 1, 1), k=(4, 1, 1)),
        {"Conv": 1, "Relu": 1, "Add": 1, "Tanh": 1},
    ),
    (
        "scale forward into a padded conv, the shift stays",
        "g (double[N,4,6,6] x) => (double[N,4,6,6] y) { a = Tanh(x) b = Add(a, k) c = Mul(b, pos) y = Conv<pads=[1,1,1,1]>(c, w) }",
        constants(w=(4, 4, 3, 3), pos=(4, 1, 1), k=(4, 1, 1)),
        {"Tanh": 1, "Add": 1, "Conv": 1},
    ),
    (
        "scale back, shift forward",
        "g (double[N,3,8,8] x) => (double[N,4,6,6] y) { a = Conv(x, w) b = Relu(a) c = Mul(b, pos) d = Add(c, k) y = Conv(d, v) }",
        constants(w=(4, 3, 3, 3), v=(4, 4, 1, 1), pos=(4, 1, 1), k=(4, 1, 1)),
        {"Conv": 2, "Relu": 1},
    ),
    (
        "of a batch norm between a Neg and a Mul, the Mul alone",
        "g (double[N,4,6,6] x) => (double[N,4,6,6] y) { a = Tanh(x) b = Neg(a) c = BatchNormalization(b, scale, bias, mean, var) "
        "d = Mul(c, k) y = Conv<pads=[1,1,1,1]>(d, w) }",
        constants(w=(4, 4, 3, 3), k=(4, 1, 1)) | norm(4),
        {"Tanh": 1, "BatchNormalization": 1, "Conv": 1},
    ),
]  # fmt: skip


@pytest.mark.parametrize(("text", "arrays", "left"), [c[1:] for c in PARTS], ids=[c[0] for c in PARTS])
def test_part_of_a_chain_goes_where_the_whole_cannot(text: str, arrays: dict[str, Array], left: dict[str, int]) -> None:
    model, report = folded(model_of(text, arrays))
    assert ops(model) == left
    assert report.records


def test_part_that_the_dtype_can_hold_goes() -> None:
    text = "g (float16[N,3,4,4] x) => (float16[N,4,4,4] y) { a = Conv(x, w) b = Mul(a, k) c = Mul(b, k) y = Relu(c) }"
    model = model_of(text, {"w": np.full((4, 3, 1, 1), 8, np.float16), "k": np.array(100, np.float16)})
    fold(model)
    assert ops(model) == {"Conv": 1, "Mul": 1, "Relu": 1}
    assert np.all(model.graph.initializers["w"].const_value.numpy() == 800)


def test_batch_norm_behind_what_a_part_left_has_its_record() -> None:
    text = (
        "g (double[N,5,4] x) => (double[N,5,3] y) { a = MatMul(x, w) b = Add(a, k) c = Mul(b, l) "
        "d = BatchNormalization(c, scale, bias, mean, var) y = MatMul(d, v) }"
    )
    model, report = folded(model_of(text, constants(w=(4, 5), k=(5,), l=(5,), v=(5, 3)) | norm(5)))
    assert len(report.batch_norms) == 1
    assert ops(model)["MatMul"] == 2
