"""Linear ops that become one: each row a sum of branches or ops in a row, and what is left of it; or why it stays."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from folding import Array, constants, feeds_of, folded, model_of, norm, ops

from bnfold.fold import fold
from bnfold.fold.report import FoldReport, Merged

#: Constants by name; a row takes those that its graph mentions.
ARRAYS = constants(
    w3=(4, 4, 3, 3), v3=(4, 4, 3, 3), w1=(4, 4, 1, 1), v1=(4, 4, 1, 1), w31=(4, 4, 3, 1), w13=(4, 4, 1, 3),
    w5=(4, 4, 5, 5), w2=(4, 4, 2, 2), d3=(4, 1, 3, 3), e3=(4, 1, 3, 3), d1=(4, 1, 1, 1), g3=(4, 2, 3, 3), n3=(6, 4, 3, 3),
    up1=(16, 4, 1, 1), down3=(4, 16, 3, 3), down1=(4, 16, 1, 1), up3=(16, 4, 3, 3), t2=(4, 4, 2, 2), s2=(4, 4, 2, 2),
    b=(4,), c=(4,), p=(4, 4), q=(4, 4), r=(4, 4), pu=(4, 16), pd=(16, 4), row=(3, 4), col=(4, 1, 1),
    big=(8, 8), low=(8, 2), high=(2, 8), alpha=(),
    one3=(4, 4, 3), one1=(4, 4, 1), cube3=(4, 4, 3, 3, 3), cube1=(4, 4, 1, 1, 1),
) | norm(4) | norm(4, "2") | norm(4, "3")  # fmt: skip
BN = "BatchNormalization"


def graph_of(body: str, signature: str = "", **others: tuple[int, ...]) -> ir.Model:
    """A model that computes y from x; ``others`` are shapes of constants that no other row has."""
    arrays: dict[str, Array] = {**ARRAYS, **constants(3, **others)}
    arrays = {n: a for n, a in arrays.items() if f" {n}," in body or f" {n})" in body}
    return model_of(f"g ({signature or 'double[N,4,8,8] x) => (double[N,4,8,8] y'}) {{ {body} }}", arrays)


HALF = "double[N,4,8,8] x) => (double[N,4,4,4] y"
ODD = "double[N,4,9,9] x) => (double[N,4,5,5] y"
OPEN = "double[N,4,H,W] x) => (double[N,4,I,J] y"
FLAT = "double[N,4] x) => (double[N,4] y"
ROWS = "double[N,3,4] x) => (double[N,3,4] y"
LINE = "double[N,4,8] x) => (double[N,4,8] y"
CUBE = "double[N,4,4,4,4] x) => (double[N,4,4,4,4] y"

#: Sums of branches, and what is left of them.
PARALLEL = [
    ("identity", "a = Conv<pads=[1,1,1,1]>(x, w3) y = Add(a, x)", "", {"Conv": 1}),
    ("identity first", "a = Conv<pads=[1,1,1,1]>(x, w3) y = Add(x, a)", "", {"Conv": 1}),
    ("identity twice", "a = Conv<pads=[1,1,1,1]>(x, w3) y = Sum(x, a, x)", "", {"Conv": 1}),
    ("identity taken away", "a = Conv<pads=[1,1,1,1]>(x, w3, b) y = Sub(a, x)", "", {"Conv": 1}),
    ("taken from the identity", "a = Conv<pads=[1,1,1,1]>(x, w3, b) y = Sub(x, a)", "", {"Conv": 1}),
    ("two of a size", "a = Conv(x, w3, b) d = Conv(x, v3) y = Add(a, d)", "double[N,4,8,8] x) => (double[N,4,6,6] y", {"Conv": 1}),
    ("the difference of two", "a = Conv(x, w1, b) d = Conv(x, v1, c) y = Sub(a, d)", "", {"Conv": 1}),
    ("smaller one first", "a = Conv(x, w1, b) d = Conv<pads=[1,1,1,1]>(x, w3) y = Add(a, d)", "", {"Conv": 1}),
    ("cross", "a = Conv<pads=[1,1,1,1]>(x, w3) d = Conv<pads=[1,0,1,0]>(x, w31) e = Conv<pads=[0,1,0,1]>(x, w13) y = Sum(a, d, e)", "", {"Conv": 1}),
    ("1×1 in 5×5", "a = Conv<pads=[2,2,2,2]>(x, w5) d = Conv(x, w1, b) y = Add(a, d)", "", {"Conv": 1}),
    ("3×3 in 5×5", "a = Conv<pads=[2,2,2,2]>(x, w5) d = Conv<pads=[1,1,1,1]>(x, w3) y = Add(a, d)", "", {"Conv": 1}),
    ("asymmetric", "a = Conv<pads=[0,2,2,0]>(x, w3) d = Conv(x, w1) y = Add(a, d)", "", {"Conv": 1}),
    ("shifted kernels", "a = Conv<pads=[1,1,1,1]>(x, w3) d = Conv<pads=[2,2,0,0]>(x, v3) y = Add(a, d)", "", {"Conv": 1}),
    ("even kernel", "a = Conv<pads=[0,0,1,1]>(x, w2) d = Conv<pads=[0,0,0,0]>(x, w1) y = Add(a, d)", "", {"Conv": 1}),
    ("stride", "a = Conv<pads=[1,1,1,1],strides=[2,2]>(x, w3) d = Conv<strides=[2,2]>(x, w1) y = Add(a, d)", HALF, {"Conv": 1}),
    ("stride, any length", "a = Conv<pads=[1,1,1,1],strides=[2,2]>(x, w3) d = Conv<strides=[2,2]>(x, w1) y = Add(a, d)", OPEN, {"Conv": 1}),
    ("stride, equally long here", "a = Conv<pads=[0,0,1,1],strides=[2,2]>(x, w3) d = Conv<strides=[2,2]>(x, w1) y = Add(a, d)", HALF, {"Conv": 1}),
    ("dilation", "a = Conv<pads=[2,2,2,2],dilations=[2,2]>(x, w3) d = Conv(x, w1, b) y = Add(a, d)", "", {"Conv": 1}),
    ("dilation in five taps", "a = Conv<pads=[2,2,2,2]>(x, w5) d = Conv<pads=[2,2,2,2],dilations=[2,2]>(x, w3) y = Add(a, d)", "", {"Conv": 1}),
    ("auto_pad upper", 'a = Conv<auto_pad="SAME_UPPER">(x, w2) d = Conv(x, w1) y = Add(a, d)', "", {"Conv": 1}),
    ("auto_pad lower", 'a = Conv<auto_pad="SAME_LOWER">(x, w2) y = Add(a, x)', "", {"Conv": 1}),
    ("auto_pad with a stride", 'a = Conv<auto_pad="SAME_UPPER",strides=[2,2]>(x, w3) d = Conv<strides=[2,2]>(x, w1) y = Add(a, d)', HALF, {"Conv": 1}),
    ("auto_pad with a stride, odd", 'a = Conv<auto_pad="SAME_LOWER",strides=[2,2]>(x, w3) d = Conv<strides=[2,2]>(x, w1) y = Add(a, d)', ODD, {"Conv": 1}),
    ("auto_pad valid", 'a = Conv<auto_pad="VALID">(x, w1) y = Add(a, x)', "", {"Conv": 1}),
    ("depthwise", "a = Conv<pads=[1,1,1,1],group=4>(x, d3) d = Conv<group=4>(x, d1, b) e = Add(a, d) y = Add(e, x)", "", {"Conv": 1}),
    ("groups in dense", "a = Conv<pads=[1,1,1,1]>(x, w3) d = Conv<pads=[1,1,1,1],group=2>(x, g3) e = Conv<pads=[1,1,1,1],group=4>(x, d3) y = Sum(a, d, e)", "", {"Conv": 1}),
    ("depthwise in groups", "a = Conv<pads=[1,1,1,1],group=4>(x, d3) d = Conv<pads=[1,1,1,1],group=2>(x, g3) y = Sub(a, d)", "", {"Conv": 1}),
    ("pool", "a = Conv<pads=[1,1,1,1]>(x, w3) d = AveragePool<kernel_shape=[3,3],pads=[1,1,1,1],count_include_pad=1>(x) y = Add(a, d)", "", {"Conv": 1}),
    ("pool without padding", "a = Conv(x, w3) d = AveragePool<kernel_shape=[3,3]>(x) y = Add(a, d)", "double[N,4,8,8] x) => (double[N,4,6,6] y", {"Conv": 1}),
    ("pool behind a convolution", "a = Conv(x, w3) d = Conv(x, w1, b) e = AveragePool<kernel_shape=[3,3]>(d) y = Add(a, e)", "double[N,4,8,8] x) => (double[N,4,6,6] y", {"Conv": 1}),
    ("padded 1×1 before a kernel", f"a = Conv<pads=[1,1,1,1]>(x, w3) d = Conv<pads=[1,1,1,1]>(x, w1) f = {BN}(d, scale, bias, mean, var) e = Conv(f, v3, b) y = Add(a, e)", "", {"Conv": 1}),
    ("padded 1×1 before a pool", f"a = Conv<pads=[1,1,1,1]>(x, w3) d = Conv<pads=[1,1,1,1]>(x, w1, b) e = AveragePool<kernel_shape=[3,3]>(d) f = {BN}(e, scale, bias, mean, var) y = Add(a, f)", "", {"Conv": 1}),
    ("batch norm", f"a = Conv<pads=[1,1,1,1]>(x, w3) d = {BN}(x, scale, bias, mean, var) y = Add(a, d)", "", {"Conv": 1}),
    ("batch norm behind the sum", f"a = Conv<pads=[1,1,1,1]>(x, w3) d = Add(a, x) y = {BN}(d, scale, bias, mean, var)", "", {"Conv": 1}),
    ("scaled branch", "a = Conv<pads=[1,1,1,1]>(x, w3) d = Mul(x, col) y = Add(a, d)", "", {"Conv": 1}),
    ("dropout", "a = Conv<pads=[1,1,1,1]>(x, w3) d = Dropout(a) e = Identity(d) y = Add(e, x)", "", {"Conv": 1}),
    ("a shared weight", "a = Conv<pads=[1,1,1,1]>(x, w3) d = Conv<pads=[1,1,1,1]>(x, w3, b) y = Add(a, d)", "", {"Conv": 1}),
    ("some of a sum", "z = Relu(x) a = Conv<pads=[1,1,1,1]>(x, w3) s = Add(z, a) d = Conv(x, w1) y = Add(s, d)", "", {"Conv": 1, "Add": 1, "Relu": 1}),
    ("two sources in one sum", "z = Relu(x) a = Conv(x, w1) d = Conv(z, v1) s = Add(a, d) t = Add(s, z) y = Add(t, x)", "", {"Conv": 2, "Add": 1, "Relu": 1}),
    ("two sources in a Sum", "z = Relu(x) a = Conv(x, w1) d = Conv(z, v1) y = Sum(a, z, d, x)", "", {"Conv": 2, "Sum": 1, "Relu": 1}),
    ("one dimension", "a = Conv<pads=[1,1]>(x, one3) d = Conv(x, one1) s = Add(a, d) y = Add(s, x)", LINE, {"Conv": 1}),
    ("three dimensions", "a = Conv<pads=[1,1,1,1,1,1]>(x, cube3) d = Conv(x, cube1) s = Add(a, d) y = Add(s, x)", CUBE, {"Conv": 1}),
    ("transposed", "a = ConvTranspose<strides=[2,2]>(x, t2, b) d = ConvTranspose<strides=[2,2]>(x, s2) y = Add(a, d)", "double[N,4,4,4] x) => (double[N,4,8,8] y", {"ConvTranspose": 1}),
    ("Gemm", "a = Gemm(x, p, b) y = Add(a, x)", FLAT, {"Gemm": 1}),
    ("two Gemms", "a = Gemm<alpha=0.5,transB=1>(x, p, b) d = Gemm<beta=2.0>(x, q, c) y = Sub(a, d)", FLAT, {"Gemm": 1}),
    ("Gemm and MatMul", "a = MatMul(x, p) d = Gemm(x, q, c) y = Add(a, d)", FLAT, {"Gemm": 1}),
    ("MatMul", "a = MatMul(x, p) y = Add(a, x)", ROWS, {"MatMul": 1}),
    ("MatMul with a bias", "a = MatMul(x, p) d = Add(a, b) e = MatMul(x, q) f = Add(e, c) y = Sub(d, f)", ROWS, {"MatMul": 1, "Add": 1}),
    ("a low-rank update", "a = MatMul(x, big) d = MatMul(x, low) e = MatMul(d, high) f = Mul(e, alpha) y = Add(a, f)", "double[N,3,8] x) => (double[N,3,8] y", {"MatMul": 1}),
    ("an output may see the sum", "a = Conv<pads=[1,1,1,1]>(x, w3) y = Add(a, x) z = Relu(y)", "double[N,4,8,8] x) => (double[N,4,8,8] y, double[N,4,8,8] z", {"Conv": 1, "Relu": 1}),
]  # fmt: skip

#: Ops in a row, and what is left of them.
CONSECUTIVE = [
    ("1×1 → k×k", "a = Conv(x, w1, b) y = Conv(a, w3, c)", "double[N,4,8,8] x) => (double[N,4,6,6] y", {"Conv": 1}),
    ("1×1 → padded k×k without a bias", "a = Conv(x, w1) y = Conv<pads=[1,1,1,1]>(a, w3, c)", "", {"Conv": 1}),
    ("padded 1×1 → k×k", "a = Conv<pads=[1,1,1,1]>(x, w1, b) y = Conv(a, w3, c)", "", {"Conv": 1}),
    ("padded 1×1 → padded k×k", "a = Conv<pads=[1,0,1,0]>(x, w1) y = Conv<pads=[0,1,0,1]>(a, w3, c)", "", {"Conv": 1}),
    ("k×k → 1×1", "a = Conv<pads=[1,1,1,1]>(x, w3, b) y = Conv(a, w1, c)", "", {"Conv": 1}),
    ("1×1 → 1×1 → 1×1", "a = Conv(x, w1, b) d = Conv(a, v1, c) y = Conv(d, w1)", "", {"Conv": 1}),
    ("strides", "a = Conv<strides=[2,1],pads=[1,1,1,1]>(x, w3, b) y = Conv<strides=[1,2]>(a, w1, c)", HALF, {"Conv": 1}),
    ("strided 1×1 → padded k×k", "a = Conv<strides=[2,2]>(x, w1) y = Conv<pads=[1,1,1,1]>(a, w3)", HALF, {"Conv": 1}),
    ("strided 1×1 → dilated k×k", "a = Conv<strides=[2,2],pads=[1,0,0,1]>(x, w1) y = Conv<pads=[2,2,2,2],dilations=[2,2]>(a, w3)", OPEN, {"Conv": 1}),
    ("wide in the middle", "a = Conv(x, up1) y = Conv(a, down3, b)", "double[N,4,8,8] x) => (double[N,4,6,6] y", {"Conv": 1}),
    ("a batch norm in between", f"a = Conv(x, w1) d = {BN}(a, scale, bias, mean, var) y = Conv(d, w3)", "double[N,4,8,8] x) => (double[N,4,6,6] y", {"Conv": 1}),
    ("groups", "a = Conv<group=4>(x, d1, b) y = Conv<group=2>(a, g3)", "double[N,4,8,8] x) => (double[N,4,6,6] y", {"Conv": 1}),
    ("depthwise 1×1 → dense", "a = Conv<group=4>(x, d1, b) y = Conv(a, w3)", "double[N,4,8,8] x) => (double[N,4,6,6] y", {"Conv": 1}),
    ("transposed → 1×1", "a = ConvTranspose<strides=[2,2]>(x, t2, b) y = Conv(a, w1, c)", "double[N,4,4,4] x) => (double[N,4,8,8] y", {"ConvTranspose": 1}),
    ("1×1 → transposed", "a = Conv(x, w1) y = ConvTranspose<strides=[2,2]>(a, t2, c)", "double[N,4,4,4] x) => (double[N,4,8,8] y", {"ConvTranspose": 1}),
    ("Gemm → Gemm", "a = Gemm<alpha=2.0>(x, pu) y = Gemm<alpha=0.5>(a, pd, b)", FLAT, {"Gemm": 1}),
    ("Gemm → MatMul", "a = Gemm<transB=1>(x, p, b) y = MatMul(a, q)", FLAT, {"Gemm": 1}),
    ("MatMul → MatMul", "a = MatMul(x, pu) y = MatMul(a, pd)", ROWS, {"MatMul": 1}),
    ("MatMul, bias, MatMul, bias", "a = MatMul(x, p) d = Add(a, b) e = MatMul(d, q) y = Add(e, c)", ROWS, {"MatMul": 1, "Add": 1}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("body", "signature", "left"),
    [row[1:] for row in (*PARALLEL, *CONSECUTIVE)],
    ids=[row[0] for row in (*PARALLEL, *CONSECUTIVE)],
)
def test_linear_ops_become_one(body: str, signature: str, left: dict[str, int]) -> None:
    model, report = folded(graph_of(body, signature))
    assert ops(model) == left
    done = [merge for merge in report.merges if merge.refusal is None]
    assert done
    assert all(merge.work_after <= merge.work_before for merge in done)


#: What must stay as it is, and the reason that the report gives; None where there is nothing to report.
STAYING = [
    ("stride, only sometimes equally long", "padding", "a = Conv<pads=[0,0,1,1],strides=[2,2]>(x, w3) d = Conv<strides=[2,2]>(x, w1) y = Add(a, d)", OPEN, None),
    ("different strides", "unknown-shape", "a = Conv<strides=[2,2]>(x, w1) d = Conv<pads=[1,1,1,1],strides=[1,1]>(x, w3) y = Add(a, d)", "double[N,4,1,1] x) => (double[N,4,1,1] y", None),
    ("auto_pad of an unknown length", "unknown-shape", 'a = Conv<auto_pad="SAME_UPPER",strides=[2,2]>(x, w3) d = Conv<strides=[2,2]>(x, w1) y = Add(a, d)', OPEN, None),
    ("the cross alone", "more-work", "d = Conv<pads=[1,0,1,0]>(x, w31) e = Conv<pads=[0,1,0,1]>(x, w13) y = Add(d, e)", "", None),
    ("depthwise beside dense 1×1", "more-work", "a = Conv<pads=[1,1,1,1],group=4>(x, d3) d = Conv(x, w1) y = Add(a, d)", "", None),
    ("dilations without a common grid", "more-work", "a = Conv<pads=[2,2,2,2],dilations=[2,2]>(x, w3) d = Conv<pads=[1,1,1,1]>(x, v3) y = Add(a, d)", "", None),
    ("a weight used elsewhere", "more-work", "a = Conv(x, w1) d = Conv(x, v1) s = Add(a, d) z = Relu(s) e = Conv(z, w1) f = Relu(e) y = Conv(f, v1)", "", None),
    ("border of the pool", "padding", "a = Conv<pads=[1,1,1,1]>(x, w3) d = AveragePool<kernel_shape=[3,3],pads=[1,1,1,1]>(x) y = Add(a, d)", "", None),
    ("rounded-up pool", "padding", "a = Conv<strides=[2,2]>(x, w2) d = AveragePool<kernel_shape=[2,2],strides=[2,2],ceil_mode=1>(x) y = Add(a, d)", HALF, None),
    ("a branch that broadcasts", "broadcast-changes-shape", "a = Conv(x, w) y = Add(a, x)", "double[N,1,8,8] x) => (double[N,4,8,8] y", {"w": (4, 1, 1, 1)}),
    ("a scale of the columns", "axis-mismatch", "a = Conv<pads=[1,1,1,1]>(x, w3) d = Mul(x, w) y = Add(a, d)", "", {"w": (8,)}),
    ("another's reader", None, "a = Conv<pads=[1,1,1,1]>(x, w3) z = Relu(a) s = Add(a, x) y = Add(s, z)", "", None),
    ("an output before the sum", None, "z = Conv<pads=[1,1,1,1]>(x, w3) y = Add(z, x)", "double[N,4,8,8] x) => (double[N,4,8,8] y, double[N,4,8,8] z", None),
    ("an output within the sum", None, "a = Conv<pads=[1,1,1,1]>(x, w3) z = Relu(x) s = Add(a, z) y = Add(s, x)", "double[N,4,8,8] x) => (double[N,4,8,8] y, double[N,4,8,8] s", None),
    ("a Relu in the branch", None, "a = Conv<pads=[1,1,1,1]>(x, w3) z = Relu(a) y = Add(z, x)", "", None),
    ("two inputs", None, "z = Relu(x) a = Conv(x, w1) d = Conv(z, v1) y = Add(a, d)", "", None),
    ("k×k → k×k", "more-work", "a = Conv(x, w3) y = Conv(a, v3)", "double[N,4,8,8] x) => (double[N,4,4,4] y", None),
    ("padded behind a bias", "padding", "a = Conv(x, w1, b) y = Conv<pads=[1,1,1,1]>(a, w3)", "", None),
    ("padded 1×1 at the end", "more-work", "a = Conv<pads=[1,1,1,1]>(x, w3) y = Conv<pads=[1,1,1,1]>(a, w1)", "double[N,4,8,8] x) => (double[N,4,10,10] y", None),
    ("narrow in the middle", "more-work", "a = Conv(x, w) y = Conv(a, v)", "double[N,8,8,8] x) => (double[N,8,8,8] y", {"w": (2, 8, 1, 1), "v": (8, 2, 1, 1)}),
    ("depthwise → 1×1", "more-work", "a = Conv<group=4>(x, d3) y = Conv(a, w1)", "double[N,4,8,8] x) => (double[N,4,6,6] y", None),
    ("bias before a transposed", "nonzero-shift", "a = Conv(x, w1, b) y = ConvTranspose<strides=[2,2]>(a, t2)", "double[N,4,4,4] x) => (double[N,4,8,8] y", None),
    ("k×k before a transposed", "unsupported-op", "a = Conv(x, w3) y = ConvTranspose(a, t2)", "double[N,4,8,8] x) => (double[N,4,7,7] y", None),
    ("1×1 → k×k seen in between", None, "a = Conv(x, w1) z = Relu(a) y = Conv<pads=[1,1,1,1]>(a, w3)", "double[N,4,8,8] x) => (double[N,4,8,8] y, double[N,4,8,8] z", None),
    ("Gemm read row by row", "axis-mismatch", "a = Gemm(x, p, row) y = Add(a, x)", "double[3,4] x) => (double[3,4] y", None),
    ("Gemm transA", "axis-mismatch", "a = Gemm<transA=1>(x, p) y = Add(a, x)", "double[4,4] x) => (double[4,4] y", None),
    ("a stack of matrices", "axis-mismatch", "a = MatMul(x, w) y = Add(a, x)", ROWS.replace("N,3", "2,3"), {"w": (2, 4, 4)}),
    ("what is left would be of another shape", "unknown-shape", "a = Conv(x, w1) z = ReduceMax<axes=[2,3]>(x) q = Sum(a, z, z) e = Conv<pads=[1,1,1,1]>(x, w3) y = Add(q, e)", "", None),
    ("what is left would be negated", "unsupported-op", "z = Relu(x) a = Conv<pads=[1,1,1,1]>(x, w3) s = Sub(x, z) y = Add(a, s)", "", None),
]  # fmt: skip


@pytest.mark.parametrize(
    ("reason", "body", "signature", "extra"), [row[1:] for row in STAYING], ids=[row[0] for row in STAYING]
)
def test_linear_ops_stay_with_a_reason(
    reason: str | None, body: str, signature: str, extra: dict[str, tuple[int, ...]] | None
) -> None:
    before = graph_of(body, signature, **(extra or {}))
    model, report = folded(before)
    assert ops(model) == ops(before)
    reasons = {str(merge.refusal.reason) for merge in report.merges if merge.refusal is not None}
    assert all(merge.refusal is not None for merge in report.merges)
    if reason is None:
        assert not reasons
    else:
        assert reason in reasons, reasons


BLOCK = (
    f"a = Conv<pads=[1,1,1,1]>(x, w3) e = {BN}(a, scale, bias, mean, var) d = Conv(x, w1) "
    f"f = {BN}(d, scale2, bias2, mean2, var2) h = {BN}(x, scale3, bias3, mean3, var3) s = Add(e, f) t = Add(s, h) y = Relu(t)"
)


def test_each_batch_norm_of_the_branches_has_its_record() -> None:
    model, report = folded(graph_of(BLOCK))
    assert ops(model) == {"Conv": 1, "Relu": 1}
    assert [record.fate for record in report.batch_norms] == ["folded", "merged", "merged"]
    through = [r.outcome.through for r in report.batch_norms if isinstance(r.outcome, Merged)]
    assert through == [("d",), ()]
    assert len({r.outcome.into for r in report.batch_norms if isinstance(r.outcome, Merged)}) == 1
    (merge,) = report.merges
    assert (merge.parts, merge.refusal, merge.work_before, merge.work_after) == (3, None, 9 * 16 + 16 + 4, 9 * 16)
    assert report.to_json()["merges"][0]["sentence"] == merge.sentence


def test_nothing_is_merged_where_it_was_not_asked_for() -> None:
    for choices in ({"merge": False}, {"selected": lambda node: node.op_type != "Add"}):
        model, report = folded(graph_of(BLOCK), **choices)
        assert ops(model) == {"Conv": 2, BN: 1, "Add": 2, "Relu": 1}
        assert not report.merges


def test_a_merge_opens_the_way_for_a_fold() -> None:
    body = f"a = Conv<pads=[1,1,1,1]>(x, w3) d = Add(x, a) y = {BN}(d, scale, bias, mean, var)"
    model, report = folded(graph_of(body))
    assert ops(model) == {"Conv": 1}
    assert [record.fate for record in report.records] == ["folded"]
    assert model.graph.outputs[0].name == "y"


def test_attributes_of_the_merged_convolution_are_explicit() -> None:
    model, _ = folded(graph_of('a = Conv<auto_pad="SAME_UPPER">(x, w3) d = Conv<pads=[1,1,0,0]>(x, s2) y = Add(a, d)'))
    (node,) = model.graph
    assert "auto_pad" not in node.attributes
    assert list(node.attributes.get_ints("kernel_shape") or ()) == [3, 3]
    assert list(node.attributes.get_ints("pads") or ()) == [1, 1, 1, 1]


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_merged_weights_are_rounded_once(dtype: type) -> None:
    """In a narrow dtype the merged weight is the exact one, rounded; and the float64 result within its bound."""
    exact = graph_of(BLOCK)
    fold(exact)
    narrow = graph_of(BLOCK)
    for value in narrow.graph.initializers.values():
        assert value.const_value is not None
        value.const_value = ir.tensor(value.const_value.numpy().astype(np.float16).astype(dtype), name=value.name)
        value.dtype = value.const_value.dtype
    wide = narrow.clone()
    for value in wide.graph.initializers.values():
        assert value.const_value is not None
        value.const_value = ir.tensor(value.const_value.numpy().astype(np.float64), name=value.name)
    for model in (narrow,):
        for value in (*model.graph.inputs, *model.graph.outputs):
            value.type = ir.TensorType(ir.DataType.from_numpy(np.dtype(dtype)))
    fold(wide)
    report = fold(narrow)
    assert ops(narrow) == {"Conv": 1, "Relu": 1}
    for name in ("w3", "w3_bias"):
        got, want = narrow.graph.initializers[name].const_value, wide.graph.initializers[name].const_value
        assert got is not None
        assert want is not None
        assert np.array_equal(got.numpy(), want.numpy().astype(dtype))
    assert all(0 < r.outcome.rounding_error < 0.01 for r in report.batch_norms if isinstance(r.outcome, Merged))


def test_a_sum_that_overflows_half_precision_stays() -> None:
    half = {"w": np.full((4, 4, 1, 1), 6e4, np.float16), "v": np.full((4, 4, 1, 1), 6e4, np.float16)}
    text = "g (float16[N,4,8,8] x) => (float16[N,4,8,8] y) { a = Conv(x, w) d = Conv(x, v) y = Add(a, d) }"
    model = model_of(text, half)
    report: FoldReport = fold(model)
    assert ops(model) == {"Conv": 2, "Add": 1}
    assert [str(merge.refusal.reason) for merge in report.merges if merge.refusal] == ["overflow"]


def test_branches_within_a_body_and_of_an_outer_value_merge() -> None:
    text = """g (double[N,4,8,8] x, bool c) => (double[N,4,8,8] y) {
        y = If(c) <then_branch = t () => (double[N,4,8,8] p) { a = Conv<pads=[1,1,1,1]>(x, w3) p = Add(a, x) },
                   else_branch = e () => (double[N,4,8,8] q) { q = Relu(x) }>
    }"""
    model, _ = folded(model_of(text, {"w3": ARRAYS["w3"]}))
    assert ops(model) == {"If": 1, "Conv": 1, "Relu": 1}


def test_branches_that_end_in_another_scope_stay() -> None:
    text = """g (double[N,4,8,8] x, bool c) => (double[N,4,8,8] y) {
        a = Conv<pads=[1,1,1,1]>(x, w3)
        y = If(c) <then_branch = t () => (double[N,4,8,8] p) { p = Add(a, x) },
                   else_branch = e () => (double[N,4,8,8] q) { q = Relu(x) }>
    }"""
    model, report = folded(model_of(text, {"w3": ARRAYS["w3"]}))
    assert ops(model) == {"If": 1, "Conv": 1, "Add": 1, "Relu": 1}
    assert not report.merges


def test_merging_agrees_with_the_runtime_on_the_original() -> None:
    """Against ONNX's semantics as another implementation reads them, not only against our own float64 windows."""
    ort = pytest.importorskip("onnxruntime")
    for name, body, signature, _ in PARALLEL:
        before = graph_of(body, signature)
        if "ConvTranspose" in body or "AveragePool" in body:
            continue
        after = before.clone()
        fold(after)
        feeds = {n: a.astype(np.float32) for n, a in feeds_of(before).items()}
        results = []
        for model in (before, after):
            proto = ir.to_proto(_as_float32(model))
            options = ort.SessionOptions()
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
            session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
            results.append(session.run(None, feeds)[0])
        scale = np.max(np.abs(results[0]))
        assert np.max(np.abs(results[0] - results[1])) < 1e-4 * scale, name


def _as_float32(model: ir.Model) -> ir.Model:
    copy = model.clone()
    for value in copy.graph.initializers.values():
        assert value.const_value is not None
        if value.const_value.dtype is ir.DataType.DOUBLE:
            value.const_value = ir.tensor(value.const_value.numpy().astype(np.float32), name=value.name)
            value.type = ir.TensorType(ir.DataType.FLOAT)
    for value in (*copy.graph.inputs, *copy.graph.outputs, *(v for n in copy.graph for v in n.outputs)):
        if value.dtype is ir.DataType.DOUBLE:
            value.type = ir.TensorType(ir.DataType.FLOAT)
    return copy
