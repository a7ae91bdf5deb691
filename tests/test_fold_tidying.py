"""Ops that compute nothing go, and nothing else does; a shift behind a product of many rows finds its Gemm."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from folding import constants, folded, model_of, ops

from bnfold.fold import fold
from bnfold.fold.report import Folded

IMAGE = "g (double[N,3,4,4] x) => (double[N,3,4,4] y)"
ROWS = "g (double[N,6,4] x) => (double[P,Q] y)"

#: Nodes before, and what is left of them.
GOES = [
    ("identity", IMAGE, "a = Identity(x) b = Tanh(a) y = Identity(b)", {"Tanh": 1}),
    ("dropout", IMAGE, "a = Dropout(x) y = Tanh(a)", {"Tanh": 1}),
    ("dropout that is told to infer", IMAGE, "a = Dropout(x, half, false) y = Tanh(a)", {"Tanh": 1}),
    ("concat of one", IMAGE, "a = Concat<axis=1>(x) y = Tanh(a)", {"Tanh": 1}),
    ("maximum of one", IMAGE, "a = Max(x) b = Min(a) c = Sum(b) d = Mean(c) y = Tanh(d)", {"Tanh": 1}),
    ("cast to the same", IMAGE, "a = Cast<to=11>(x) b = CastLike(a, x) y = Tanh(b)", {"Tanh": 1}),
    ("slice of all, by length", IMAGE, "a = Slice(x, zero, three, one) y = Tanh(a)", {"Tanh": 1}),
    ("slice of all, to the end", IMAGE, "a = Slice(x, zero, end, zero, one) y = Tanh(a)", {"Tanh": 1}),
    ("expand to the same", "g (double[2,3] x) => (double[2,3] y)", "a = Expand(x, sizes) y = Tanh(a)", {"Tanh": 1}),
    ("pad by nothing", IMAGE, "a = Pad(x, none) y = Tanh(a)", {"Tanh": 1}),
    ("pad by nothing, of what the edges hold", IMAGE, 'a = Pad<mode="edge">(x, none) y = Tanh(a)', {"Tanh": 1}),
    ("tile once", IMAGE, "a = Tile(x, once) y = Tanh(a)", {"Tanh": 1}),
    ("transpose to the same order", IMAGE, "a = Transpose<perm=[0,1,2,3]>(x) y = Tanh(a)", {"Tanh": 1}),
    ("average of one", IMAGE, "a = AveragePool<kernel_shape=[1,1]>(x) y = Tanh(a)", {"Tanh": 1}),
    ("average of one, all said", IMAGE, 'a = AveragePool<kernel_shape=[1,1], strides=[1,1], auto_pad="SAME_UPPER", ceil_mode=1, count_include_pad=1>(x) y = Tanh(a)', {"Tanh": 1}),
    ("largest of one", IMAGE, "a = MaxPool<kernel_shape=[1,1], strides=[1,1], pads=[0,0,0,0]>(x) y = Tanh(a)", {"Tanh": 1}),
    ("in a row", IMAGE, "a = Identity(x) b = Dropout(a) c = Identity(b) y = Tanh(c)", {"Tanh": 1}),
    ("list of pieces", IMAGE, "s = SplitToSequence<axis=1>(x, parts) a = SequenceAt(s, i0) b = SequenceAt(s, i1) y = Concat<axis=1>(b, a)", {"Split": 1, "Concat": 1}),
    ("list of pieces, one left out", "g (double[N,3,4,4] x) => (double[N,C,4,4] y)", "s = SplitToSequence<axis=1>(x, parts) a = SequenceAt(s, ilast) y = Tanh(a)", {"Split": 1, "Tanh": 1}),
    ("list of pieces of one size", "g (double[N,5,4] x) => (double[N,C,4] y)", "s = SplitToSequence<axis=1>(x, two) a = SequenceAt(s, i0) b = SequenceAt(s, ilast) y = Concat<axis=1>(b, a)", {"Split": 1, "Concat": 1}),
    ("one size that is computed", ROWS, "h = Shape(x) n = Gather(h, zero) t = Concat<axis=0>(n, many) y = Reshape(x, t)", {"Reshape": 1}),
    ("one size that is computed, last", "g (double[N,6,4] x) => (double[P,Q] y)", "h = Shape(x) n = Gather(h, zero) t = Concat<axis=0>(many, n) y = Reshape(x, t)", {"Reshape": 1}),
    ("transposes in a row", "g (double[N,3,4,5] x) => (double[N,4,3,5] y)", "a = Transpose<perm=[0,2,3,1]>(x) b = Transpose<perm=[0,1,3,2]>(a) y = Tanh(b)", {"Transpose": 1, "Tanh": 1}),
    ("transposes there and back", IMAGE, "a = Transpose<perm=[0,2,3,1]>(x) b = Transpose<perm=[0,3,1,2]>(a) y = Tanh(b)", {"Tanh": 1}),
    ("transposes by default", "g (double[3,4] x) => (double[3,4] y)", "a = Transpose(x) b = Transpose(a) y = Tanh(b)", {"Tanh": 1}),
    ("three transposes", "g (double[2,3,4] x) => (double[2,3,4] y)", "a = Transpose<perm=[1,2,0]>(x) b = Transpose<perm=[1,2,0]>(a) c = Transpose<perm=[1,2,0]>(b) y = Tanh(c)", {"Tanh": 1}),
    ("an axis there and back", IMAGE, "a = Unsqueeze(x, zero) b = Squeeze(a, zero) y = Tanh(b)", {"Tanh": 1}),
    ("a shape there and back", "g (double[N,6,4] x) => (double[N,6,4] y)", "a = Flatten(x) b = Reshape(a, rows) y = Tanh(b)", {"Tanh": 1}),
    ("a shape there, further and back", "g (double[N,6,4] x) => (double[N,6,4] y, double[N,24] z)", "a = Flatten(x) b = Unsqueeze(a, zero) c = Reshape(b, rows) y = Tanh(c) z = Tanh(a)", {"Tanh": 2, "Flatten": 1}),
    ("a shape that may be another", "g (double[A,B,4] x) => (double[C,D,4] y)", "a = Unsqueeze(x, zero) b = Reshape(a, pairs) y = Tanh(b)", {"Reshape": 1, "Tanh": 1}),
    ("what nobody reads", IMAGE, "a = Tanh(x) b = Sigmoid(a) c = Cast<to=1>(b) d, e = Split<axis=1>(c, parts) y = Tanh(x)", {"Tanh": 1}),
    ("reshapes in a row", ROWS, "a = Flatten(x) b = Reshape(a, cube) c = Unsqueeze(b, zero) y = Reshape(c, flat)", {"Reshape": 1}),
]  # fmt: skip

#: What looks alike, and must stay.
STAYS = [
    ("identity between an input and an output", IMAGE, "y = Identity(x)"),
    ("second name of an output", "g (double[N,4] x) => (double[N,4] y, double[N,4] z)", "y = Tanh(x) z = Identity(y)"),
    ("dropout whose mask is read", "g (double[N,4] x) => (double[N,4] y, bool[N,4] m)", "a, m = Dropout(x) y = Tanh(a)"),
    ("dropout that trains", IMAGE, "a = Dropout(x, half, true) y = Tanh(a)"),
    ("cast", IMAGE, "a = Cast<to=1>(x) b = Cast<to=11>(a) y = Tanh(b)"),
    ("slice of a part", "g (double[N,3,4,4] x) => (double[N,2,4,4] y)", "a = Slice(x, one, three, one) y = Tanh(a)"),
    ("slice backwards", IMAGE, "a = Slice(x, last, before, one, last) y = Tanh(a)"),
    ("slice of every second", "g (double[N,3,4,4] x) => (double[N,2,4,4] y)", "a = Slice(x, zero, end, one, two1) y = Tanh(a)"),
    ("slice to a length that is not known", IMAGE, "a = Slice(x, zero, three, zero) y = Tanh(a)"),
    ("pad and cut", IMAGE, "a = Pad(x, shifted) y = Tanh(a)"),
    ("pad by what is computed", "g (double[N,3,4,4] x, int64[8] p) => (double[N,3,4,4] y)", "a = Pad(x, p) y = Tanh(a)"),
    ("tile", "g (double[N,3,4,4] x) => (double[N,6,4,4] y)", "a = Tile(x, twice) y = Tanh(a)"),
    ("transpose of what is square", IMAGE, "a = Transpose<perm=[0,1,3,2]>(x) y = Tanh(a)"),
    ("transpose without an order", "g (double[4,4] x) => (double[4,4] y)", "a = Transpose(x) y = Tanh(a)"),
    ("average of every second", "g (double[N,3,4,4] x) => (double[N,3,2,2] y)", "a = AveragePool<kernel_shape=[1,1], strides=[2,2]>(x) y = Tanh(a)"),
    ("average of one, padded", "g (double[N,3,4,4] x) => (double[N,3,6,6] y)", "a = AveragePool<kernel_shape=[1,1], pads=[1,1,1,1], count_include_pad=1>(x) y = Tanh(a)"),
    ("average along one axis", IMAGE.replace("4,4] y", "4,3] y"), "a = AveragePool<kernel_shape=[1,2]>(x) y = Tanh(a)"),
    ("largest of one whose place is read", "g (double[N,3,4,4] x) => (double[N,3,4,4] y, int64[N,3,4,4] i)", "a, i = MaxPool<kernel_shape=[1,1]>(x) y = Tanh(a)"),
    ("expand", "g (double[1,3] x) => (double[2,3] y)", "a = Expand(x, sizes) y = Tanh(a)"),
    ("list that is an output", "g (double[N,3,4,4] x) => (double[N,C,4,4] y, seq(double[N,C,4,4]) s)", "s = SplitToSequence<axis=1>(x, parts) y = SequenceAt(s, i0)"),
    ("list at a position that is computed", "g (double[N,3,4,4] x, int64 p) => (double[N,C,4,4] y)", "s = SplitToSequence<axis=1>(x, parts) y = SequenceAt(s, p)"),
    ("two sizes that are computed", ROWS.replace("6", "K"), "h = Shape(x) n = Gather(h, zero) k = Gather(h, one) q = Mul(k, n) t = Concat<axis=0>(n, q, four) u = Reshape(x, t) y = ReduceSum<keepdims=0>(u, one)"),
    ("a size beside one that is open", ROWS, "h = Shape(x) n = Gather(h, zero) t = Concat<axis=0>(n, last) y = Reshape(x, t)"),
    ("reshape that copies a size", "g (double[N,6,4] x) => (double[6,N,4] z, double[P,Q] y)", "t = Transpose<perm=[1,0,2]>(x) z = Tanh(t) a = Unsqueeze(z, zero) y = Reshape(a, copy)"),
    ("transpose that others read", "g (double[N,3,4,5] x) => (double[N,4,3,5] y, double[N,4,5,3] z)", "a = Transpose<perm=[0,2,3,1]>(x) z = Tanh(a) b = Transpose<perm=[0,1,3,2]>(a) y = Tanh(b)"),
    ("another shape of as many", "g (double[N,6,4] x) => (double[N,1,24] y)", "a = Flatten(x) b = Unsqueeze(a, one) y = Tanh(b)"),
    ("shape of nothing", "g (double[N,0,4] x) => (double[M,0,4] y)", "a = Unsqueeze(x, zero) b = Slice(a, one, two1, one) c = Reshape(b, none3) y = Tanh(c)"),
    ("a batch norm that nobody reads", IMAGE, "a = Tanh(x) b = BatchNormalization(a, p3, p3, p3, p3) y = Tanh(x)"),
    ("a loop that computes for nobody", IMAGE, "a = If(true) <then_branch = t () => (double[N,3,4,4] b) { b = Tanh(x) }, else_branch = e () => (double[N,3,4,4] d) { d = Sigmoid(x) }> y = Tanh(x)"),
    ("relayout that others read", "g (double[N,6,4] x) => (double[N,24] z, double[P,Q] y)", "a = Flatten(x) z = Tanh(a) y = Reshape(a, flat)"),
]  # fmt: skip

ARRAYS: dict[str, np.ndarray] = {
    "half": np.array(0.5, np.float32), "false": np.array(False), "true": np.array(True),
    "zero": np.array([0]), "one": np.array([1]), "two1": np.array([2]), "three": np.array([3]), "four": np.array([4]),
    "end": np.array([2**63 - 1]), "last": np.array([-1]), "before": np.array([-(2**63)]), "sizes": np.array([2, 3]),
    "parts": np.array([1, 2]), "two": np.array(2), "i0": np.array(0), "i1": np.array(1), "ilast": np.array(-1), "many": np.array([24]),
    "none": np.zeros(8, np.int64), "shifted": np.array([0, 0, 1, 0, 0, 0, -1, 0]), "once": np.ones(4, np.int64), "twice": np.array([1, 2, 1, 1]),
    "rows": np.array([-1, 6, 4]), "pairs": np.array([-1, 2, 4]), "none3": np.array([0, 0, 0]), "p3": np.ones(3),
    "cube": np.array([-1, 2, 12]), "flat": np.array([-1, 8]), "copy": np.array([0, -1]),
}  # fmt: skip


def model(head: str, body: str) -> ir.Model:
    read = {n: a for n, a in ARRAYS.items() if any(f"{mark}{n}{end}" in body for mark in " (" for end in ",)")}
    return model_of(f"{head} {{ {body} }}", read, opset=18)


@pytest.mark.parametrize(
    ("opset", "body"),
    [
        (9, "a = Slice<starts=[0,0], ends=[3,2147483647], axes=[1,0]>(x) y = Tanh(a)"),
        (9, "a = Slice<starts=[0], ends=[9223372036854775807]>(x) y = Tanh(a)"),
        (9, "a = Pad<pads=[0,0,0,0,0,0,0,0]>(x) y = Tanh(a)"),
        (9, "a = AveragePool<kernel_shape=[1,1]>(x) y = Tanh(a)"),
    ],
)
def test_op_of_an_old_operator_set_that_computes_nothing_goes(opset: int, body: str) -> None:
    after, _ = folded(model_of(f"{IMAGE} {{ {body} }}", {}, opset=opset), tidy=True)
    assert ops(after) == {"Tanh": 1}


@pytest.mark.parametrize(
    "body",
    [
        "a = Slice<starts=[1], ends=[3], axes=[1]>(x) y = Tanh(a)",
        "a = Slice<starts=[0], ends=[-1], axes=[1]>(x) y = Tanh(a)",
        "a = Pad<pads=[0,0,0,1,0,0,0,0]>(x) y = Tanh(a)",
    ],
)
def test_op_of_an_old_operator_set_that_computes_something_stays(body: str) -> None:
    before = model_of(f"{IMAGE.replace('3,4,4] y', 'C,H,W] y')} {{ {body} }}", {}, opset=9)
    after, _ = folded(before, tidy=True)
    assert ops(after) == ops(before)


@pytest.mark.parametrize(("head", "body", "left"), [row[1:] for row in GOES], ids=[row[0] for row in GOES])
def test_op_that_computes_nothing_goes(head: str, body: str, left: dict[str, int]) -> None:
    after, report = folded(model(head, body), tidy=True)
    assert ops(after) == left
    assert report.nodes_before == sum(ops(model(head, body)).values())
    assert report.nodes_after == sum(left.values())


@pytest.mark.parametrize(("head", "body"), [row[1:] for row in STAYS], ids=[row[0] for row in STAYS])
def test_op_that_computes_something_stays(head: str, body: str) -> None:
    before = model(head, body)
    after = before.clone()
    fold(after, tidy=True)
    assert ops(after) == ops(before)


def test_op_that_was_not_selected_stays() -> None:
    before = model(IMAGE, "a = Identity(x) b = Dropout(a) y = Tanh(b)")
    fold(before, lambda node: node.op_type != "Identity", tidy=True)
    assert ops(before) == {"Identity": 1, "Tanh": 1}


def test_fold_leaves_idle_ops_unless_asked() -> None:
    before = model(IMAGE, "a = Identity(x) y = Tanh(a)")
    fold(before)
    assert ops(before) == {"Identity": 1, "Tanh": 1}


def test_idle_ops_of_a_branch_go_where_it_has_a_value_of_its_own() -> None:
    body = (
        "y = If (flag) <then_branch = t () => (double[N,3,4,4] p) { a = Identity(x) b = Tanh(a) p = Identity(b) },"
        " else_branch = e () => (double[N,3,4,4] q) { q = Identity(x) }>"
    )
    head = IMAGE.replace(" x)", " x, bool flag)")
    after, _ = folded(model(head, body), tidy=True)
    assert ops(after) == {"If": 1, "Tanh": 1, "Identity": 1}


#: A product of tokens, laid out in rows behind it.
TOKENS = "c = MatMul(x, w) d = Reshape(c, rows) "
BN = "BatchNormalization(d, scale, bias, mean, var)"


@pytest.mark.parametrize(
    ("body", "left"),
    [
        (f"{TOKENS} y = {BN}", {"Reshape": 1, "Gemm": 1}),
        (f"{TOKENS} y = Add(d, k)", {"Reshape": 1, "Gemm": 1}),
        (f"{TOKENS} e = {BN} y = Relu(e)", {"Reshape": 1, "Gemm": 1, "Relu": 1}),
        (f"{TOKENS} y = Mul(d, k)", {"MatMul": 1, "Reshape": 1}),
        (f"{TOKENS} y = Relu(d)", {"MatMul": 1, "Reshape": 1, "Relu": 1}),
        (f"{TOKENS} e = {BN} f = Transpose<perm=[1,0]>(d) g = Transpose<perm=[1,0]>(f) y = Add(e, g)", None),
        (f"c = MatMul(x, w) d = Reshape(c, rows) e = {BN} h = ReduceMax<keepdims=0>(c) y = Add(e, h)", None),
        (
            f"c = MatMul(x, w) d = Reshape(c, others) e = {BN.replace('scale, bias, mean, var', 's2, b2, m2, v2')} y = Relu(e)",
            None,
        ),
    ],
)
def test_shift_behind_a_product_of_rows_becomes_the_bias_of_a_gemm(body: str, left: dict[str, int] | None) -> None:
    from folding import norm

    arrays = constants(w=(4, 5), k=(5,)) | norm(5) | {n[0] + "2": a for n, a in norm(15).items()}
    arrays |= {"rows": np.array([-1, 5]), "others": np.array([-1, 15])}
    read = {n: a for n, a in arrays.items() if any(f" {n}{end}" in body for end in ",)")}
    after, report = folded(model_of(f"{ROWS} {{ {body} }}", read, opset=17))
    assert left is None or ops(after) == left
    assert left is not None or "Gemm" not in ops(after)
    for record in report.records:
        if left is not None:
            assert isinstance(record.outcome, Folded)
            assert record.outcome.remainder is None


@pytest.mark.parametrize(
    ("outputs", "also"),
    [("double[N,6,5] c", ""), ("double[N,6,5] z", "z = Relu(c)")],
    ids=["an output", "an activation"],
)
def test_product_of_rows_that_is_read_as_it_is_keeps_its_layout(outputs: str, also: str) -> None:
    """Its rank is part of what others read."""
    from folding import norm

    head = ROWS.replace("=> (", f"=> ({outputs}, ")
    arrays = constants(w=(4, 5)) | norm(5) | {"rows": np.array([-1, 5])}
    after, _ = folded(model_of(f"{head} {{ {TOKENS} y = {BN} {also} }}", arrays))
    assert ops(after)["MatMul"] == 1
