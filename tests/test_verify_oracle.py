"""The float64 oracle: every floating-point value is float64, and the operators mean what ONNX says."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

from bnfold.verification.double import NotInFloat64Error
from bnfold.verification.oracle import Oracle


def parse(text: str) -> ir.Model:
    model = onnx.parser.parse_model(text)
    onnx.checker.check_model(model)
    return ir.from_proto(model)


def header(opset: int, *domains: str) -> str:
    imports = ", ".join([f'"" : {opset}', *(f'"{domain}" : 1' for domain in domains)])
    return f"<ir_version: 8, opset_import: [{imports}]>\n"


BATCH_NORM = (
    "agraph (float[2,3,4] x) => (float[2,3,4] y)\n"
    "<float[3] s = {1, -2, 0.5}, float[3] b = {0.1, 0, 3}, float[3] m = {1, 0, -1}, float[3] v = {0.1, 4, 2}>\n"
)


@pytest.mark.parametrize(
    ("opset", "attributes", "epsilon"),
    [(7, "", 1e-5), (8, "<epsilon = 0.01>", 1e-2), (9, "", 1e-5), (13, "<momentum = 0.5>", 1e-5),
     (14, "<training_mode = 0>", 1e-5), (15, "<epsilon = 0.001>", 1e-3), (21, "", 1e-5)],
)  # fmt: skip
def test_batch_norm_uses_its_running_statistics_in_every_opset(opset, attributes, epsilon):
    model = parse(header(opset) + BATCH_NORM + f"{{ y = BatchNormalization {attributes} (x, s, b, m, v) }}")
    x = np.random.default_rng(0).standard_normal((2, 3, 4))
    s, b, m, v = (
        np.float32(values)[:, None].astype(np.float64)
        for values in ([1, -2, 0.5], [0.1, 0, 3], [1, 0, -1], [0.1, 4, 2])
    )
    expected = s * (x - m) / np.sqrt(v + np.float64(np.float32(epsilon))) + b
    y = Oracle(model).run({"x": x})["y"]
    assert y.dtype == np.float64
    np.testing.assert_allclose(y, expected, rtol=1e-14)


def test_batch_norm_in_training_mode_uses_the_batch():
    model = parse(
        header(15)
        + BATCH_NORM.replace("y)", "y, float[3] rm, float[3] rv)")
        + "{ y, rm, rv = BatchNormalization <training_mode = 1, momentum = 0.75> (x, s, b, m, v) }"
    )
    x = np.random.default_rng(0).standard_normal((2, 3, 4))
    results = Oracle(model).run({"x": x})
    np.testing.assert_allclose(results["y"].mean(axis=(0, 2)), np.float32([0.1, 0, 3]), atol=1e-14)
    np.testing.assert_allclose(results["rm"], np.array([0.75, 0, -0.75]) + 0.25 * x.mean(axis=(0, 2)))


def test_batch_norm_with_parameters_for_each_element_is_not_per_channel():
    text = (
        "agraph (float[1,2,2] x) => (float[1,2,2] y) <float[2,2] s = {1, 2, 3, 4}, float[2,2] z = {0, 0, 0, 0}, "
        "float[2,2] v = {1, 1, 1, 1}> { y = BatchNormalization <spatial = 0, epsilon = 0.0> (x, s, z, z, v) }"
    )
    # The checker wants vectors, and ONNX Runtime and old exporters do not.
    model = ir.from_proto(onnx.parser.parse_model(header(8) + text))
    y = Oracle(model).run({"x": np.ones((1, 2, 2))})["y"]
    np.testing.assert_array_equal(y, [[[1, 2], [3, 4]]])


def test_batch_norm_of_mixed_types_runs_in_float64():
    model = parse(
        header(15)
        + "agraph (float16[2,1,3] x) => (float16[2,1,3] y)\n"
        + "<float[1] s = {0.1}, float[1] b = {0.3}, float[1] m = {0.7}, float[1] v = {0.9}>"
        + "{ y = BatchNormalization (x, s, b, m, v) }"
    )
    y = Oracle(model).run({"x": np.full((2, 1, 3), 0.1, dtype=np.float16)})["y"]
    s, b, m, v = (np.float64(np.float32(value)) for value in (0.1, 0.3, 0.7, 0.9))
    expected = s * (np.float64(np.float16(0.1)) - m) / np.sqrt(v + np.float64(np.float32(1e-5))) + b
    np.testing.assert_allclose(y, expected, rtol=1e-14)


#: Each computes 0.1 (as float32 or exact) + x in a way that names a type somewhere.
TYPED = {
    "cast to float16": "{ h = Cast <to = 10> (x)  y = Add(h, c) }",
    "cast to float and CastLike": "{ i = Cast <to = 7> (n)  z = CastLike(i, x)  y = Add(z, c)  }",
    "constant tensor": "{ k = Constant <value = float {0.1}> ()  y = Add(x, k) }",
    "constant float": "{ k = Constant <value_float = 0.1> ()  y = Add(x, k) }",
    "constant floats": "{ k = Constant <value_floats = [0.1]> ()  y = Add(x, k) }",
    "constant of shape": "{ k = ConstantOfShape <value = float[1] {0.1}> (o)  y = Add(x, k) }",
    "default constant of shape": "{ k = ConstantOfShape (o)  z = Add(x, k)  y = Add(z, c) }",
    "if with an outer value": (
        "{ t = Greater(x, zero)  q = ReduceMin <keepdims = 0> (x)  b = Greater(q, k0)  y = If (b) < "
        "then_branch = g1 () => (float[1] y1) { y1 = Add(x, c) }, "
        "else_branch = g2 () => (float[1] y2) { d = Constant <value = float[1] {0.1}> ()  y2 = Add(x, d) } > }"
    ),
}


@pytest.mark.parametrize("body", TYPED.values(), ids=TYPED)
def test_types_written_anywhere_become_float64(body):
    model = parse(
        header(15)
        + "agraph (float[1] x) => (float[1] y) <float[1] c = {0.1}, float[1] zero = {0}, float k0 = {0}, "
        + "int64[1] o = {1}, int64[1] n = {3}> "
        + body
    )
    x = np.array([1.0 / 3.0])
    y = Oracle(model).run({"x": x})["y"]
    base = 3.0 if "CastLike" in body else x
    assert y.dtype == np.float64
    np.testing.assert_array_equal(y, base + np.float64(np.float32(0.1)))


def test_a_loop_body_runs_in_float64():
    model = parse(
        header(15)
        + "agraph (float[1] x) => (float[1] y) <int64 n = {3}, bool t = {1}, float[1] c = {0.1}> "
        + "{ y = Loop (n, t, x) < body = g (int64 i, bool e, float[1] a) => (bool f, float[1] s) "
        + "{ f = Identity(e)  s = Mul(a, c) } > }"
    )
    x = np.array([1 / 3])
    np.testing.assert_allclose(Oracle(model).run({"x": x})["y"], x * np.float64(np.float32(0.1)) ** 3, rtol=1e-15)


def test_local_functions_use_the_fast_operators():
    model = parse(
        header(15, "local")
        + "agraph (float[1,4,5] x) => (float[1,2,7] y) <float[4,1,3] w = {1,2,3,4,5,6,7,8,9,10,11,12}> "
        + "{ y = local.up (x, w) }\n"
        + '<domain: "local", opset_import: ["" : 15]> up (x, w) => (y) '
        + "{ y = ConvTranspose <group = 2> (x, w) }"
    )
    # Grouped ConvTranspose fails in onnx.reference.
    assert Oracle(model).run({"x": np.ones((1, 4, 5))})["y"].shape == (1, 2, 7)


def test_the_model_itself_is_left_as_it_was():
    model = parse(header(15) + BATCH_NORM + "{ y = BatchNormalization (x, s, b, m, v) }")
    before = ir.to_proto(model).SerializeToString()
    Oracle(model).run({"x": np.zeros((2, 3, 4))})
    assert ir.to_proto(model).SerializeToString() == before


def test_intermediate_values_can_be_asked_for():
    model = parse(header(15) + "agraph (float[1] x) => (float[1] y) { a = Neg(x)  b = Neg(a)  c = Abs(b) y = Neg(c) }")
    values = Oracle(model).values({"x": np.array([2.0])}, ["a", "b", "y"])
    assert {name: value.item() for name, value in values.items()} == {"a": -2.0, "b": 2.0, "y": -2.0}


@pytest.mark.parametrize(
    "body",
    ["{ y = other.Thing (x) }", "{ y = BatchNormalization <momentum = 0.5> (x, s, b, m, v) }"],
    ids=["unknown domain", "operator fails"],
)
def test_an_operator_that_does_not_run_is_named(body):
    text = header(15, "other") + BATCH_NORM.replace("float[3] s = {1, -2, 0.5}", "float[2] s = {1, -2}") + body
    model = ir.from_proto(onnx.parser.parse_model(text))
    with pytest.raises(NotInFloat64Error, match=r"Thing|BatchNormalization"):
        Oracle(model).run({"x": np.zeros((2, 3, 4))})


def test_nudging_moves_weights_by_one_roundoff_and_nothing_else():
    model = parse(
        header(15)
        + "agraph (float[1,2] x) => (float[1,2] y, float[1] z) "
        + "<float[2,2] w = {1, 0, 0, 1}, float[1] power = {2}, float[1] two = {2}> "
        + "{ y = MatMul(x, w)  z = Pow(two, power) }"
    )
    results = Oracle(model).run_nudged({"x": np.ones((1, 2))}, seed=0)
    np.testing.assert_array_equal(np.abs(results["y"] - 1), np.full((1, 2), 2.0**-24))
    assert results["z"] == 4


def test_nudging_reaches_weights_that_are_constants_or_transposed():
    model = parse(
        header(15)
        + "agraph (float[1,2] x) => (float[1,2] y) "
        + "{ k = Constant <value = float[2,2] {1, 0, 0, 1}> ()  w = Transpose <perm = [1, 0]> (k) y = MatMul(x, w) }"
    )
    results = Oracle(model).run_nudged({"x": np.ones((1, 2))}, seed=0)
    assert (results["y"] != 1).all()
