"""Each linear op absorbs an affine after it and before it: a table of graphs, proven in float64."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from folding import Array, constants, folded, model_of, norm, ops, reason_of, used

from bnfold.fold import fold

BN = "BatchNormalization(c, scale, bias, mean, var)"


@dataclass(frozen=True)
class Case:
    name: str
    text: str
    arrays: dict[str, Array]
    left: dict[str, int]
    opset: int = 17


def case(name: str, text: str, arrays: dict[str, Array], *left: str, opset: int = 17) -> object:
    counts = {op: left.count(op) for op in left}
    return pytest.param(Case(name, text, arrays, counts, opset), id=name)


def after_conv(attributes: str, weight: tuple[int, ...], data: str, out: str) -> tuple[str, dict[str, Array]]:
    channels = weight[0]
    text = f"g (double[{data}] x) => (double[{out}] y) {{ c = Conv{attributes}(x, w) y = {BN} }}"
    return text, constants(w=weight) | norm(channels)


AFTER = [
    case("conv", *after_conv("", (4, 3, 3, 3), "N,3,8,8", "N,4,6,6"), "Conv"),
    case("conv 1d", *after_conv("", (4, 3, 3), "N,3,8", "N,4,6"), "Conv"),
    case("conv 3d", *after_conv("", (4, 3, 3, 1, 2), "N,3,8,8,8", "N,4,6,8,7"), "Conv"),
    case("conv grouped", *after_conv("<group=2>", (4, 3, 3, 3), "N,6,8,8", "N,4,6,6"), "Conv"),
    case("conv depthwise ×2", *after_conv("<group=3>", (6, 1, 3, 3), "N,3,8,8", "N,6,6,6"), "Conv"),
    case("conv padded", *after_conv("<pads=[1,0,2,1]>", (4, 3, 3, 3), "N,3,8,8", "N,4,9,7"), "Conv"),
    case("conv same", *after_conv('<auto_pad="SAME_UPPER">', (4, 3, 3, 3), "N,3,8,8", "N,4,8,8"), "Conv"),
    case(
        "conv strided dilated",
        *after_conv("<strides=[2,2], dilations=[2,1]>", (4, 3, 3, 3), "N,3,9,9", "N,4,3,4"),
        "Conv",
    ),
    case(
        "conv with bias",
        f"g (double[N,3,8,8] x) => (double[N,4,6,6] y) {{ c = Conv(x, w, b) y = {BN} }}",
        constants(w=(4, 3, 3, 3), b=(4,)) | norm(4),
        "Conv",
    ),
    case(
        "conv with an empty bias name",
        f'g (double[N,3,8,8] x) => (double[N,4,6,6] y) {{ c = Conv(x, w, "") y = {BN} }}',
        constants(w=(4, 3, 3, 3)) | norm(4),
        "Conv",
    ),
    case(
        "transposed conv, grouped",
        f"g (double[N,4,5,5] x) => (double[N,6,11,11] y) {{ c = ConvTranspose<group=2, strides=[2,2]>(x, w, b) y = {BN} }}",
        constants(w=(4, 3, 3, 3), b=(6,)) | norm(6),
        "ConvTranspose",
    ),
    case(
        "transposed conv without bias",
        f"g (double[N,4,5,5] x) => (double[N,3,7,7] y) {{ c = ConvTranspose(x, w) y = {BN} }}",
        constants(w=(4, 3, 3, 3)) | norm(3),
        "ConvTranspose",
    ),
    *(
        case(
            f"gemm transA={ta} transB={tb} bias {shape}",
            f"g (double[{'5,3' if ta else '3,5'}] x) => (double[3,4] y)"
            f" {{ c = Gemm<alpha=0.5, beta=2.0, transA={ta}, transB={tb}>(x, w, b) y = {BN} }}",
            constants(w=(4, 5) if tb else (5, 4), b=shape) | norm(4),
            "Gemm",
        )
        for ta, tb, shape in [(0, 0, (4,)), (1, 0, (1,)), (0, 1, ()), (1, 1, (1, 4)), (0, 0, (3, 1)), (0, 1, (3, 4))]
    ),
    case(
        "gemm without bias",
        f"g (double[N,5] x) => (double[N,4] y) {{ c = Gemm<alpha=3.0>(x, w) y = {BN} }}",
        constants(w=(5, 4)) | norm(4),
        "Gemm",
    ),
    case(
        "matmul of two matrices gets the bias of a gemm",
        f"g (double[N,5] x) => (double[N,4] y) {{ c = MatMul(x, w) y = {BN} }}",
        constants(w=(5, 4)) | norm(4),
        "Gemm",
    ),
    case(
        "matmul and add",
        f"g (double[N,5] x) => (double[N,4] y) {{ d = MatMul(x, w) c = Add(b, d) y = {BN} }}",
        constants(w=(5, 4), b=(4,)) | norm(4),
        "Gemm",
    ),
    case(
        "matmul and add of one row",
        "g (double[N,5] x) => (double[N,4] y) { d = MatMul(x, w) y = Add(b, d) }",
        constants(w=(5, 4), b=(1, 4)),
        "Gemm",
    ),
    case(
        "matmul that is scaled stays one",
        "g (double[N,5] x) => (double[N,4] y) { d = MatMul(x, w) y = Mul(k, d) }",
        constants(w=(5, 4), k=(4,)),
        "MatMul",
    ),
    case(
        "matmul of three dimensions and add",
        "g (double[N,7,5] x) => (double[N,7,4] y) { d = MatMul(x, w) c = Add(b, d) y = Mul(c, k) }",
        constants(w=(5, 4), b=(4,), k=(4,)),
        "MatMul",
        "Add",
    ),
    case(
        "matmul of three dimensions, transposed to channels first",
        f"g (double[N,7,5] x) => (double[N,4,7] y) {{ d = MatMul(x, w) c = Transpose<perm=[0,2,1]>(d) y = {BN} }}",
        constants(w=(5, 4)) | norm(4),
        "MatMul",
        "Transpose",
        "Add",
    ),
    case(
        "stack of matrices",
        "g (double[3,7,5] x) => (double[3,7,4] y) { c = MatMul(x, w) y = Mul(c, k) }",
        constants(w=(3, 5, 4), k=(4,)),
        "MatMul",
    ),
    *(
        case(
            f"deformable conv, group={group}, {'bias' if bias else 'no bias'}, {'mask' if mask else 'no mask'}",
            "g (double[N,4,6,7] x, double[N,36,6,7] o, double[N,18,6,7] m) => (double[N,6,6,7] y)"
            f" {{ c = DeformConv<group={group}, offset_group=2, pads=[1,1,1,1]>(x, w, o{bias}{mask}) y = {BN} }}",
            constants(w=(6, 4 // group, 3, 3)) | (constants(b=(6,)) if "b" in bias else {}) | norm(6),
            "DeformConv",
            opset=opset,
        )
        for group, bias, mask, opset in [
            (1, "", "", 19),
            (2, ", b", "", 22),
            (1, ", b", ", m", 19),
            (2, ', ""', ", m", 22),
        ]
    ),
    case("opset 7", *after_conv("", (4, 3, 3, 3), "N,3,8,8", "N,4,6,6"), "Conv", opset=7),
    case("opset 9", *after_conv("", (4, 3, 3, 3), "N,3,8,8", "N,4,6,6"), "Conv", opset=9),
    case("opset 15", *after_conv("", (4, 3, 3, 3), "N,3,8,8", "N,4,6,6"), "Conv", opset=15),
    case("opset 22", *after_conv("", (4, 3, 3, 3), "N,3,8,8", "N,4,6,6"), "Conv", opset=22),
    case(
        "chain of constants in any order",
        "g (double[N,3,8,8] x) => (double[N,4,6,6] y)"
        " { c = Conv(x, w) d = Sub(k1, c) e = Div(d, pos) f = Neg(e) h = Mul(k2, f) i = Sub(h, k3) y = Add(k4, i) }",
        constants(w=(4, 3, 3, 3), k1=(4, 1, 1), pos=(1, 4, 1, 1), k2=(4, 1, 1), k3=(), k4=(1, 1, 1, 1)),
        "Conv",
    ),
    case(
        "constant minus conv",
        "g (double[N,3,8,8] x) => (double[N,4,6,6] y) { c = Conv(x, w) y = Sub(k, c) }",
        constants(w=(4, 3, 3, 3), k=(4, 1, 1)),
        "Conv",
    ),
    case(
        "several batch norms in a row",
        "g (double[N,3,8,8] x) => (double[N,4,6,6] y)"
        " { a = Conv(x, w) b = BatchNormalization(a, scale, bias, mean, var)"
        " c = BatchNormalization(b, scale2, bias2, mean2, var2) y = Mul(c, k) }",
        constants(w=(4, 3, 3, 3), k=(4, 1, 1)) | norm(4) | norm(4, "2"),
        "Conv",
    ),
    case(
        "a constant that varies along no axis, in full shape",
        "g (double[2,3,8,8] x) => (double[2,4,6,6] y) { c = Conv(x, w) y = Mul(c, k) }",
        constants(w=(4, 3, 3, 3)) | {"k": np.full((2, 4, 6, 6), 3.0)},
        "Conv",
    ),
]

BEFORE = [
    case(
        "conv",
        "g (double[N,3,8,8] x) => (double[N,4,6,6] y) { c = Relu(x) d = BatchNormalization(c, scale, bias, mean, var) y = Conv(d, w) }",
        constants(w=(4, 3, 3, 3)) | norm(3),
        "Relu",
        "Conv",
    ),
    case(
        "conv grouped with bias",
        "g (double[N,6,8,8] x) => (double[N,4,6,6] y) { d = BatchNormalization(x, scale, bias, mean, var) y = Conv<group=2>(d, w, b) }",
        constants(w=(4, 3, 3, 3), b=(4,)) | norm(6),
        "Conv",
    ),
    case(
        "padded conv, scale only",
        "g (double[N,3,8,8] x) => (double[N,4,8,8] y) { d = Mul(x, k) y = Conv<pads=[1,1,1,1]>(d, w) }",
        constants(w=(4, 3, 3, 3), k=(3, 1, 1)),
        "Conv",
    ),
    case(
        "1×1 conv with auto_pad never pads",
        'g (double[N,3,8,8] x) => (double[N,4,4,4] y) { d = BatchNormalization(x, scale, bias, mean, var) y = Conv<auto_pad="SAME_LOWER", strides=[2,2]>(d, w) }',
        constants(w=(4, 3, 1, 1)) | norm(3),
        "Conv",
    ),
    case(
        "input normalization",
        "g (double[N,3,8,8] x) => (double[N,4,6,6] y) { a = Sub(x, k) d = Div(a, pos) y = Conv(d, w) }",
        constants(w=(4, 3, 3, 3), k=(1, 3, 1, 1), pos=(1, 3, 1, 1)),
        "Conv",
    ),
    case(
        "deformable conv, scale only",
        "g (double[N,4,6,7] x, double[N,18,6,7] o) => (double[N,6,6,7] y)"
        " { d = Mul(x, k) y = DeformConv<group=2, pads=[1,1,1,1]>(d, w, o) }",
        constants(w=(6, 2, 3, 3), k=(4, 1, 1)),
        "DeformConv",
        opset=19,
    ),
    case(
        "padded conv takes the scale of a chain, whose shift stays",
        "g (double[N,8,8,3] x) => (double[N,4,8,8] y)"
        " { a = Div(x, k255) b = Sub(a, m) c = Div(b, pos) d = Transpose<perm=[0,3,1,2]>(c) y = Conv<pads=[1,1,1,1]>(d, w) }",
        constants(w=(4, 3, 3, 3), m=(3,), pos=(3,)) | {"k255": np.array(255.0)},
        "Add",
        "Transpose",
        "Conv",
    ),
    case(
        "matmuls that have no bias take the scale of a chain, whose shift stays",
        "g (double[3,4,4] x) => (double[3,4,5] y, double[3,4,6] z)"
        " { a = Mul(x, k) b = Add(a, l) y = MatMul(b, w) z = MatMul(b, v) }",
        constants(w=(4, 5), v=(4, 6), k=(4,), l=(4,)),
        "Add",
        "MatMul",
        "MatMul",
    ),
    case(
        "transposed conv, scale only",
        "g (double[N,4,5,5] x) => (double[N,6,11,11] y) { d = Mul(x, k) y = ConvTranspose<group=2, strides=[2,2]>(d, w) }",
        constants(w=(4, 3, 3, 3), k=(4, 1, 1)),
        "ConvTranspose",
    ),
    case(
        "transposed 1×1 conv at stride 1 takes a shift",
        "g (double[N,4,5,5] x) => (double[N,6,5,5] y) { d = BatchNormalization(x, scale, bias, mean, var) y = ConvTranspose<group=2>(d, w) }",
        constants(w=(4, 3, 1, 1)) | norm(4),
        "ConvTranspose",
    ),
    *(
        case(
            f"gemm transB={tb}",
            f"g (double[N,5] x) => (double[N,4] y) {{ d = BatchNormalization(x, scale, bias, mean, var) y = Gemm<alpha=0.5, beta=3.0, transB={tb}>(d, w, b) }}",
            constants(w=(4, 5) if tb else (5, 4), b=(4,)) | norm(5),
            "Gemm",
        )
        for tb in (0, 1)
    ),
    case(
        "gemm transA contracts axis 0",
        "g (double[5,3] x) => (double[3,4] y) { d = Mul(x, k) y = Gemm<transA=1>(d, w) }",
        constants(w=(5, 4), k=(5, 1)),
        "Gemm",
    ),
    case(
        "matmul whose Add takes the shift",
        "g (double[N,3,5] x) => (double[N,3,4] y) { c = Mul(x, k) d = Add(c, l) e = MatMul(d, w) y = Add(e, b) }",
        constants(w=(5, 4), b=(4,), k=(5,), l=(5,)),
        "MatMul",
        "Add",
    ),
    case(
        "matmul of two matrices becomes a gemm for the shift",
        "g (double[N,4] x) => (double[N,5] y) { d = BatchNormalization(x, scale, bias, mean, var) y = MatMul(d, w) }",
        constants(w=(4, 5)) | norm(4),
        "Gemm",
    ),
    case(
        "matmul that narrows gets an Add",
        "g (double[N,3,5] x) => (double[N,3,4] y) { c = Mul(x, k) d = Add(c, l) y = MatMul(d, w) }",
        constants(w=(5, 4), k=(5,), l=(5,)),
        "MatMul",
        "Add",
    ),
    case(
        "several consumers that all accept",
        "g (double[N,3,8,8] x) => (double[N,4,6,6] y, double[N,5,8,8] z)"
        " { d = BatchNormalization(x, scale, bias, mean, var) y = Conv(d, w) z = Conv(d, v) }",
        constants(w=(4, 3, 3, 3), v=(5, 3, 1, 1)) | norm(3),
        "Conv",
        "Conv",
    ),
    case(
        "through Flatten into Gemm",
        "g (double[N,3,2,2] x) => (double[N,4] y) { d = BatchNormalization(x, scale, bias, mean, var) e = Flatten(d) y = Gemm(e, w) }",
        constants(w=(12, 4)) | norm(3),
        "Flatten",
        "Gemm",
    ),
]


@pytest.mark.parametrize("case", AFTER)
def test_affine_after_a_linear_op_is_absorbed(case: Case) -> None:
    model, report = folded(model_of(case.text, case.arrays, opset=case.opset))
    assert ops(model) == case.left
    assert {record.fate for record in report.records} == {"folded"}


@pytest.mark.parametrize("case", BEFORE)
def test_affine_before_a_linear_op_is_absorbed(case: Case) -> None:
    model, report = folded(model_of(case.text, case.arrays, opset=case.opset))
    assert ops(model) == case.left
    assert {record.fate for record in report.records} == {"folded"}


KEPT = [
    (
        "padding",
        "padding",
        "g (double[N,3,8,8] x) => (double[N,4,8,8] y) { d = BatchNormalization(x, scale, bias, mean, var) y = Conv<pads=[1,1,1,1]>(d, w) }",
        constants(w=(4, 3, 3, 3)) | norm(3),
    ),
    (
        "a chain of which one channel is multiplied by 0, so that its shift cannot go ahead",
        "padding",
        "g (double[N,8,8,3] x) => (double[N,4,8,8] y)"
        " { b = Mul(x, k) c = Add(b, l) d = Transpose<perm=[0,3,1,2]>(c) y = Conv<pads=[1,1,1,1]>(d, w) }",
        constants(w=(4, 3, 3, 3), l=(3,)) | {"k": np.array([2.0, 0.0, 3.0])},
    ),
    (
        "auto_pad pads",
        "padding",
        'g (double[N,3,8,8] x) => (double[N,4,8,8] y) { d = BatchNormalization(x, scale, bias, mean, var) y = Conv<auto_pad="SAME_UPPER">(d, w) }',
        constants(w=(4, 3, 3, 3)) | norm(3),
    ),
    (
        "1×1 conv with explicit pads",
        "padding",
        "g (double[N,3,8,8] x) => (double[N,4,10,10] y) { d = BatchNormalization(x, scale, bias, mean, var) y = Conv<pads=[1,1,1,1]>(d, w) }",
        constants(w=(4, 3, 1, 1)) | norm(3),
    ),
    (
        "a shift before a transposed conv whose kernel equals its stride",
        "nonzero-shift",
        "g (double[N,4,5,5] x) => (double[N,6,10,10] y) { d = BatchNormalization(x, scale, bias, mean, var) y = ConvTranspose<strides=[2,2]>(d, w) }",
        constants(w=(4, 6, 2, 2)) | norm(4),
    ),
    (
        "a shift before a transposed conv of one tap that leaves gaps",
        "nonzero-shift",
        "g (double[N,4,5,5] x) => (double[N,6,9,9] y) { d = BatchNormalization(x, scale, bias, mean, var) y = ConvTranspose<strides=[2,2]>(d, w) }",
        constants(w=(4, 6, 1, 1)) | norm(4),
    ),
    (
        "a shift before a transposed conv of which the output's shape is told",
        "nonzero-shift",
        "g (double[N,4,5,5] x) => (double[N,6,7,7] y) { d = BatchNormalization(x, scale, bias, mean, var) y = ConvTranspose<output_shape=[7,7]>(d, w) }",
        constants(w=(4, 6, 1, 1)) | norm(4),
    ),
    (
        "a matmul that widens has no cheap bias",
        "no-bias",
        "g (double[4,4,4] x) => (double[4,4,5] y) { d = BatchNormalization(x, scale, bias, mean, var) e = Transpose<perm=[0,2,1]>(d) y = MatMul(e, w) }",
        constants(w=(4, 5)) | norm(4),
    ),
    (
        "stack of matrices and a shift",
        "nonzero-shift",
        "g (double[3,4,4] x) => (double[3,4,4] y) { d = BatchNormalization(x, scale, bias, mean, var) e = Transpose<perm=[0,2,1]>(d) y = MatMul(e, w) }",
        constants(w=(3, 4, 4)) | norm(4),
    ),
    (
        "weight computed at run time",
        "weight-not-constant",
        f"g (double[N,3,8,8] x, double[4,3,3,3] w) => (double[N,4,6,6] y) {{ c = Conv(x, w) y = {BN} }}",
        norm(4),
    ),
    (
        "bias computed at run time",
        "weight-not-constant",
        f"g (double[N,3,8,8] x, double[4] b) => (double[N,4,6,6] y) {{ c = Conv(x, w, b) y = {BN} }}",
        constants(w=(4, 3, 3, 3)) | norm(4),
    ),
    (
        "the other consumer of the conv",
        "other-consumer",
        f"g (double[N,3,8,8] x) => (double[N,4,6,6] y, double[N,4,6,6] z) {{ c = Conv(x, w) y = {BN} z = Relu(c) }}",
        constants(w=(4, 3, 3, 3)) | norm(4),
    ),
    (
        "the conv's result is an output",
        "graph-output",
        f"g (double[N,3,8,8] x) => (double[N,4,6,6] y, double[N,4,6,6] c) {{ c = Conv(x, w) y = {BN} }}",
        constants(w=(4, 3, 3, 3)) | norm(4),
    ),
    (
        "the batch norm's result is an output and a conv's input",
        "graph-output",
        "g (double[N,3,8,8] x) => (double[N,3,8,8] d, double[N,4,6,6] y) { d = BatchNormalization(x, scale, bias, mean, var) y = Conv(d, w) }",
        constants(w=(4, 3, 3, 3)) | norm(3),
    ),
    (
        "one consumer of two accepts",
        "consumer-not-linear",
        "g (double[N,3,8,8] x) => (double[N,4,6,6] y, double[N,3,8,8] z)"
        " { d = BatchNormalization(x, scale, bias, mean, var) y = Conv(d, w) z = Tanh(d) }",
        constants(w=(4, 3, 3, 3)) | norm(3),
    ),
    (
        "as the weight of a conv",
        "weight-not-constant",
        "g (double[1,3,8,8] x, double[4,3,3,3] v) => (double[1,4,6,6] y) { w = BatchNormalization(v, scale, bias, mean, var) y = Conv(x, w) }",
        norm(3),
    ),
    (
        "matmul, transposed, normalized on the other axis of equal length",
        "axis-mismatch",
        f"g (double[4,5] x) => (double[4,4] y) {{ d = MatMul(x, w) c = Transpose<perm=[1,0]>(d) y = {BN} }}",
        constants(w=(5, 4)) | norm(4),
    ),
    (
        "matmul, reshaped, normalized on another axis of equal length",
        "axis-mismatch",
        f"g (double[N,4,5] x) => (double[N,4,2,2] y) {{ d = MatMul(x, w) c = Reshape(d, s) y = {BN} }}",
        constants(w=(5, 4)) | norm(4) | {"s": np.array([0, 4, 2, 2])},
    ),
    (
        "matmul, normalized on another axis of equal length",
        "axis-mismatch",
        f"g (double[N,4,5] x) => (double[N,4,4] y) {{ c = MatMul(x, w) y = {BN} }}",
        constants(w=(5, 4)) | norm(4),
    ),
    (
        "columns as many as channels",
        "axis-mismatch",
        "g (double[N,3,8,6] x) => (double[N,4,6,4] y) { c = Conv(x, w) y = Mul(c, k) }",
        constants(w=(4, 3, 3, 3), k=(4,)),
    ),
    (
        "columns as many as channels, in full rank",
        "axis-mismatch",
        "g (double[N,3,8,6] x) => (double[N,4,6,4] y) { c = Conv(x, w) y = Mul(c, k) }",
        constants(w=(4, 3, 3, 3), k=(1, 1, 1, 4)),
    ),
    (
        "samples as many as channels",
        "axis-mismatch",
        "g (double[4,3,8,8] x) => (double[4,4,6,6] y) { c = Conv(x, w) y = Mul(c, k) }",
        constants(w=(4, 3, 3, 3), k=(4, 1, 1, 1)),
    ),
]


@pytest.mark.parametrize(("reason", "text", "arrays"), [c[1:] for c in KEPT], ids=[c[0] for c in KEPT])
def test_what_algebra_forbids_is_kept_with_its_reason(reason: str, text: str, arrays: dict[str, Array]) -> None:
    source = model_of(text, arrays)
    model, report = folded(source)
    assert ops(model) == ops(source)
    assert reason_of(report) == reason


DEFORMED = [
    ("a shift at the border", "padding", "d = BatchNormalization(x, scale, bias, mean, var) y = DeformConv(d, w, o)"),
    ("as the offsets", "consumer-not-linear", "d = Mul(o, k18) y = DeformConv(x, w, d)"),
    ("as the mask", "consumer-not-linear", "d = Mul(m, k9) y = DeformConv(x, w, o, b, d)"),
]


@pytest.mark.parametrize(("reason", "body"), [row[1:] for row in DEFORMED], ids=[row[0] for row in DEFORMED])
def test_deformable_convolution_takes_scales_of_its_data_only(reason: str, body: str) -> None:
    text = f"g (double[N,4,6,7] x, double[N,18,4,5] o, double[N,9,4,5] m) => (double[N,6,4,5] y) {{ {body} }}"
    arrays = used(text, constants(w=(6, 4, 3, 3), b=(6,)) | norm(4) | constants(k18=(18, 1, 1), k9=(9, 1, 1)))
    source = model_of(text, arrays, opset=19)
    model, report = folded(source)
    assert ops(model) == ops(source)
    assert reason_of(report) == reason


@pytest.mark.parametrize(
    "body",
    [
        "a = DeformConv(x, w, o) c = DeformConv(x, v, o) y = Add(a, c)",
        "a = DeformConv(x, w, o) y = Conv(a, u)",
        "a = Conv(x, t) y = DeformConv(a, w, o)",
    ],
)
def test_deformable_convolution_merges_with_nothing(body: str) -> None:
    text = f"g (double[N,4,6,7] x, double[N,18,4,5] o) => (double[N,6,4,5] y) {{ {body} }}"
    arrays = constants(w=(6, 4, 3, 3), v=(6, 4, 3, 3), u=(6, 6, 1, 1), t=(4, 4, 1, 1))
    source = model_of(text, used(text, arrays), opset=19)
    assert ops(folded(source)[0]) == ops(source)


def test_shift_does_not_go_ahead_of_its_scale_in_a_type_that_may_not_hold_their_quotient() -> None:
    text = """g (float16[N,8,8,3] x) => (float16[N,4,8,8] y) {
        b = Mul(x, k) c = Add(b, l) d = Transpose<perm=[0,3,1,2]>(c) y = Conv<pads=[1,1,1,1]>(d, w)
    }"""
    arrays = {name: array.astype(np.float16) for name, array in constants(w=(4, 3, 3, 3), l=(3,), k=(3,)).items()}
    model = model_of(text, arrays)
    report = fold(model)
    assert ops(model) == {"Mul": 1, "Add": 1, "Transpose": 1, "Conv": 1}
    assert reason_of(report) == "padding"
