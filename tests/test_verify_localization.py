"""Where a mismatch comes from: the fold, the operator, ONNX Runtime's optimization or the tensor is named."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
from folding import constants, model_of, norm
from hypothesis import given
from hypothesis import strategies as st
from verify_networks import DAMAGES, random_network

from bnfold.cli.main import main
from bnfold.fold import fold
from bnfold.fold.commute import RULES
from bnfold.verification import VerifyOptions, verify
from bnfold.verification.bisection import OPTIMIZERS, first_culprit, smallest_cure

LOCALIZE = VerifyOptions(localize=True)
FLOAT64_ONLY = VerifyOptions(localize=True, runtime=False)


@given(st.integers(1, 60), st.data())
def test_the_smallest_cure_is_found(count, data):
    names = [f"n{index}" for index in range(count)]
    needed = set(data.draw(st.lists(st.sampled_from(names), min_size=1, max_size=3)))
    trials = []

    def heals(left_out):
        trials.append(left_out)
        return needed <= set(left_out)

    assert set(smallest_cure(names, heals) or ()) == needed
    assert len(trials) <= 2 + len(needed) * (1 + count.bit_length())


def test_no_cure_and_no_illness():
    assert smallest_cure(["a", "b"], lambda _names: False) is None
    assert smallest_cure(["a", "b"], lambda _names: True) == []


@pytest.mark.parametrize("count", [1, 2, 7, 64])
def test_the_first_culprit_is_found(count):
    for wanted in range(1, count + 1):
        assert first_culprit(count, lambda n, first=wanted: n >= first) == wanted
    assert first_culprit(count, lambda _n: False) is None


def test_every_transformer_that_onnxruntime_runs_is_known_by_name():
    """Its verbose log tells which ones it runs; rewrite rules it does not tell."""
    code = (
        "import onnx.parser, onnxruntime as ort\n"
        "m = onnx.parser.parse_model('<ir_version: 8, opset_import: [\"\" : 17]> a (float[2] x) => (float[2] y) { y = Neg(x) }')\n"
        "s = ort.SessionOptions(); s.log_severity_level = 0\n"
        "ort.InferenceSession(m.SerializeToString(), s, providers=['CPUExecutionProvider'])"
    )
    log = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True).stderr
    ran = {line.split("GraphTransformer ")[1].split()[0] for line in log.splitlines() if "GraphTransformer " in line}
    needed = {"CastFloat16Transformer", "InsertCastTransformer", "MemcpyTransformer"}
    assert len(ran) > 30
    assert {name for name in ran if not name.endswith("RuleBasedTransformer")} - needed <= set(OPTIMIZERS)


def _parsed(text, opset=17):
    return ir.from_proto(onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]>\n{text}'))


WRONG_AXIS = (
    "agraph (float[3,3] x) => (float[3,3] y) <float[3,3] w = {1,2,3,4,5,6,7,8,9}, float[3] s = {1,2,3}, "
    "float[3] b = {4,5,6}, float[3] m = {7,8,9}, float[3] v = {1,4,9}> "
    "{ h = MatMul(x, w)  t = Transpose<perm = [1, 0]>(h)  y = BatchNormalization(t, s, b, m, v) }"
)


def wrong_axis_pair():
    """ONNX Runtime folds this batch norm, which acts on axis 1 after the Transpose, into the wrong axis of w."""
    candidate = WRONG_AXIS.replace("y = B", "n = B").replace(" }", "  a = Neg(n)  y = Neg(a) }")
    return _parsed(WRONG_AXIS), _parsed(candidate)


def test_a_wrong_optimization_of_onnxruntime_is_named():
    result = verify(*wrong_axis_pair(), LOCALIZE)
    assert result.cause is not None
    assert result.cause.kind == "optimization"
    assert result.cause.culprits == ("MatMul_BatchNormalization_Fusion",)
    assert "disabled_optimizers" in result.cause.sentence
    shipped = [f.ratio for o in result.outputs for f in o.judgement.findings if f.run == "candidate_shipped"]
    assert max(feed.ratio for output in result.outputs for feed in output.feeds) == pytest.approx(max(shipped))


def test_an_optimization_without_a_known_name_is_said(monkeypatch):
    known = tuple(name for name in OPTIMIZERS if "BatchNormalization" not in name)
    monkeypatch.setattr("bnfold.verification.localization.OPTIMIZERS", known)
    cause = verify(*wrong_axis_pair(), LOCALIZE).cause
    assert cause is not None
    assert cause.kind == "unknown"
    assert "stays without any of" in cause.sentence


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_weight_is_named_with_the_fold_that_it_belongs_to(name):
    network = random_network(1)
    damage = DAMAGES[name](network, np.random.default_rng(2))
    reference, candidate = (ir.from_proto(network.model(folded, damage)) for folded in (False, True))
    honest = network.model(True)
    changed = [
        one.name for one, other in zip(honest.graph.initializer, ir.to_proto(candidate).graph.initializer, strict=True)
        if one != other
    ]  # fmt: skip
    cause = verify(reference, candidate, FLOAT64_ONLY).cause
    assert cause is not None
    assert cause.kind == "fold"
    assert cause.culprits == (f"v{changed[0][1:]}",)
    assert all(constant in cause.sentence for constant in changed)
    assert "batch norm" in cause.sentence


def test_an_operator_is_named_that_no_fold_touched():
    text = "agraph (double[N,2,5] x) => (double[N,2,5] y) {{ h = Conv(x, w)  b = BatchNormalization(h, scale, bias, mean, var)  y = {}(b) }}"
    arrays = constants(w=(2, 2, 1)) | norm(2)
    candidate = model_of(text.format("Sigmoid"), arrays)
    fold(candidate)
    cause = verify(model_of(text.format("Tanh"), arrays), candidate, FLOAT64_ONLY).cause
    assert cause is not None
    assert (cause.kind, cause.culprits) == ("operator", ("y",))
    assert "Sigmoid where Tanh belongs" in cause.sentence


def test_a_wrong_rule_of_the_engine_is_bisected_to_its_fold(monkeypatch):
    monkeypatch.setitem(RULES, "Relu", RULES["Identity"])
    lines = ["h0 = MatMul(x, w)"]
    for index in range(6):
        lines.append(f"r{index} = {'Relu' if index == 3 else 'Identity'}(h{index})")
        lines.append(f"b{index} = BatchNormalization(r{index}, scale, bias, mean, var)")
        lines.append(f"h{index + 1} = MatMul(b{index}, w)")
    text = f"agraph (double[N,4] x) => (double[N,4] y) {{ {' '.join(lines)} y = Tanh(h6) }}"
    reference = model_of(text, constants(w=(4, 4)) | norm(4))
    candidate = reference.clone()
    fold(candidate, merge=False)
    cause = verify(reference, candidate, FLOAT64_ONLY).cause
    assert cause is not None
    assert (cause.kind, cause.culprits) == ("engine", ("b3",))
    assert "--keep b3" in cause.sentence


def test_a_tensor_that_overflows_in_its_own_type_is_named():
    text = "agraph (float[N,2] x) => (float[N,2] y) {{ {}  y = Tanh(d) }}"
    arrays = {"k": np.array([1e30, 1], np.float32), "c": np.array([1e10], np.float32)}
    reference = model_of(text.format("a = Mul(x, k)  d = Div(a, k)"), {"k": arrays["k"]})
    candidate = model_of(text.format("a = Mul(x, c)  b = Mul(a, k)  e = Div(b, c)  d = Div(e, k)"), arrays)
    cause = verify(reference, candidate, LOCALIZE).cause
    assert cause is not None
    assert (cause.kind, cause.culprits) == ("tensor", ("b",))
    assert "not finite" in cause.sentence


def test_sequences_on_the_way_are_passed_over():
    text = "agraph (float[2,2] x) => (float[2,2] y) {{ s = SequenceConstruct(x, x)  one = SequenceAt(s, zero)  {}  y = Tanh(d) }}"
    arrays = {"k": np.array([1e30, 1], np.float32), "c": np.array([1e10], np.float32)}
    reference = model_of(text.format("a = Mul(one, k)  d = Div(a, k)"), {"k": arrays["k"], "zero": np.array(0)})
    body = "a = Mul(one, c)  b = Mul(a, k)  e = Div(b, c)  d = Div(e, k)"
    cause = verify(reference, model_of(text.format(body), arrays | {"zero": np.array(0)}), LOCALIZE).cause
    assert cause is not None
    assert (cause.kind, cause.culprits) == ("tensor", ("b",))


def test_without_float64_the_first_tensor_is_found_in_onnxruntime():
    text = '<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]>\nagraph (float[N,2] x) => (float[N,2] y) '
    weights = "<float[2,2] w = {1.1, 2, 3, 4}, float[2] b = {1, 2}, float[2] c = {1, 2.1}> "
    body = "{ h = MatMul(x, w)  a = Add(h, %s)  g = com.microsoft.FastGelu(a)  n = Neg(g)  y = Neg(n) }"
    pair = (ir.from_proto(onnx.parser.parse_model(text + weights + body % name)) for name in "bc")
    cause = verify(*pair, LOCALIZE).cause
    assert cause is not None
    assert (cause.kind, cause.culprits) == ("tensor", ("a",))
    assert "the result of Add" in cause.sentence


def test_a_tensor_that_a_fold_moved_is_not_blamed():
    """`h` is another after the fold, `n` is not: what comes after it is to blame."""
    text = "agraph (float[N,3] x) => (float[N,3] y) {{ h = MatMul(x, w)  n = BatchNormalization(h, scale, bias, mean, var)  y = {} }}"
    arrays = {name: array.astype(np.float32) for name, array in (constants(w=(3, 3)) | norm(3)).items()}
    candidate = model_of(text.format("Tanh(n)"), arrays)
    fold(candidate)
    other = model_of(text.format("Sigmoid(n)"), arrays)
    cause = verify(other, candidate, FLOAT64_ONLY).cause
    assert cause is not None
    assert cause.culprits == ("y",)


def test_the_cause_is_told_and_is_json(tmp_path, capsys):
    reference, candidate = wrong_axis_pair()
    ir.save(reference, tmp_path / "one.onnx")
    ir.save(candidate, tmp_path / "other.onnx")
    arguments = ["verify", str(tmp_path / "one.onnx"), str(tmp_path / "other.onnx"), "--localize"]
    assert main(arguments) == 1
    shown = " ".join(capsys.readouterr().out.split())
    assert "Cause: ONNX Runtime's MatMul_BatchNormalization_Fusion changes the result of this file" in shown
    assert main([*arguments, "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["cause"]["culprits"] == ["MatMul_BatchNormalization_Fusion"]


def test_nothing_is_looked_for_where_all_is_well():
    network = random_network(3)
    pair = (ir.from_proto(network.model(folded)) for folded in (False, True))
    assert verify(*pair, LOCALIZE).cause is None
