"""What counts as a constant affine, and what only looks like one: each row names the case that peers get wrong."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from folding import Array, constants, feeds_of, folded, model_of, norm, ops, reason_of

from bnfold.fold import fold
from bnfold.fold.report import Kind
from bnfold.verification.oracle import Oracle

CONV = "g (double[N,3,8,8] x) => (double[N,4,6,6] y)"
WEIGHTS = constants(w=(4, 3, 3, 3)) | norm(4)


def conv_norm(attributes: str = "", outputs: str = "y", signature: str = CONV) -> str:
    return f"{signature} {{ c = Conv(x, w) {outputs} = BatchNormalization{attributes}(c, scale, bias, mean, var) }}"


@pytest.mark.parametrize(
    ("reason", "text", "opset"),
    [
        ("training-mode", conv_norm("<training_mode=1>", "y, rm, rv"), 17),
        ("training-mode", conv_norm("<training_mode=1>"), 17),
        (
            "training-mode",
            conv_norm("<training_mode=1>", "y, rm, rv", "g (double[N,3,8,8] x) => (double[N,4,6,6] y, double[4] rm)"),
            15,
        ),
        ("training-mode", conv_norm("", "y, rm, rv, sm, sv"), 9),
        ("per-activation-statistics", conv_norm("<spatial=0>"), 7),
        ("training-mode", conv_norm("<is_test=0>"), 6),
    ],
)
def test_batch_norm_that_is_no_constant_affine_stays(reason: str, text: str, opset: int) -> None:
    model = model_of(text, WEIGHTS, opset=opset)
    report = fold(model)
    assert reason_of(report) == reason
    assert ops(model)["BatchNormalization"] == 1


def test_epsilon_is_that_of_the_specification_where_absent() -> None:
    arrays = constants(w=(4, 3, 3, 3)) | norm(4)
    arrays["var"] = np.full(4, 1e-6)  # so small that epsilon decides
    folded(model_of(conv_norm(), arrays))
    folded(model_of(conv_norm("<epsilon=0.01>"), arrays))


def test_batch_norm_of_two_dimensions_and_of_one_channel() -> None:
    text = "g (double[N,1] x) => (double[N,1] y) { c = Gemm(x, w) y = BatchNormalization(c, scale, bias, mean, var) }"
    model, _ = folded(model_of(text, constants(w=(1, 1)) | norm(1)))
    assert ops(model) == {"Gemm": 1}


@pytest.mark.parametrize(
    ("name", "text", "arrays"),
    [
        ("raises the rank", "g (double[N,3] x) => (double[1,2,N,4] y) { c = Gemm(x, w) y = Mul(c, k) }",
         constants(w=(3, 4), k=(1, 2, 1, 4))),
        ("raises the rank by ones", "g (double[N,3] x) => (double[1,1,N,4] y) { c = Gemm(x, w) y = Mul(c, k) }",
         constants(w=(3, 4), k=(1, 1, 1, 1))),
        ("widens one output channel", "g (double[N,3,8,8] x) => (double[N,4,6,6] y) { c = Conv(x, w) y = Mul(c, k) }",
         constants(w=(1, 3, 3, 3), k=(4, 1, 1))),
        ("varies along two axes", "g (double[2,3,8,8] x) => (double[2,4,6,6] y) { c = Conv(x, w) y = Mul(c, k) }",
         constants(w=(4, 3, 3, 3), k=(4, 6, 1))),
        ("length known at run time only", "g (double[N,3,8,W] x) => (double[N,4,6,V] y) { c = Conv(x, w) y = Mul(c, k) }",
         constants(w=(4, 3, 3, 3), k=(6,))),
        ("channels known at run time only, of which there may be one", "g (double[2,D,6,6] x) => (double[2,4,6,6] y) { c = Mul(x, k) y = Conv(c, w) }",
         constants(w=(4, 4, 1, 1), k=(4, 1, 1))),
        ("divides a constant", "g (double[N,3,8,8] x) => (double[N,4,6,6] y) { c = Conv(x, w) y = Div(k, c) }",
         constants(w=(4, 3, 3, 3), k=(4, 1, 1))),
        ("divides by zero", "g (double[N,3,8,8] x) => (double[N,4,6,6] y) { c = Conv(x, w) y = Div(c, k) }",
         constants(w=(4, 3, 3, 3)) | {"k": np.zeros((4, 1, 1))}),
        ("of two activations", "g (double[N,3,8,8] x) => (double[N,4,6,6] y) { c = Conv(x, w) y = Mul(c, c) }",
         constants(w=(4, 3, 3, 3))),
    ],
)  # fmt: skip
def test_binary_op_that_is_no_affine_along_one_axis_stays(name: str, text: str, arrays: dict[str, Array]) -> None:
    del name
    model = model_of(text, arrays)
    before = ops(model)
    fold(model)
    assert ops(model) == before


def test_integers_are_left_alone() -> None:
    model = model_of("g (int64[N] x) => (int64[N] y) { c = Mul(x, k) y = Add(c, k) }", {"k": np.array(3)})
    assert fold(model).records == ()
    assert ops(model) == {"Mul": 1, "Add": 1}


@pytest.mark.parametrize("value", [-1.0, np.nan, np.inf], ids=["negative", "nan", "inf"])
def test_variance_that_gives_no_finite_scale_is_a_reason(value: float) -> None:
    arrays = constants(w=(4, 3, 3, 3)) | norm(4)
    arrays["var"] = np.array([1.0, value, 1.0, 1.0])
    if np.isinf(value):
        arrays["mean"] = np.array([1.0, np.inf, 1.0, 1.0])
    model = model_of(conv_norm(), arrays)
    assert reason_of(fold(model)) == "parameters-invalid"


def test_parameters_of_the_wrong_size_are_a_reason() -> None:
    model = model_of(conv_norm(), constants(w=(4, 3, 3, 3)) | norm(3))
    assert reason_of(fold(model)) == "parameters-invalid"


RAW_BIAS = """
    zero = Constant<value_float=0.0>() n = Shape<start=0, end=1>(w) one = Constant<value_ints=[1]>() m = Expand(n, one)
    z = CastLike(zero, x) b = Expand(z, m) c = Conv(x, w, b) y = BatchNormalization(c, scale, bias, mean, var)"""


@pytest.mark.parametrize(
    ("name", "body", "extra"),
    [
        ("bias of a raw export", RAW_BIAS, {}),
        ("weight through Identity", "v = Identity(w) c = Conv(x, v) y = BatchNormalization(c, scale, bias, mean, var)", {}),
        ("weight through Reshape", "v = Reshape(u, s) c = Conv(x, v) y = BatchNormalization(c, scale, bias, mean, var)",
         {"u": constants(u=(4, 27))["u"], "s": np.array([4, 3, 3, 3])}),
        ("parameters through ConstantOfShape", "v1 = ConstantOfShape(s) c = Conv(x, w) y = BatchNormalization(c, scale, bias, mean, v1)",
         {"s": np.array([4])}),
        ("decomposed batch norm", "c = Conv(x, w) e = Add(var1, eps) r = Sqrt(e) d = Sub(c, m1) q = Div(d, r) h = Mul(q, k) y = Add(h, l)",
         constants(var1=(4, 1, 1), m1=(4, 1, 1), k=(4, 1, 1), l=(4, 1, 1)) | {"eps": np.array(1e-5)}),
    ],
)  # fmt: skip
def test_computed_constants_are_constants(name: str, body: str, extra: dict[str, Array]) -> None:
    if "ConstantOfShape" in body:
        body = body.replace("ConstantOfShape(s)", "ConstantOfShape<value = double[1] {2.0}>(s)")
    if name == "bias of a raw export":
        body = body.replace("value_float=0.0", "value = double {0.0}")
    arrays = {k: v for k, v in (WEIGHTS | extra).items() if f"{k}," in body or f"{k})" in body}
    model, report = folded(model_of(f"{CONV} {{ {body} }}", arrays))
    assert ops(model) == {"Conv": 1}
    assert [record.fate for record in report.records] == ["folded"]


def test_what_only_the_folded_ops_used_is_gone() -> None:
    model, _ = folded(model_of(f"{CONV} {{ {RAW_BIAS.replace('value_float=0.0', 'value = double {0.0}')} }}", WEIGHTS))
    assert sorted(model.graph.initializers) == ["w", "w_bias"]
    assert [node.op_type for node in model.graph] == ["Conv"]


def test_initializer_that_callers_may_feed_is_no_constant() -> None:
    text = (
        CONV.replace("x)", "x, double[4] scale)", 1)
        + " { c = Conv(x, w) y = BatchNormalization(c, scale, bias, mean, var) }"
    )
    model = model_of(text, WEIGHTS)
    assert reason_of(fold(model)) == "overridable-input"


def test_weight_that_callers_may_feed_is_no_constant() -> None:
    text = (
        CONV.replace("x)", "x, double[4,3,3,3] w)", 1)
        + " { c = Conv(x, w) y = BatchNormalization(c, scale, bias, mean, var) }"
    )
    assert reason_of(fold(model_of(text, WEIGHTS))) == "overridable-input"


def test_ir_version_3_lists_every_initializer_as_input_before_and_after() -> None:
    model, _ = folded(model_of(conv_norm(), WEIGHTS, opset=8, ir_version=3))
    assert model.ir_version == 3
    assert ops(model) == {"Conv": 1}
    assert {v.name for v in model.graph.inputs} == {"x", *model.graph.initializers}


def test_shared_weight_is_copied_and_its_other_user_unharmed() -> None:
    text = "g (double[N,3,8,8] x) => (double[N,4,6,6] y, double[N,4,6,6] z) { c = Conv(x, w) y = BatchNormalization(c, scale, bias, mean, var) z = Conv(x, w) }"
    model, _ = folded(model_of(text, WEIGHTS))
    assert ops(model) == {"Conv": 2}
    assert np.array_equal(model.graph.initializers["w"].const_value.numpy(), WEIGHTS["w"])


def test_convs_that_shared_a_weight_and_absorb_the_same_go_on_sharing() -> None:
    text = (
        "g (double[N,3,8,8] x, double[N,3,8,8] x2) => (double[N,4,6,6] y, double[N,4,6,6] z) { c = Conv(x, w) "
        "y = BatchNormalization(c, scale, bias, mean, var) d = Conv(x2, w) z = BatchNormalization(d, scale, bias, mean, var) }"
    )
    model, _ = folded(model_of(text, WEIGHTS))
    weights = [node.inputs[1] for node in model.graph]
    assert weights[0] is weights[1]


def test_weight_that_is_also_an_output_stays_as_it_is() -> None:
    text = "g (double[N,3,8,8] x) => (double[N,4,6,6] y, double[4,3,3,3] w) { c = Conv(x, w) y = BatchNormalization(c, scale, bias, mean, var) }"
    model, _ = folded(model_of(text, WEIGHTS))
    assert np.array_equal(model.graph.initializers["w"].const_value.numpy(), WEIGHTS["w"])
    assert ops(model) == {"Conv": 1}


def test_new_bias_never_takes_a_name_that_is_taken() -> None:
    text = "g (double[N,3,8,8] x) => (double[N,4,6,6] y, double[4] z) { c = Conv(x, w) y = BatchNormalization(c, scale, bias, mean, var) z = Neg(w_bias) }"
    model, _ = folded(model_of(text, WEIGHTS | constants(w_bias=(4,))))
    assert ops(model)["Conv"] == 1


def test_names_of_outputs_and_of_the_batch_norm_survive() -> None:
    text = f"{CONV} {{ c = Conv(x, w) d = BatchNormalization(c, scale, bias, mean, var) y = Relu(d) }}"
    model, _ = folded(model_of(text, WEIGHTS))
    assert [node.outputs[0].name for node in model.graph] == ["d", "y"]


def test_chain_that_can_go_nowhere_becomes_one_op() -> None:
    text = (
        "g (double[N,4,8,8] x) => (double[N,4,8,8] y) { a = Relu(x) b = BatchNormalization(a, scale, bias, mean, var) "
        "c = Mul(b, k) d = Add(c, l) y = Relu(d) }"
    )
    model, report = folded(model_of(text, norm(4) | constants(k=(4, 1, 1), l=(4, 1, 1))))
    assert ops(model) == {"Relu": 2, "BatchNormalization": 1}
    assert [record.fate for record in report.records] == ["collapsed"]


def test_scale_alone_collapses_to_a_mul_and_shift_alone_to_an_add() -> None:
    text = "g (double[N,8,4] x) => (double[N,8,4] y) { a = Relu(x) b = Mul(a, k) c = Div(b, pos) d = Relu(c) e = Add(d, k) f = Sub(e, pos) y = Relu(f) }"
    model, _ = folded(model_of(text, constants(k=(4,), pos=(4,))))
    assert ops(model) == {"Relu": 3, "Mul": 1, "Add": 1}


def test_affine_that_changes_nothing_is_dropped() -> None:
    text = "g (double[N,4] x) => (double[N,4] y) { a = Relu(x) b = Mul(a, one) c = Add(b, zero) y = Relu(c) }"
    model, _ = folded(model_of(text, {"one": np.ones(4), "zero": np.zeros(1)}))
    assert ops(model) == {"Relu": 2}


def test_affine_between_input_and_output_that_changes_nothing_stays() -> None:
    model, _ = folded(model_of("g (double[N,4] x) => (double[N,4] y) { y = Mul(x, one) }", {"one": np.ones(4)}))
    assert ops(model) == {"Mul": 1}


def test_bias_of_a_matmul_is_no_affine_to_report() -> None:
    text = "g (double[N,2,3] x) => (double[N,2,4] y) { a = MatMul(x, w) b = Add(a, k) y = Relu(b) }"
    model, report = folded(model_of(text, constants(w=(3, 4), k=(4,))))
    assert ops(model) == {"MatMul": 1, "Add": 1, "Relu": 1}
    assert report.records == ()


def test_body_of_a_branch_folds_with_constants_of_the_outer_scope() -> None:
    text = (
        "g (double[N,3,8,8] x, bool flag) => (double[N,4,6,6] y) { y = If (flag) <"
        "then_branch = t () => (double[N,4,6,6] p) { c = Conv(x, w) p = BatchNormalization(c, scale, bias, mean, var) },"
        "else_branch = e () => (double[N,4,6,6] q) { q = Conv(x, w) }> }"
    )
    model, report = folded(model_of(text, WEIGHTS))
    assert ops(model) == {"If": 1, "Conv": 2}
    assert [record.fate for record in report.records] == ["folded"]


def test_body_of_a_loop_folds() -> None:
    text = (
        "g (double[N,3,6,6] x) => (double[N,3,6,6] y, double[K,N,3,6,6] each) { y, each = Loop (trips, go, x) <"
        "body = b (int64 i, bool before, double[N,3,6,6] p) => (bool after, double[N,3,6,6] q, double[N,3,6,6] s) {"
        "after = Identity(before) c = Conv<pads=[1,1,1,1]>(p, w) q = BatchNormalization(c, scale, bias, mean, var) "
        "d = Mul(q, k) s = Conv(d, u) }> }"
    )
    arrays = constants(w=(3, 3, 3, 3), u=(3, 3, 1, 1), k=(3, 1, 1)) | norm(3)
    model, report = folded(model_of(text, arrays | {"trips": np.array(3), "go": np.array(True)}))
    assert ops(model) == {"Loop": 1, "Identity": 1, "Conv": 2}
    assert [record.fate for record in report.records] == ["folded", "folded"]


def test_body_of_a_scan_folds() -> None:
    text = (
        "g (double[2,4] h, double[5,2,3] x) => (double[2,4] y, double[5,2,4] each) { y, each = Scan <num_scan_inputs=1, "
        "body = b (double[2,4] p, double[2,3] t) => (double[2,4] q, double[2,4] s) {"
        "c = Gemm(t, w) n = BatchNormalization(c, scale, bias, mean, var) d = Tanh(p) m = Mul(d, k) e = Gemm(m, u) "
        "q = Add(n, e) s = Identity(q) }> (h, x) }"
    )
    model, report = folded(model_of(text, constants(w=(3, 4), u=(4, 4), k=(4,)) | norm(4)), merge=False)
    assert ops(model) == {"Scan": 1, "Gemm": 2, "Tanh": 1, "Add": 1, "Identity": 1}
    assert [record.fate for record in report.records] == ["folded", "folded"]


def test_producer_in_an_outer_scope_is_a_reason() -> None:
    text = (
        "g (double[N,3,8,8] x, bool flag) => (double[N,4,6,6] y) { c = Conv(x, w) y = If (flag) <"
        "then_branch = t () => (double[N,4,6,6] p) { p = BatchNormalization(c, scale, bias, mean, var) },"
        "else_branch = e () => (double[N,4,6,6] q) { q = ConstantOfShape<value = double[1] {1.0}>(s) }> }"
    )
    model = model_of(text, WEIGHTS | {"s": np.array([2, 4, 6, 6])})
    assert reason_of(fold(model)) == "other-scope"


# Dtypes other than double: the folded weights are the exact ones, rounded once.


def float_model(dtype: str, statistics: str, opset: int = 15) -> ir.Model:
    numpy_dtype = {"float": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
    arrays = {
        name: array.astype(numpy_dtype[dtype if name in ("w", "scale", "bias") else statistics])
        for name, array in WEIGHTS.items()
    }
    if statistics != dtype:
        arrays |= {name: WEIGHTS[name].astype(numpy_dtype[statistics]) for name in ("scale", "bias")}
    return model_of(conv_norm().replace("double", dtype), arrays, opset=opset)


@pytest.mark.parametrize(
    ("dtype", "statistics"),
    [("float", "float"), ("float16", "float16"), ("bfloat16", "bfloat16"), ("float16", "float"), ("bfloat16", "float")],
)
def test_each_weight_is_the_exact_one_rounded_once(dtype: str, statistics: str) -> None:
    model = float_model(dtype, statistics)
    arrays = {name: v.const_value.numpy().astype(np.float64) for name, v in model.graph.initializers.items()}
    scale = arrays["scale"] / np.sqrt(arrays["var"] + np.float64(np.float32(1e-5)))
    stored = model.graph.initializers["w"].const_value.numpy().dtype
    report = fold(model)
    after = {name: v.const_value.numpy() for name, v in model.graph.initializers.items()}
    assert after["w"].dtype == after["w_bias"].dtype == stored
    assert np.array_equal(after["w"], (arrays["w"] * scale[:, None, None, None]).astype(stored))
    assert np.array_equal(after["w_bias"], (arrays["bias"] - scale * arrays["mean"]).astype(stored))
    error = report.records[0].to_json()["rounding_error"]
    assert 0 < error <= float(ml_dtypes.finfo(stored).eps) / 2


def test_several_folds_into_one_weight_round_it_once() -> None:
    text = (
        conv_norm()
        .replace("double", "float16")
        .replace(
            "y = BatchNormalization(c, scale, bias, mean, var)",
            "a = BatchNormalization(c, scale, bias, mean, var) d = Identity(a) y = Mul(d, k)",
        )
    )
    arrays = {n: a.astype(np.float16) for n, a in (WEIGHTS | constants(k=(4, 1, 1))).items()}
    model = model_of(text, arrays)
    wide = {n: a.astype(np.float64) for n, a in arrays.items()}
    scale = wide["scale"] / np.sqrt(wide["var"] + np.float64(np.float32(1e-5))) * wide["k"].ravel()
    fold(model)
    wanted = (wide["w"] * scale[:, None, None, None]).astype(np.float16)
    assert np.array_equal(model.graph.initializers["w"].const_value.numpy(), wanted)


@pytest.mark.parametrize(("factor", "reason"), [(3e4, "overflow"), (1e-6, "underflow")])
def test_float16_that_cannot_hold_the_folded_weight_stays(factor: float, reason: str) -> None:
    arrays = {n: a.astype(np.float16) for n, a in WEIGHTS.items()}
    arrays["w"] = np.full((4, 3, 3, 3), 8.0 if factor > 1 else 0.5, np.float16)
    arrays["scale"] = np.full(4, factor, np.float16)
    arrays["var"] = np.full(4, 1.0, np.float16)
    model = model_of(conv_norm().replace("double", "float16"), arrays)
    assert reason_of(fold(model)) == reason
    assert ops(model) == {"Conv": 1, "BatchNormalization": 1}


def test_float64_keeps_float64_accuracy() -> None:
    _, report = folded(model_of(conv_norm(), WEIGHTS), tolerance=1e-14)
    assert report.records[0].kind is Kind.BATCH_NORM


def test_the_choice_of_nodes_is_respected() -> None:
    text = "g (double[N,3,8,8] x) => (double[N,4,6,6] y) { c = Conv(x, w) y = BatchNormalization(c, scale, bias, mean, var) }"
    model, report = folded(model_of(text, WEIGHTS), selected=lambda node: node.op_type != "BatchNormalization")
    assert reason_of(report) == "not-selected"
    assert ops(model) == {"Conv": 1, "BatchNormalization": 1}


def test_stale_shape_annotations_are_not_believed() -> None:
    """The file says that c has rank 2, so that the constant would lie on the channels; it has rank 4."""
    text = "g (double[N,3,8,6] x) => (double[N,4,6,4] y) { c = Conv(x, w) y = Mul(c, k) }"
    model = model_of(text, constants(w=(4, 3, 3, 3), k=(4,)))
    proto = ir.to_proto(model)
    proto.graph.value_info.append(onnx.helper.make_tensor_value_info("c", onnx.TensorProto.DOUBLE, ["N", 4]))
    stale = ir.from_proto(proto)
    expected = Oracle(stale).run(feeds_of(stale))
    fold(stale)
    assert ops(stale) == {"Conv": 1, "Mul": 1}
    assert np.allclose(Oracle(stale).run(feeds_of(stale))["y"], expected["y"], rtol=1e-12)
