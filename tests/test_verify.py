"""Verify from end to end: honest folds pass, damaged ones do not, and what cannot be judged says so."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
from verify_networks import DAMAGES, Network, linear, random_network, resnet50

import bnfold
from bnfold.errors import InputError, MissingExtraError, ModelError
from bnfold.model_file import load_model
from bnfold.verification import VerifyOptions, verify

FLOAT64_ONLY = VerifyOptions(runtime=False)


def _pair(network, damage=None):
    reference = ir.from_proto(network.model(folded=False))
    return reference, ir.from_proto(network.model(folded=True, damage=damage))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("seed", range(1000, 1015))
def test_an_honest_fold_is_equivalent(dtype, seed):
    result = verify(*_pair(random_network(seed, dtype)))
    assert result.verdict == "equivalent", result.sentence
    assert result.reference == "float64"
    assert {f.run for o in result.outputs for f in o.judgement.findings} == {
        "candidate_float64",
        "candidate_plain",
        "candidate_shipped",
    }


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_types_that_the_runtime_cannot_run_are_compared_in_float64(dtype):
    pair = _pair(random_network(7, dtype))
    assert verify(*pair, FLOAT64_ONLY).ok
    with pytest.raises(ModelError, match="--no-runtime"):
        verify(*pair)


def _plain_networks():
    """Networks whose every channel reaches the output."""
    for seed, ops in enumerate(
        [["Conv", "Conv", "Gemm"], ["depthwise", "Conv", "MatMul"], ["ConvTranspose", "Conv", "Gemm", "Gemm"]]
    ):
        random = np.random.default_rng(seed)
        steps, channels, flat = [], 4, False
        for op in ops:
            if op in ("Gemm", "MatMul") and not flat:
                steps += [("GlobalAveragePool", {}), ("Flatten", {})]
                flat = True
            if op == "depthwise":
                steps.append(linear(random, "Conv", channels, channels, groups=channels, pads=[1, 1, 1, 1]))
            elif op == "ConvTranspose":
                steps.append(linear(random, op, channels, 6, groups=2, kernel=2, strides=[2, 2]))
                channels = 6
            else:
                settings = {"pads": [1, 1, 1, 1]} if op == "Conv" else {}
                steps.append(linear(random, op, channels, 8, **settings))
                channels = 8
            steps.append(("LeakyRelu", {}))
        yield pytest.param(Network(steps, ["N", 4, 9, 9]), id="-".join(ops))


@pytest.mark.parametrize("network", list(_plain_networks()))
def test_one_percent_in_any_channel_of_any_weight_is_a_mismatch(network):
    reference = ir.from_proto(network.model(folded=False))
    for target, layer in enumerate(network.linears):
        axis = layer.feature_axis
        for channel in range(layer.weight.shape[axis]):

            def damage(index, weight, bias, place=(target, axis, channel)):
                if index == place[0]:
                    weight = weight.copy()
                    weight[(slice(None),) * place[1] + (place[2],)] *= 1.01
                return weight, bias

            candidate = ir.from_proto(network.model(folded=True, damage=damage))
            result = verify(reference, candidate, replace(FLOAT64_ONLY, per_fold=False))
            assert result.verdict == "mismatch", f"layer {target}, channel {channel}: {result.sentence}"


@pytest.mark.parametrize("name", ["bias × 1.001", "bias dropped", "two channels of a weight swapped", "wrong epsilon"])
@pytest.mark.parametrize("network", list(_plain_networks()))
def test_other_damage_is_a_mismatch(network, name):
    result = verify(*_pair(network, DAMAGES[name](network, np.random.default_rng(1))), FLOAT64_ONLY)
    assert result.verdict == "mismatch"
    assert "in float64" in result.sentence


def test_a_dropped_bias_in_float16_is_a_mismatch():
    network = random_network(3, "float16")
    damage = DAMAGES["bias dropped"](network, np.random.default_rng(0))
    assert verify(*_pair(network, damage)).verdict == "mismatch"


def _parsed(text, opset=17):
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]>\n{text}')
    return ir.from_proto(model)


LINEAR = "agraph (float[N,2] x) => (float[N,2] y) <float[2,2] w = {1, 2, 3, 4}> "


def test_the_same_graph_under_other_names_proves_nothing():
    one = _parsed(LINEAR + "{ h = MatMul(x, w)  y = Relu(h) }")
    other = _parsed(LINEAR.replace(" w ", " weight ") + "{ z = MatMul(x, weight)  y = Relu(z) }")
    result = verify(one, other)
    assert result.verdict == "nothing proven"
    assert not result.ok
    assert "same graph" in result.sentence
    assert result.reference == "none"


def test_an_output_that_ignores_the_inputs_proves_nothing():
    text = "agraph (float[N,2] x) => (float[1] y) <float[1] c = {2}> "
    result = verify(_parsed(text + "{ y = Identity(c) }"), _parsed(text + "{ h = Neg(c)  y = Neg(h) }"), FLOAT64_ONLY)
    assert result.verdict == "nothing proven"
    assert "'y' is the same for all of the inputs" in result.sentence


def test_one_output_that_ignores_the_inputs_is_noted():
    text = "agraph (float[N,2] x) => (float[1] y, float[N,2] z) <float[1] c = {2}> "
    result = verify(
        _parsed(text + "{ y = Identity(c)  z = Neg(x) }"),
        _parsed(text + "{ h = Neg(c)  y = Neg(h)  z = Neg(x) }"),
        FLOAT64_ONLY,
    )
    assert result.ok
    assert any("'y'" in note and "nothing was proven" in note for note in result.notes)


def test_a_custom_operator_falls_back_to_the_runtime_visibly():
    text = '<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]>\nagraph (float[N,2] x) => (float[N,2] y) '
    weights = "<float[2,2] w = {1.1, 2, 3, 4}, float[2] b = {1, 2}, float[2,2] v = {%s, 2, 3, 4}> "

    def model(weight, body):
        return ir.from_proto(onnx.parser.parse_model(text + weights % weight + body))

    reference = model(1, "{ h = MatMul(x, w)  a = Add(h, b)  y = com.microsoft.FastGelu(a) }")
    same = model(1, "{ h = Gemm(x, w, b)  y = com.microsoft.FastGelu(h) }")
    result = verify(reference, same)
    assert result.verdict == "equivalent"
    assert result.reference == "onnxruntime"
    assert "FastGelu" in result.reference_note
    assert any("not float64" in note for note in result.notes)
    wrong = model("1.11", "{ h = Gemm(x, v, b)  y = com.microsoft.FastGelu(h) }")
    assert verify(reference, wrong).verdict == "mismatch"
    with pytest.raises(ModelError, match="FastGelu"):
        verify(reference, same, FLOAT64_ONLY)


def test_a_wrong_optimization_of_the_runtime_is_told_from_a_wrong_file():
    # ONNX Runtime folds this batch norm, which acts on axis 1 after the Transpose, into the wrong axis of w.
    wrong_axis = (
        "agraph (float[3,3] x) => (float[3,3] y) <float[3,3] w = {1,2,3,4,5,6,7,8,9}, float[3] s = {1,2,3}, "
        "float[3] b = {4,5,6}, float[3] m = {7,8,9}, float[3] v = {1,4,9}> "
        "{ h = MatMul(x, w)  t = Transpose<perm = [1, 0]>(h)  y = BatchNormalization(t, s, b, m, v) }"
    )
    reference = _parsed(wrong_axis)
    candidate = _parsed(wrong_axis.replace("y = B", "n = B").replace(" }", "  a = Neg(n)  y = Neg(a) }"))
    result = verify(reference, candidate)
    assert result.verdict == "mismatch"
    assert "as shipped" in result.sentence
    assert any("own optimizations" in note for note in result.notes)
    assert verify(reference, candidate, VerifyOptions(level="disable")).ok


@pytest.mark.parametrize(
    ("candidate", "message"),
    [
        (LINEAR.replace("x)", "z)") + "{ y = MatMul(z, w) }", "different inputs: x in the reference, z in the"),
        (LINEAR.replace("y)", "z)") + "{ z = MatMul(x, w) }", "different outputs: y"),
        (LINEAR.replace("[N,2] x", "[1,2] x") + "{ y = MatMul(x, w) }", r"input 'x' has the shape \[N,2\]"),
        (LINEAR.replace("float", "float16") + "{ y = MatMul(x, w) }", "input 'x' has the type FLOAT in"),
        ("agraph (float[N,2] x) => (float[N,3] y) <float[2,3] w = {1,2,3,4,5,6}> { y = MatMul(x, w) }",
         r"output 'y' has the shape"),
        (LINEAR + "{ r = RandomNormalLike(x)  y = Add(x, r) }", "draws random numbers"),
    ],
)  # fmt: skip
def test_models_that_cannot_be_compared_are_an_error(candidate, message):
    with pytest.raises(ModelError, match=message):
        verify(_parsed(LINEAR + "{ y = MatMul(x, w) }"), _parsed(candidate))


def test_symbolic_dimensions_may_have_other_names():
    one = _parsed(LINEAR + "{ y = MatMul(x, w) }")
    other = _parsed(LINEAR.replace("N", "batch") + "{ h = MatMul(x, w)  y = Identity(h) }")
    assert verify(one, other, FLOAT64_ONLY).ok


def test_overflow_of_the_reference_itself_is_excused():
    text = "agraph (float16[N,2] x) => (float16[N,2] y) <float16[2] k = {40000, 1}> "
    one = _parsed(text + "{ y = Mul(x, k) }")
    other = _parsed(text + "{ n = Neg(x)  h = Mul(n, k)  y = Neg(h) }")
    result = verify(one, other)
    assert result.ok, result.sentence


def test_nan_of_the_reference_must_be_matched():
    text = "agraph (float[N,2] x) => (float[N,2] y) <float[1] k = {1e-6}, float[1] z = {0}> "
    one = _parsed(text + "{ y = Log(x) }")
    other = _parsed(text + "{ p = Max(x, z)  h = Add(p, k)  y = Log(h) }")
    result = verify(one, other)
    assert result.verdict == "mismatch"
    assert "NaN" in result.sentence


def test_integer_outputs_must_be_the_same():
    text = "agraph (float[N,9] x) => (int64[N] y) "
    one = _parsed(text + "{ y = ArgMax<axis = 1, keepdims = 0>(x) }")
    same = _parsed(text + "{ h = ArgMax<axis = 1>(x)  a = Constant<value = int64[1] {1}>()  y = Squeeze(h, a) }")
    wrong = _parsed(text + "{ n = Neg(x)  y = ArgMax<axis = 1, keepdims = 0>(n) }")
    assert verify(one, same).ok
    assert verify(one, wrong).verdict == "mismatch"


def test_users_inputs_take_the_place_of_drawn_ones(tmp_path):
    np.save(tmp_path / "in.npy", np.random.default_rng(0).random((5, 2), dtype=np.float32))
    one = _parsed(LINEAR + "{ y = MatMul(x, w) }")
    other = _parsed(LINEAR + "{ h = MatMul(x, w)  y = Identity(h) }")
    result = verify(one, other, VerifyOptions(inputs=tmp_path / "in.npy"))
    assert result.ok
    assert result.feeds == ("in.npy",)


def test_paths_are_accepted_and_external_data_is_found(tmp_path):
    network = random_network(5)
    for name, folded in (("a.onnx", False), ("b.onnx", True)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        onnx.save(
            network.model(folded),
            tmp_path / name,
            save_as_external_data=True,
            location=f"{name}.data",
            size_threshold=0,
        )
    assert bnfold.verify(tmp_path / "a.onnx", str(tmp_path / "b.onnx")).ok
    assert verify(load_model(tmp_path / "a.onnx"), load_model(tmp_path / "b.onnx")).ok


def test_without_onnxruntime_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    pair = _pair(random_network(1))
    with pytest.raises(MissingExtraError, match=r"bnfold\[cpu\]"):
        verify(*pair)
    assert verify(*pair, FLOAT64_ONLY).ok


@pytest.mark.parametrize("options", [{"samples": 0}, {"rtol": -1.0}, {"atol": float("nan")}, {"level": "most"}])
def test_options_are_checked(options):
    with pytest.raises(InputError):
        VerifyOptions(**options)


def test_the_result_is_json():
    network = random_network(2)
    for damage in (None, DAMAGES["bias dropped"](network, np.random.default_rng(0))):
        document = verify(*_pair(network, damage)).to_json()
        assert json.loads(json.dumps(document, allow_nan=False)) == document


def test_progress_is_told_of_every_run():
    calls = []
    verify(*_pair(random_network(2)), progress=lambda *call: calls.append(call))
    finished = [stage for stage, done, total in calls if done == total]
    assert len(finished) == len(set(finished)) == 9


@pytest.mark.slow
def test_a_resnet50_is_verified_in_full_size():
    network = resnet50()
    options = VerifyOptions(samples=1, batches=(1,))
    assert verify(*_pair(network), options).ok
    damage = DAMAGES["one channel of one weight off by 1 %"](network, np.random.default_rng(0))
    assert verify(*_pair(network, damage), options).verdict == "mismatch"


def test_a_candidate_that_fails_where_the_reference_runs_is_a_mismatch():
    declared = "agraph (float[N,4] x) => (float[N,4] y) <int64[2] s = {1, 4}, int64[2] t = {-1, 4}> "
    one, frozen = (_parsed(f"{declared}{{ h = Neg(x)  y = Reshape(h, {name}) }}") for name in "ts")
    for options in (VerifyOptions(), FLOAT64_ONLY):
        result = verify(one, frozen, options)
        assert result.verdict == "mismatch"
        assert "fails where the reference runs" in result.sentence
        assert "batch 3" in result.sentence


def test_a_candidate_alone_outside_of_float64_is_held_against_float64_all_the_same():
    text = '<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]>\nagraph (float[N,2] x) => (float[N,2] y) '
    weights = "<float[2,2] w = {1.1, 2, 3, 4}> "
    body = "{ y = com.microsoft.FusedMatMul <alpha = %s> (x, w) }"
    reference = ir.from_proto(onnx.parser.parse_model(text + weights + "{ y = MatMul(x, w) }"))
    fused, wrong = (ir.from_proto(onnx.parser.parse_model(text + weights + body % a)) for a in ("1.0", "1.001"))
    result = verify(reference, fused)
    assert result.ok, result.sentence
    assert result.reference == "float64"
    assert any("the candidate does not run in float64" in note for note in result.notes)
    assert verify(reference, wrong).verdict == "mismatch"
    with pytest.raises(ModelError, match="FusedMatMul"):
        verify(reference, fused, FLOAT64_ONLY)


def _flattened(side):
    """A network that leaves its sides open and runs at one of them only."""
    count = 3 * side * side
    weight = ir.tensor(np.random.default_rng(0).standard_normal((count, 2)).astype(np.float32), name="w")
    text = "agraph (float[N,3,H,W] x) => (float[N,2] y) { f = Flatten(x)  y = MatMul(f, w) }"
    model = _parsed(text)
    value = ir.Value(name="w", const_value=weight, type=ir.TensorType(weight.dtype), shape=weight.shape)
    model.graph.initializers["w"] = value
    next(node for node in model.graph if node.op_type == "MatMul").replace_input_with(1, value)
    return model


@pytest.mark.parametrize("runtime", [True, False])
def test_sides_at_which_the_reference_runs_are_found_and_others_left_out(runtime):
    reference = _flattened(32)
    candidate = reference.clone()
    (final,) = (node for node in candidate.graph if node.op_type == "MatMul")
    final.outputs[0].name = "h"
    candidate.graph.append(ir.Node("", "Identity", [final.outputs[0]], outputs=[ir.Value(name="y")]))
    candidate.graph.outputs[0] = candidate.graph[-1].outputs[0]
    result = verify(reference, candidate, VerifyOptions(runtime=runtime))
    assert result.ok, result.sentence
    assert not any("H=" in feed for feed in result.feeds)
    assert any("does not run on these inputs, left out: random H=1 W=1" in note for note in result.notes)


def test_a_reference_that_runs_at_no_size_that_was_tried_asks_for_one():
    with pytest.raises(ModelError, match="--input-shape"):
        verify(_flattened(10), _flattened(11))


def test_a_sequence_as_output_is_refused():
    text = "agraph (float[4,2] x) => (seq(float[2,2]) y) { y = SplitToSequence(x) }"
    with pytest.raises(ModelError, match="output 'y' is not a tensor but a sequence"):
        verify(_parsed(text), _parsed(text.replace("SplitToSequence(x)", "SplitToSequence <axis = 1> (x)")))


def test_an_output_whose_sizes_alone_depend_on_the_inputs_proves_nothing():
    text = "agraph (float[N,2] x) => (float[N,2] y) "
    one = _parsed(text + "{ s = Shape(x)  y = ConstantOfShape(s) }")
    other = _parsed(text + "{ n = Neg(x)  s = Shape(n)  y = ConstantOfShape(s) }")
    assert verify(one, other).verdict == "nothing proven"


def test_decisions_that_an_allowed_error_could_turn_are_noted():
    text = (
        "agraph (float[N,2] x) => (float[N,2] y) <float[2,1] w = {1, 2}, float[1,2] k = {1, 1}> "
        "{ h = MatMul(x, w)  y = %s(h, k) }"
    )
    result = verify(_parsed(text % "MatMul"), _parsed(text % "Mul"))
    assert result.ok
    assert any("so close to a tie" in note for note in result.notes)
    (output,) = result.outputs
    assert output.close_decisions == output.decisions == 24


def test_every_open_dimension_is_varied():
    text = "agraph (float[N,3,H,W] x) => (float[N,1,H,W] y) <float[1,3,1,1] w = {1, 2, 3}> "
    one = _parsed(text + "{ y = Conv(x, w) }")
    wrong = "<float[1,3,1,1] w = {1, 2, 3}, int64[4] s = {-1, 1, 64, 64}> { h = Conv(x, w)  y = Reshape(h, s) }"
    result = verify(one, _parsed(text.partition("<")[0] + wrong))
    assert result.verdict == "mismatch"
    assert "H=" in result.sentence
    assert sum(" H=" in feed for feed in result.feeds) == 3


OWN = (
    '<ir_version: 8, opset_import: ["" : 17, "own" : 1]> agraph (float[9] x) => (float[9] y) { %s } '
    '<domain: "own", opset_import: ["" : 17]> f (a) => (b) { r = RandomNormalLike(a)  b = Add(a, r) }'
)
DROPOUT = "agraph (float[99] x) => (float[99] y) <float r = {0.5}, bool t = {1}, bool u = {0}> { %s }"


@pytest.mark.parametrize("options", [VerifyOptions(), FLOAT64_ONLY], ids=["runtime", "float64"])
@pytest.mark.parametrize(
    ("reference", "candidate"),
    [
        (onnx.parser.parse_model(OWN % "y = own.f(x)"), onnx.parser.parse_model(OWN % "h = own.f(x)  y = Neg(h)")),
        (DROPOUT % "y = Dropout(x, r, t)", DROPOUT % "h = Dropout(x, r, t)  y = Neg(h)"),
        (DROPOUT % "k = Not(u)  y = Dropout(x, r, k)", DROPOUT % "k = Not(u)  h = Dropout(x, r, k)  y = Neg(h)"),
    ],
    ids=["in a function", "training dropout", "computed training dropout"],
)
def test_models_that_draw_random_numbers_are_refused(reference, candidate, options):
    pair = (ir.from_proto(m) if isinstance(m, onnx.ModelProto) else _parsed(m) for m in (reference, candidate))
    with pytest.raises(ModelError, match="random"):
        verify(*pair, options)


def test_dropout_in_inference_is_no_random_number():
    assert verify(_parsed(DROPOUT % "y = Dropout(x, r, u)"), _parsed(DROPOUT % "y = Identity(x)")).ok


@pytest.mark.parametrize(
    ("other", "verdict"), [("3.0000002", "nothing proven"), ("3.00001", "equivalent"), ("4", "equivalent")]
)
def test_an_output_that_is_all_rounding_error_proves_nothing(other, verdict):
    text = (
        "agraph (float[N,2] x) => (float[N,2] y) <float[2,2] v = {3, 0, 0, 3}, float[2,2] w = {W, 0, 0, W}> "
        "{ a = MatMul(x, v)  b = MatMul(x, w)  "
    ).replace("W", other)
    result = verify(_parsed(text + "y = Sub(a, b) }"), _parsed(text + "n = Sub(b, a)  y = Neg(n) }"))
    assert result.verdict == verdict, result.sentence
    assert any("coarse" in note for note in result.notes) == (other == "3.00001")
    assert verify(
        _parsed(text + "y = Sub(a, b) }"), _parsed(text + "n = Sub(b, a)  y = Neg(n) }"), VerifyOptions(rtol=1e-3)
    ).ok


def test_scalars_are_inputs_like_any_other():
    text = "agraph (float x, int64 n, bool b) => (float y) "
    one = _parsed(text + "{ f = Cast <to = 1> (n)  g = Cast <to = 1> (b)  y = Sum(x, f, g) }")
    other = _parsed(text + "{ f = Cast <to = 1> (n)  g = Cast <to = 1> (b)  h = Add(f, g)  y = Add(x, h) }")
    assert verify(one, other).ok


def test_a_model_without_inputs_is_run_once():
    text = "agraph () => (float[2] y) <float[2] c = {1, 2}> "
    result = verify(_parsed(text + "{ y = Neg(c) }"), _parsed(text + "{ h = Neg(c)  y = Identity(h) }"))
    assert (result.verdict, result.feeds) == ("equivalent", ("no inputs",))


def test_provoking_inputs_on_which_the_reference_fails_are_left_out():
    text = "agraph (float[6] x, int64[1] k) => (float[K] y) "
    result = verify(
        _parsed(text + "{ y, i = TopK(x, k) }", 11), _parsed(text + "{ a, i = TopK(x, k)  n = Neg(a)  y = Neg(n) }", 11)
    )
    assert result.ok, result.sentence


def test_an_output_that_is_mostly_not_finite_is_noted():
    text = "agraph (float[N,8] x) => (float[N,8] y) <float[1] one = {1}> "
    one = _parsed(text + "{ a = Sub(x, one)  y = Sqrt(a) }")
    other = _parsed(text + "{ n = Neg(one)  a = Add(x, n)  y = Sqrt(a) }")
    assert any("is NaN or infinite on the random inputs" in note for note in verify(one, other).notes)


def test_a_single_choice_is_held_to_be_the_same():
    text = "agraph (float[1,9] x) => (int64[1] y) "
    one = _parsed(text + "{ y = ArgMax <axis = 1, keepdims = 0> (x) }")
    other = _parsed(text + "{ n = Neg(x)  m = Neg(n)  y = ArgMax <axis = 1, keepdims = 0> (m) }")
    result = verify(one, other)
    assert (result.verdict, result.notes) == ("equivalent", ())
    wrong = _parsed(text + "{ n = Neg(x)  y = ArgMax <axis = 1, keepdims = 0> (n) }")
    assert verify(one, wrong).verdict == "mismatch"
