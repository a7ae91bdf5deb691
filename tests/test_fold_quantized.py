"""Weights behind a DequantizeLinear: folds go into its scales, and only where that is exact."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from folding import Array, feeds_of, folded, model_of, norm, ops, reason_of

from bnfold.fold import fold
from bnfold.verification.oracle import Oracle

CONV = "g (float[N,3,8,8] x) => (float[N,4,6,6] y)"
BN = "BatchNormalization(c, scale, bias, mean, var)"
RANDOM = np.random.default_rng(5)
LEVELS = RANDOM.integers(-120, 120, (4, 3, 3, 3)).astype(np.int8)


def floats(arrays: dict[str, Array]) -> dict[str, Array]:
    return {n: a.astype(np.float32) if a.dtype == np.float64 else a for n, a in arrays.items()}


def arrays_of(text: str, **others: Array) -> dict[str, Array]:
    known = norm(4) | {
        "q": LEVELS,
        "d": np.array([0.01, 0.02, 0.005, 0.03]),
        "z": np.array([0, 3, -5, 1], np.int8),
        "d1": np.array(0.02),
        "z1": np.array(3, np.int8),
        "b": RANDOM.normal(size=4),
        "bq": RANDOM.integers(-1000, 1000, 4).astype(np.int32),
        "qu": RANDOM.integers(0, 255, (4, 3, 3, 3)).astype(np.uint8),
        "zu": np.array([128, 130, 120, 90], np.uint8),
        "m": RANDOM.integers(-120, 120, (3, 4)).astype(np.int8),
        "w": RANDOM.normal(size=(4, 3, 3, 3)),
        "zero": np.array(0, np.int8),
    }
    read = {n for n in known | others if any(f"{mark}{n}{end}" in text for mark in " (" for end in ",)")}
    return floats({n: a for n, a in (known | others).items() if n in read and f" {n} = " not in text})


def proven(text: str, opset: int = 21, **others: Array) -> ir.Model:
    """Fold and compare in float64: what is left is the rounding of each scale and bias to float32."""
    before = model_of(text, arrays_of(text, **others), opset=opset, ir_version=10)
    after, _ = folded(before, tolerance=1e-5)
    feeds = feeds_of(before)
    wanted, got = Oracle(before).run(feeds)["y"], Oracle(after).run(feeds)["y"]
    assert np.max(np.abs(wanted - got)) < 4e-7 * np.max(np.abs(wanted))
    return after


@pytest.mark.parametrize(
    ("text", "left"),
    [
        (f"{CONV} {{ w = DequantizeLinear<axis=0>(q, d, z) c = Conv(x, w) y = {BN} }}", {"Conv": 1, "DequantizeLinear": 1}),
        (f"{CONV} {{ w = DequantizeLinear<axis=0>(q, d) c = Conv(x, w, b) y = {BN} }}", {"Conv": 1, "DequantizeLinear": 1}),
        (f"{CONV} {{ w = DequantizeLinear(q, d1, z1) c = Conv(x, w) y = {BN} }}", {"Conv": 1, "DequantizeLinear": 1}),
        (f"{CONV} {{ w = DequantizeLinear<axis=0>(qu, d, zu) c = Conv(x, w) y = {BN} }}", {"Conv": 1, "DequantizeLinear": 1}),
        (f"{CONV} {{ w = DequantizeLinear<axis=-4>(q, d, z) e = DequantizeLinear(bq, d1) c = Conv(x, w, e) y = {BN} }}", {"Conv": 1, "DequantizeLinear": 1}),
        (f"{CONV} {{ v = QuantizeLinear(w, d1, zero) u = DequantizeLinear(v, d1, zero) c = Conv(x, u) y = {BN} }}", {"Conv": 1, "DequantizeLinear": 1}),
        (f"g (float[N,3] x) => (float[N,4] y) {{ w = DequantizeLinear<axis=1>(m, d) c = MatMul(x, w) y = {BN} }}", {"MatMul": 1, "Add": 1, "DequantizeLinear": 1}),
        (f"g (float[N,3] x) => (float[N,4] y) {{ w = DequantizeLinear(m, d1) c = Gemm<alpha=0.5>(x, w, b) y = {BN} }}", {"Gemm": 1, "DequantizeLinear": 1}),
        (f"{CONV} {{ w = DequantizeLinear<axis=0>(q, d, z) s = Mul(x, two) t = Add(s, two) c = Conv(t, w) y = {BN} }}", {"Conv": 1, "DequantizeLinear": 1}),
    ],
)  # fmt: skip
def test_fold_goes_into_the_scales(text: str, left: dict[str, int]) -> None:
    positive = {"scale": np.abs(norm(4)["scale"]) + 0.1}
    after = proven(text, **positive, two=np.array(2.0))
    assert ops(after) == left
    stored = [v.const_value.numpy().dtype for v in after.graph.initializers.values() if v.const_value is not None]
    assert any(dtype.kind in "iu" and dtype.itemsize == 1 for dtype in stored), "the weight is still of integers"


def test_negative_factor_turns_the_levels_where_they_fit() -> None:
    text = f"{CONV} {{ w = DequantizeLinear<axis=0>(q, d) c = Conv(x, w) y = {BN} }}"
    after = proven(text, scale=np.array([-1.0, 2.0, -0.5, 0.0]))
    (dequantize,) = [node for node in after.graph if node.op_type == "DequantizeLinear"]
    levels, scale = (value.const_value.numpy() for value in dequantize.inputs[:2])  # type: ignore[union-attr]
    assert np.array_equal(levels, LEVELS * np.array([-1, 1, -1, 0], np.int8).reshape(-1, 1, 1, 1))
    assert np.all(scale > 0)
    lowest = LEVELS.copy()
    lowest[0, 0, 0, 0] = -128
    before = model_of(text, arrays_of(text, q=lowest, scale=np.array([-1.0, 2.0, -0.5, 1.0])))
    report = fold(before)
    assert reason_of(report) == "negative-scale"
    assert ops(before)["BatchNormalization"] == 1


@pytest.mark.parametrize(
    ("reason", "text", "opset"),
    [
        ("weight-quantized", f"{CONV} {{ w = DequantizeLinear<axis=1>(q, d3) c = Conv(x, w) y = {BN} }}", 17),
        ("weight-quantized", f"{CONV} {{ w = DequantizeLinear(q, d1) c = Conv(x, w) y = {BN} }}", 12),
        ("weight-quantized", "g (float[N,4] x) => (float[N,4] y) { w = DequantizeLinear<axis=0, block_size=2>(mb, db) c = MatMul(x, w) y = BatchNormalization(c, scale, bias, mean, var) }", 21),
        ("weight-not-constant", f"g (float[N,3,8,8] x, float s) => (float[N,4,6,6] y) {{ w = DequantizeLinear(q, s) c = Conv(x, w) y = {BN} }}", 17),
    ],
)  # fmt: skip
def test_quantized_weight_stays_where_its_scales_cannot_say_it(reason: str, text: str, opset: int) -> None:
    blocks = {"mb": np.ones((4, 4), np.int8), "db": np.arange(1.0, 9.0).reshape(2, 4)}
    before = model_of(text, arrays_of(text, d3=np.array([0.1, 0.2, 0.3]), **blocks), opset=opset, ir_version=10)
    nodes = ops(before)
    assert reason_of(fold(before)) == reason
    assert ops(before) == nodes


def test_weight_in_blocks_is_called_so() -> None:
    text = f"g (float[N,4] x) => (float[N,4] y) {{ w = DequantizeLinear<axis=0, block_size=2>(mb, db) c = MatMul(x, w) y = {BN} }}"
    arrays = arrays_of(text, mb=np.ones((4, 4), np.int8), db=np.arange(1.0, 9.0).reshape(2, 4))
    (record,) = fold(model_of(text, arrays, opset=21, ir_version=10)).records
    assert "is stored in blocks" in record.sentence
    assert record.hint == "fold before quantizing"


def test_batch_norm_before_a_quantized_weight_folds_only_if_uniform() -> None:
    text = "g (float[N,3,8,8] x) => (float[N,4,6,6] y) { a = BatchNormalization(x, scale, bias, mean, var) w = DequantizeLinear<axis=0>(q, d) y = Conv(a, w) }"
    three = floats({n: a[:3] for n, a in norm(4).items()})
    model = model_of(text, {**three, **floats({"q": LEVELS, "d": np.array([0.01, 0.02, 0.005, 0.03])})})
    assert reason_of(fold(model)) == "weight-quantized"


def test_shared_quantized_weight_is_left_to_its_other_reader() -> None:
    text = f"g (float[N,3,8,8] x) => (float[N,4,6,6] y, float[N,4,6,6] r) {{ w = DequantizeLinear<axis=0>(q, d, z) c = Conv(x, w) y = {BN} o = Conv(x, w) r = Relu(o) }}"
    positive = {"scale": np.abs(norm(4)["scale"]) + 0.1}
    after = proven(text, **positive)
    assert ops(after) == {"Conv": 2, "DequantizeLinear": 2, "Relu": 1}
    levels = {node.inputs[0] for node in after.graph if node.op_type == "DequantizeLinear"}
    assert len(levels) == 1, "the integers are stored once"


def test_batch_norm_whose_parameters_are_quantized_folds() -> None:
    text = f"{CONV} {{ scale = DequantizeLinear<axis=0>(sq, d) c = Conv(x, w) y = {BN} }}"
    after = proven(text, sq=np.array([10, 20, 30, 40], np.int8))
    assert ops(after) == {"Conv": 1}


def test_quantized_branches_stay_apart() -> None:
    text = "g (float[N,4,8,8] x) => (float[N,4,8,8] y) { w = DequantizeLinear(v, d1) c = Conv(x, w) y = Add(c, x) }"
    model = model_of(text, arrays_of(text, v=RANDOM.integers(-9, 9, (4, 4, 1, 1)).astype(np.int8)))
    report = fold(model)
    assert ops(model) == {"DequantizeLinear": 1, "Conv": 1, "Add": 1}
    assert [str(merge.refusal.reason) for merge in report.merges if merge.refusal] == ["weight-quantized"]


@pytest.mark.parametrize("opset", [13, 17])
def test_fold_agrees_with_the_runtime_in_older_operator_sets(opset: int) -> None:
    ort = pytest.importorskip("onnxruntime")
    text = f"{CONV} {{ w = DequantizeLinear<axis=0>(q, d, z) c = Conv(x, w, b) y = {BN} }}"
    before = model_of(text, arrays_of(text), opset=opset)
    after = before.clone()
    assert fold(after).batch_norms_after == 0
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    results = []
    for model in (before, after):
        content = ir.to_proto(model).SerializeToString()
        session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        results.append(session.run(None, feeds_of(before))[0])
    assert np.max(np.abs(results[0] - results[1])) < 1e-5 * np.max(np.abs(results[0]))
