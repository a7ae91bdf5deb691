"""Constants that only look at the type or the shape of a run-time value do not tie it up."""

from __future__ import annotations

import numpy as np
import pytest
from folding import constants, folded, model_of, norm, ops

from bnfold.fold import fold

BIAS = "zero = Constant<value = double {0.0}>() z = CastLike(zero, c) s = Shape<start=0, end=1>(v) b = Expand(z, s)"
ARRAYS = constants(w=(4, 4, 1, 1), v=(4, 4, 3, 3)) | norm(4)
ROW = "g (double[N,4,8,8] x) => (double[N,4,6,6] y)"


def test_zero_bias_of_the_type_of_a_value_does_not_keep_it() -> None:
    """As torch's exporter writes the second of two convolutions in a row."""
    text = f"{ROW} {{ c = Conv(x, w) {BIAS} y = Conv(c, v, b) }}"
    model, _ = folded(model_of(text, {n: ARRAYS[n] for n in "wv"}))
    assert ops(model) == {"Conv": 1}
    assert sorted(model.graph.initializers) == ["v", "v_bias"]


def test_bounds_of_a_clip_become_initializers() -> None:
    text = "g (double[N,4] x) => (double[N,4] y) { a = CastLike(low, x) b = CastLike(high, x) y = Clip(x, a, b) }"
    model, _ = folded(model_of(text, {"low": np.array(0, np.float32), "high": np.array(6, np.float32)}))
    assert ops(model) == {"Clip": 1}
    assert [value.const_value.numpy().dtype for value in model.graph.initializers.values()] == [np.float64] * 2  # type: ignore[union-attr]


def test_static_shape_becomes_an_initializer_and_a_dynamic_one_stays() -> None:
    body = "s = Shape(x) t = Gather(s, first) u = Concat<axis=0>(t, rest) y = Reshape(x, u)"
    arrays = {"first": np.array([0]), "rest": np.array([-1])}
    static, _ = folded(model_of(f"g (double[2,3,4] x) => (double[2,12] y) {{ {body} }}", arrays))
    assert ops(static) == {"Reshape": 1}
    dynamic, _ = folded(model_of(f"g (double[N,3,4] x) => (double[N,12] y) {{ {body} }}", arrays))
    assert ops(dynamic) == {"Shape": 1, "Gather": 1, "Concat": 1, "Reshape": 1}


@pytest.mark.parametrize(
    "text",
    [
        "g (double[N,40000] x) => (double[N,40000] y) { b = Expand(k, wide) y = Mul(x, b) }",  # one number, repeated
        "g (double[N,300] x) => (double[N,300] y) { i = DequantizeLinear(q, o) f = Cast<to=11>(i) y = Mul(x, f) }",
        "g (double[N,4] x) => (double[2000,2000] y) { z = CastLike(o, x) y = Expand(z, big) }",  # an output itself
        "g (double[N,2000] x) => (double[2000,2000] y) { z = CastLike(o, x) e = Expand(z, big) y = Max(e, e) }",  # large
    ],
)
def test_other_constants_stay_as_they_are(text: str) -> None:
    arrays = {"k": np.array(2.0), "o": np.array(1.0, np.float32), "big": np.array([2000, 2000])}
    arrays |= {"wide": np.array([40000]), "q": np.arange(300, dtype=np.int8) % 7}
    read = [name for name in arrays if any(f"{mark}{name}{end}" in text for mark in " (" for end in ",)")]
    model = model_of(text, {name: arrays[name] for name in read})
    before = ops(model)
    fold(model)
    assert ops(model) == before


@pytest.mark.parametrize(
    "text",
    [
        "g (double[N,4] x) => (double[N,4] y) { b = Neg(k) y = Mul(x, b) }",
        "g (double[N,4] x) => (double[N,4] y) { t = Transpose(w) y = MatMul(x, t) }",
        "g (double[N,4] x) => (double[N,4] y) { h = Shape(w) s = Gather(h, zero) b = Expand(k, s) y = Mul(x, b) }",
        "g (double[N,4] x) => (double[N,4] y) { i = Unsqueeze(rows, first) t = GatherND(w, i) y = MatMul(x, t) }",
    ],
)
def test_constants_that_take_no_more_room_than_their_computation_are_written_out(text: str) -> None:
    arrays = {
        "k": np.array(2.0),
        "w": np.arange(16.0).reshape(4, 4),
        "rows": np.array([3, 1, 2, 0]),
        "zero": np.array([0]),
        "first": np.array([1]),
    }
    read = [name for name in arrays if any(f"{mark}{name}{end}" in text for mark in " (" for end in ",)")]
    model, _ = folded(model_of(text, {name: arrays[name] for name in read}))
    assert sum(ops(model).values()) == 1


def test_known_part_of_a_dynamic_shape_is_a_constant() -> None:
    text = (
        "g (double[N,3,4] x, double[M] z) => (double[12,N] y, int64[1] n)"
        " { s = Shape(x) a = Slice(s, one, three) t = Concat<axis=0>(a, rest) d = Reshape(x, t) e = ReduceSum<keepdims=0>(d, two)"
        " c = Gather(s, one) f = Mul(c, four) g = Concat<axis=0>(f, rest) y = Reshape(x, g) n = Slice(s, zero, one) }"
    )
    arrays = {
        name: np.array([k])
        for name, k in (("one", 1), ("three", 3), ("rest", -1), ("two", 2), ("four", 4), ("zero", 0))
    }
    model, _ = folded(model_of(text, arrays))
    assert ops(model) == {"Shape": 1, "Slice": 1, "Reshape": 2, "ReduceSum": 1}


@pytest.mark.parametrize("opset", [13, 14, 17])
def test_reshape_to_a_computed_shape_is_crossed(opset: int) -> None:
    text = (
        "g (double[N,3,4,4] x) => (double[N,5,M] y) { c = Conv(x, w) s = Shape(c) t = Slice(s, zero, two)"
        " u = Concat<axis=0>(t, rest) r = Reshape(c, u) y = BatchNormalization(r, scale, bias, mean, var) }"
    )
    arrays = norm(5) | constants(w=(5, 3, 3, 3)) | {"zero": np.array([0]), "two": np.array([2]), "rest": np.array([-1])}
    model, _ = folded(model_of(text, arrays, opset=opset))
    assert ops(model) == {"Conv": 1, "Shape": 1, "Slice": 1, "Concat": 1, "Reshape": 1}


def test_integers_that_inference_does_not_compute_become_an_initializer() -> None:
    text = "g (double[2,3,4] x) => (double[2,12] y) { k = Mod(a, b) t = Concat<axis=0>(two, k) y = Reshape(x, t) }"
    arrays = {"a": np.array([-1]), "b": np.array([13]), "two": np.array([2])}
    model, _ = folded(model_of(text, arrays))
    assert ops(model) == {"Reshape": 1}


def test_overridable_value_is_no_constant() -> None:
    text = "g (double[N,4] x, double low) => (double[N,4] y) { a = CastLike(low, x) y = Clip(x, a) }"
    model = model_of(text, {"low": np.array(0.0)})
    fold(model)
    assert ops(model) == {"CastLike": 1, "Clip": 1}


def test_one_constant_serves_all_its_readers() -> None:
    text = "g (double[N,4] x) => (double[N,4] y) { a = CastLike(k, x) b = Max(x, a) y = Min(b, a) }"
    model, _ = folded(model_of(text, {"k": np.array(2.0, np.float32)}))
    assert ops(model) == {"Max": 1, "Min": 1}
    assert len(model.graph.initializers) == 1


def test_weight_that_a_fold_took_out_of_sharing_is_written_out_as_it_is_read() -> None:
    """Two would have taken more room than one and its Transposes; once one is scaled there are two."""
    text = """g (double[N,64] x) => (double[N,64] y, double[N,64] z) {
        t = Transpose(w) a = MatMul(x, t) y = Mul(a, scale) u = Transpose(w) b = Tanh(x) z = MatMul(b, u)
    }"""
    arrays = {"w": np.arange(4096.0).reshape(64, 64) / 4096, "scale": np.arange(1.0, 65.0)}
    model, _ = folded(model_of(text, arrays))
    assert ops(model) == {"MatMul": 2, "Tanh": 1}
    assert len(model.graph.initializers) == 2


def test_what_follows_a_batch_norm_of_constants_is_a_constant_once_the_batch_norm_is_gone() -> None:
    text = """g (double[N,3,3] x) => (double[N,3,3] y) {
        n = BatchNormalization(k, scale, bias, mean, var) r = Unsqueeze(n, zero) m = MatMul(r, w) y = Max(x, m)
    }"""
    model, _ = folded(model_of(text, norm(4) | constants(k=(3, 4), w=(4, 3)) | {"zero": np.array([0])}))
    assert ops(model) == {"MatMul": 1, "Add": 1, "Max": 1}


def test_constant_that_is_written_out_tells_its_shape() -> None:
    text = """g (double[N,2,4] x) => (double[N,2,4] y) {
        s = Div(six, three) t = Concat<axis=0>(s, rest) c = Reshape(k, t)
        n = BatchNormalization(c, scale, bias, mean, var) a = Add(n, v) y = Max(x, a)
    }"""
    arrays = norm(4) | constants(k=(8,), v=(4,))
    arrays |= {"six": np.array([6]), "three": np.array([3]), "rest": np.array([-1])}
    model, _ = folded(model_of(text, arrays))
    assert ops(model) == {"BatchNormalization": 1, "Max": 1}
