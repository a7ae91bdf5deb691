"""What ONNX Runtime computes as one op stays whole, so that it still does after a fold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from folding import constants, folded, model_of, ops, used

from bnfold.fold import fold

ort = pytest.importorskip("onnxruntime")

POOL = constants(w=(6, 8), bias=(8,), v=(8, 6), gamma=(8,), beta=(8,)) | {
    "two": np.array(2.0), "eps": np.array(1e-5), "root": np.array(np.sqrt(2)), "one": np.array(1.0),
    "half": np.array(0.5), "cube": np.array(3.0), "k1": np.array(0.044715), "k2": np.array(np.sqrt(2 / np.pi)),
    "minus": np.array(-0.5),
}  # fmt: skip

MOMENTS = "m = ReduceMean<axes=[-1]>(b) s = Sub(b, m) p = Pow(s, two) u = ReduceMean<axes=[-1]>(p) t = Add(u, eps)"
RMS = "p = Pow(b, two) u = ReduceMean<axes=[-1]>(p) t = Add(u, eps)"
ERF = "d = Div(b, root) e = Erf(d) a = Add(e, one)"
TANH = "p = Pow(b, cube) q = Mul(p, k1) r = Add(b, q) t = Mul(r, k2) u = Tanh(t) a = Add(u, one)"

# From the linear op's result b to c, which another linear op reads; the runtime's op; operator set.
FUSED = [
    ("layer norm", f"{MOMENTS} q = Sqrt(t) d = Div(s, q) g = Mul(d, gamma) c = Add(g, beta)", "LayerNormalization"),
    ("rms norm", f"{RMS} q = Sqrt(t) d = Div(b, q) c = Mul(d, gamma)", "SimplifiedLayerNormalization"),
    ("rms norm, a product", f"{RMS} q = Sqrt(t) r = Reciprocal(q) d = Mul(b, r) c = Mul(gamma, d)", ""),
    ("rms norm, a power", f"{RMS} r = Pow(t, minus) d = Mul(b, r) c = Mul(d, gamma)", ""),
    ("gelu", f"{ERF} f = Mul(b, a) c = Mul(f, half)", "Gelu"),
    ("gelu, half first", f"{ERF} h = Mul(b, half) c = Mul(h, a)", "Gelu"),
    ("gelu, half of the gate", f"{ERF} h = Mul(a, half) c = Mul(b, h)", ""),
    ("gelu by tanh", f"{TANH} h = Mul(b, half) c = Mul(h, a)", "FastGelu"),
]


def network(body: str, dtype: str = "float") -> ir.Model:
    text = (
        f"g ({dtype}[N,5,6] x) => ({dtype}[N,5,6] y) {{ a0 = MatMul(x, w) b = Add(a0, bias) {body} y = MatMul(c, v) }}"
    )
    arrays = {n: a.astype(np.float32 if dtype == "float" else np.float64) for n, a in used(text, POOL).items()}
    return model_of(text, arrays, opset=17)


def as_the_runtime_has_it(model: ir.Model, folder: Path) -> list[str]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    ort.InferenceSession(ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"])
    return sorted(node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node)


@pytest.mark.parametrize(("body", "op"), [row[1:] for row in FUSED], ids=[row[0] for row in FUSED])
def test_what_the_runtime_fuses_stays_whole(body: str, op: str, tmp_path: Path) -> None:
    model = network(body)
    before = as_the_runtime_has_it(model, tmp_path)
    assert any(op in name for name in before), before
    fold(model)
    assert as_the_runtime_has_it(model, tmp_path) == before


APART = [
    ("norm of pixels", "p = Pow(b, two) u = ReduceMean<axes=[1]>(p) t = Add(u, eps) q = Sqrt(t) d = Div(b, q) c = Mul(d, gamma)"),
    ("factor behind another op", f"{MOMENTS} q = Sqrt(t) d = Div(s, q) e = Relu(d) c = Mul(e, gamma)"),
    ("hard swish", "t = Add(b, cube) u = Relu(t) h = Mul(b, u) c = Div(h, two)"),
    ("half without a curve", "h = Mul(b, half) t = Relu(b) c = Mul(h, t)"),
]  # fmt: skip


@pytest.mark.parametrize("body", [row[1] for row in APART], ids=[row[0] for row in APART])
def test_other_factors_fold(body: str) -> None:
    source = network(body, "double")
    model, report = folded(source)
    assert sum(ops(model).values()) < sum(ops(source).values())
    assert "folded" in {record.fate for record in report.records}
