"""What bnfold says that ONNX Runtime folds by itself is what the installed runtime does."""

from __future__ import annotations

from functools import partial

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from folding import constants, model_of, norm

from bnfold.fold.ort import ort_folds
from bnfold.graph import ModelGraph

ort = pytest.importorskip("onnxruntime")

BN = "BatchNormalization(c, scale, bias, mean, var)"
CONV = "g (float[N,3,8,8] x) => (float[N,4,6,6] y)"
CASES = {
    "conv": f"{CONV} {{ c = Conv(x, w) y = {BN} }}",
    "conv with bias": f"{CONV} {{ c = Conv(x, w, b) y = {BN} }}",
    "across Identity": f"{CONV} {{ d = Conv(x, w) c = Identity(d) y = {BN} }}",
    "weight through Identity": f"{CONV} {{ v = Identity(w) c = Conv(x, v) y = {BN} }}",
    "bias of a raw export": f"{CONV} {{ z = Constant<value_float=0.0>() q = CastLike(z, x) n = Constant<value_ints=[4]>() "
    f"e = Expand(q, n) c = Conv(x, w, e) y = {BN} }}",
    "bias through Expand": f"{CONV} {{ z = Constant<value_float=0.0>() n = Constant<value_ints=[4]>() "
    f"e = Expand(z, n) c = Conv(x, w, e) y = {BN} }}",
    "mul": f"{CONV} {{ c = Conv(x, w) y = Mul(c, k) }}",
    "mul, constant first": f"{CONV} {{ c = Conv(x, w) y = Mul(k, c) }}",
    "add": f"{CONV} {{ c = Conv(x, w) y = Add(c, k) }}",
    "other consumer": "g (float[N,3,8,8] x) => (float[N,4,6,6] y, float[N,4,6,6] z) "
    f"{{ c = Conv(x, w) y = {BN} z = Relu(c) }}",
    "after a nonlinearity": f"{CONV} {{ d = Conv(x, w) c = Relu(d) y = {BN} }}",
    "transposed conv": f"g (float[N,4,8,8] x) => (float[N,4,10,10] y) {{ c = ConvTranspose(x, u) y = {BN} }}",
    "gemm": f"g (float[N,3] x) => (float[N,4] y) {{ c = Gemm(x, m) y = {BN} }}",
    "matmul": f"g (float[N,3] x) => (float[N,4] y) {{ c = MatMul(x, m) y = {BN} }}",
    "matmul and add": f"g (float[N,3] x) => (float[N,4] y) {{ d = MatMul(x, m) c = Add(d, b) y = {BN} }}",
    "before a conv": "g (float[N,4,8,8] x) => (float[N,4,6,6] y) { c = Relu(x) d = "
    f"{BN} y = Conv(d, u) }}",
}  # fmt: skip


@pytest.mark.parametrize(("size", "odd"), [(5, "scale bias mean var"), (5, "var"), (4, "")])
def test_model_that_the_runtime_refuses_is_not_called_folded(size: int, odd: str) -> None:
    text = CASES["conv"]
    arrays = constants(w=(4, 3, 3, 3)) | norm(4) | {name: norm(size)[name] for name in odd.split()}
    model = model_of(text, {name: array.astype(np.float32) for name, array in arrays.items()})
    session = partial(ort.InferenceSession, ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    if odd:
        with pytest.raises(Exception, match=r"BatchNorm|dimension|Invalid"):
            session().run(None, {"x": np.zeros((1, 3, 8, 8), np.float32)})
    else:
        session().run(None, {"x": np.zeros((1, 3, 8, 8), np.float32)})
    assert ort_folds(next(n for n in model.graph if n.op_type == "BatchNormalization"), ModelGraph(model)) == (not odd)


@pytest.mark.parametrize("text", CASES.values(), ids=CASES.keys())
def test_prediction_is_what_the_runtime_does(text: str, tmp_path: object) -> None:
    arrays = constants(w=(4, 3, 3, 3), u=(4, 4, 3, 3), m=(3, 4), b=(4,), k=(4, 1, 1)) | norm(4)
    used = {n: a.astype(np.float32) for n, a in arrays.items() if f"{n}," in text or f"{n})" in text}
    model = model_of(text, used)
    kinds = ("BatchNormalization",) if "BatchNorm" in text else ("Mul", "Add")
    sites = [node for node in model.graph if node.op_type in kinds]
    assert len(sites) == 1
    predicted = ort_folds(sites[0], ModelGraph(model))
    left = [node.op_type for node in _as_loaded(model, f"{tmp_path}/loaded.onnx").graph.node]
    assert predicted == (sites[0].op_type not in left)


def _as_loaded(model: ir.Model, path: str) -> onnx.ModelProto:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = path
    ort.InferenceSession(ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"])
    return onnx.load(path)
