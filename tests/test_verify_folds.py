"""Fold by fold: honest folds are proven, damage is found where it was done, and what cannot be matched is said."""

from __future__ import annotations

import json

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
from folding import constants, model_of, norm, used
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_graphs import Recipe, recipes
from verify_networks import DAMAGES, random_network

from bnfold.fold import fold
from bnfold.fold.commute import RULES
from bnfold.verification import VerifyOptions, verify
from bnfold.verification.fold_proofs import FoldsResult
from bnfold.verification.folds import prove_folds
from bnfold.verification.inputs import Feed, drawn_feeds
from bnfold.verification.oracle import Oracle
from bnfold.verification.specs import input_specs

FLOAT64_ONLY = VerifyOptions(runtime=False, per_fold=True)


def proven(reference: ir.Model, candidate: ir.Model) -> FoldsResult:
    feeds = drawn_feeds(input_specs(reference), samples=1, seed=0)
    return prove_folds(Oracle(reference), Oracle(candidate), feeds)


def engine_fold(model: ir.Model, **choices) -> ir.Model:
    """The candidate that bnfold writes."""
    copy = model.clone()
    fold(copy, **choices)
    return ir.from_proto(ir.to_proto(copy))


def by_hand(seed, dtype="float32", damage=None):
    network = random_network(seed, dtype)
    folded = network.model(True, damage and damage(network, np.random.default_rng(seed)))
    return ir.from_proto(network.model(False)), ir.from_proto(folded)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
@pytest.mark.parametrize("seed", range(2000, 2006))
def test_an_honest_fold_is_proven_fold_by_fold(dtype, seed):
    result = proven(*by_hand(seed, dtype))
    assert result.proven, result.sentence
    assert result.rounded_once
    assert all(proof.algebra is not None and proof.algebra < 1e-13 for proof in result.proofs)
    assert all((proof.ulp or 0) <= 0.51 for proof in result.proofs if dtype != "float64")


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(recipes.map(Recipe.model), st.booleans())
def test_whatever_the_engine_does_is_proven(model, tidy):
    copy = model.clone()
    report = fold(copy, tidy=tidy)
    result = proven(model, ir.from_proto(ir.to_proto(copy)))
    assert result.proven, result.sentence
    assert {proof.node for proof in result.proofs} >= {r.node for r in report.records if r.fate != "kept"}


def test_a_fold_that_goes_another_way_without_an_op_that_computes_nothing_is_proven():
    """The Cast holds the batch norm back; without it, that folds past the difference, and the Mul takes its scale."""
    text = (
        "g (float[N,4,6] x) => (float[N,4,6] y) { n = BatchNormalization(x, scale, bias, mean, var) c = Cast <to=1> (n) "
        "a = Sigmoid(x) m = Mul(a, k) s = Sub(m, c) y = Conv(s, w) }"
    )
    arrays = norm(4) | constants(k=(4, 1), w=(4, 4, 1))
    model = model_of(text, {name: array.astype(np.float32) for name, array in arrays.items()})
    candidate = engine_fold(model, tidy=True)
    assert all(node.op_type != "BatchNormalization" for node in candidate.graph)
    result = proven(model, candidate)
    assert result.proven, result.sentence


@pytest.mark.parametrize(
    "dtype", ["float32", "float16", *(pytest.param(name, marks=pytest.mark.slow) for name in ("bfloat16", "float64"))]
)
@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_found_and_its_fold_is_named(dtype, name):
    network = random_network(3, dtype)
    layers = {f"v{number}" for number, step in enumerate(network.steps) if step in network.linears}
    honest = network.model(True)
    damaged = network.model(True, DAMAGES[name](network, np.random.default_rng(1)))
    changed = {
        one.name[1:]
        for one, other in zip(honest.graph.initializer, damaged.graph.initializer, strict=True)
        if one != other
    }
    result = proven(ir.from_proto(network.model(False)), ir.from_proto(damaged))
    assert {proof.node for proof in result.wrong} == {f"v{number}" for number in changed}, result.sentence
    assert layers >= {proof.node for proof in result.wrong}


def test_one_percent_in_a_channel_of_float16_shows_only_fold_by_fold():
    pair = by_hand(5, "float16", DAMAGES["one channel of one weight off by 1 %"])
    assert verify(*pair, VerifyOptions(per_fold=False)).ok
    result = verify(*pair)
    assert result.verdict == "mismatch"
    assert "wrong fold" in result.sentence
    tolerant = verify(*pair, VerifyOptions(rtol=0.1))
    assert tolerant.ok, "tolerances decide alone"
    assert tolerant.folds is not None
    assert tolerant.folds.wrong
    assert json.loads(json.dumps(result.to_json(), allow_nan=False))["folds"]["proven"] is False


def one_bit(model: ir.Model, name: str, index: int) -> ir.Model:
    """The model with the last bit of one weight flipped."""
    copy = model.clone()
    value = copy.graph.initializers[name]
    array = value.const_value.numpy().copy()
    array.reshape(-1).view(f"u{array.itemsize}")[index] ^= 1
    value.const_value = ir.tensor(array, name=name)
    return copy


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_one_wrong_bit_in_one_weight_is_found(dtype):
    reference, candidate = by_hand(5, dtype)
    result = proven(reference, one_bit(candidate, "w0", 7))
    assert [proof.node for proof in result.wrong] == ["v0"]
    assert "1 element is wrong" in result.sentence


def test_an_operator_outside_of_all_folds_is_looked_at_too():
    text = "agraph (double[N,2,5] x) => (double[N,2,5] y) {{ h = Conv(x, w)  b = BatchNormalization(h, scale, bias, mean, var)  y = Mul(b, {k}) }}"
    arrays = constants(w=(2, 2, 1), k=(2, 5), q=(2, 5)) | norm(2)
    unused = {"k": "q", "q": "k"}
    reference, other = (
        model_of(text.format(k=k), {name: a for name, a in arrays.items() if name != unused[k]}) for k in "kq"
    )
    result = proven(reference, engine_fold(other))
    assert [(proof.kind, proof.verdict) for proof in result.wrong] == [("operator", "function")]
    assert result.wrong[0].node == "y"


STRUCTURAL = [
    # the candidate in place of the honest `Conv → Sub → MaxPool → Conv`, and what is said of it
    ("s = Sub(k, a)", "it reads a constant, v where v, a constant belongs"),
    ("s = Add(v, k)", "Add where Sub belongs"),
    ("s = Identity(v)", "Identity where Sub belongs"),
    ("y = Conv<pads = [1, 1, 1, 0]>(p, w2, b2)", "pads is"),
    ("y = Conv<pads = [1, 1, 1, 1], strides = [2, 1]>(p, w2, b2)", "strides is"),
    ("p = MaxPool<kernel_shape = [3, 3], pads = [1, 1, 1, 1], strides = [1, 2]>(s)", "strides is"),
    ("p = AveragePool<kernel_shape = [3, 3], pads = [1, 1, 1, 1], strides = [2, 1]>(s)", "AveragePool where MaxPool"),
    ("y = Conv<pads = [1, 1, 1, 1]>(s, w2, b2)", "it reads s where p belongs"),
]
HONEST = [
    "v = Conv<pads = [1, 1, 1, 1]>(x, w1, b1)",
    "s = Sub(v, k)",
    "p = MaxPool<kernel_shape = [3, 3], pads = [1, 1, 1, 1], strides = [2, 1]>(s)",
    "y = Conv<pads = [1, 1, 1, 1]>(p, w2, b2)",
]


@pytest.mark.parametrize(("line", "said"), STRUCTURAL, ids=[line for line, _ in STRUCTURAL])
def test_another_operator_is_found_and_described(line, said):
    head = "agraph (float[N,3,9,9] x) => (float[N,4,H,W] y) {{ {} }}"
    arrays = constants(w1=(4, 3, 3, 3), w2=(4, 4, 3, 3), b1=(4,), b2=(4,), k=(4, 9, 9)) | norm(4)
    arrays = {name: array.astype(np.float32) for name, array in arrays.items()}
    before = [HONEST[0].replace("v =", "h ="), "v = BatchNormalization(h, scale, bias, mean, var)", *HONEST[1:]]
    reference = model_of(head.format("\n".join(before)), arrays)
    candidate = ir.to_proto(engine_fold(reference))
    assert proven(reference, ir.from_proto(candidate)).proven
    name = line.split(" =")[0]
    swapped = onnx.parser.parse_node(line.replace("Sub(k, a)", "Sub(k, v)"))
    place = next(i for i, node in enumerate(candidate.graph.node) if node.output[0] == name)
    candidate.graph.node[place].CopyFrom(swapped)
    result = proven(reference, ir.from_proto(candidate))
    assert result.wrong, result.sentence
    assert any(said in proof.detail for proof in result.wrong), result.sentence


def test_the_fold_of_another_tool_is_proven_under_other_names_and_roundings():
    """Folded in float32, as other tools do, with other names for all inner values."""
    network = random_network(11)
    folded = network.model(True)
    for node in folded.graph.node:
        node.input[:] = [f"other_{n}" if n.startswith("v") else n for n in node.input]
        node.output[:] = [f"other_{n}" if n.startswith("v") else n for n in node.output]
    random = np.random.default_rng(0)
    for tensor in folded.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor)
        moved = np.nextafter(array, array * random.choice([0, 2], array.shape), dtype=np.float32)
        tensor.CopyFrom(
            onnx.numpy_helper.from_array(np.where(random.random(array.shape) < 0.6, moved, array), tensor.name)
        )
    result = proven(ir.from_proto(network.model(False)), ir.from_proto(folded))
    assert result.proven, result.sentence
    assert not result.rounded_once
    assert "no more than rounding" in result.sentence


def test_names_that_mean_other_values_do_no_harm():
    reference, candidate = by_hand(8)
    proto = ir.to_proto(candidate)
    names = [name for node in proto.graph.node for name in node.output if name != "y"]
    turned = dict(zip(names, names[1:] + names[:1], strict=True))
    for node in proto.graph.node:
        node.input[:] = [turned.get(name, name) for name in node.input]
        node.output[:] = [turned.get(name, name) for name in node.output]
    result = proven(reference, ir.from_proto(proto))
    assert not result.wrong, result.sentence


def test_operators_that_were_fused_are_proven_together():
    text = "agraph (float[N,3] x) => (float[N,4] y) { h = MatMul(x, w)  n = BatchNormalization(h, scale, bias, mean, var)  y = Relu(n) }"
    arrays = {name: array.astype(np.float32) for name, array in (constants(w=(3, 4)) | norm(4)).items()}
    scale = arrays["scale"].astype(float) / np.sqrt(arrays["var"].astype(float) + np.float32(1e-5))
    weight = (arrays["w"] * scale).astype(np.float32)
    bias = (arrays["bias"] - scale * arrays["mean"]).astype(np.float32)
    fused = "agraph (float[N,3] x) => (float[N,4] y) { g = MatMul(x, w)  k = Add(g, b)  y = Relu(k) }"
    result = proven(model_of(text, arrays), model_of(fused, {"w": weight, "b": bias}))
    assert result.proven, result.sentence
    assert any("no inner value in common" in note for note in result.notes)
    wrong = proven(model_of(text, arrays), model_of(fused, {"w": weight, "b": bias * np.float32(1.01)}))
    assert [proof.verdict for proof in wrong.wrong] == ["function"]


def test_a_wrong_fold_of_the_engine_itself_is_found(monkeypatch):
    """A Relu that lets negative scales pass: the candidate agrees with the engine, and both are wrong."""
    monkeypatch.setitem(RULES, "Relu", RULES["Identity"])
    text = "agraph (double[N,3] x) => (double[N,4] y) { h = MatMul(x, w)  r = Relu(h)  y = BatchNormalization(r, scale, bias, mean, var) }"
    arrays = constants(w=(3, 4)) | norm(4)
    reference = model_of(text, arrays)
    result = proven(reference, engine_fold(reference))
    assert [(proof.node, proof.verdict) for proof in result.wrong] == [("y", "algebra")]
    assert "off by" in result.sentence


def test_branches_that_became_one_are_proven():
    text = """agraph (float[N,4,6,7] x) => (float[N,4,6,7] y) {
        a = Conv<pads = [1, 1, 1, 1]>(x, w3)  c = BatchNormalization(a, scale, bias, mean, var)
        d = Conv(x, w1)  e = BatchNormalization(d, scale_2, bias_2, mean_2, var_2)
        f = BatchNormalization(x, scale_3_, bias_3_, mean_3_, var_3_)
        s = Add(c, e)  y = Add(s, f) }"""
    arrays = constants(w3=(4, 4, 3, 3), w1=(4, 4, 1, 1)) | norm(4) | norm(4, "_2") | norm(4, "_3_")
    reference = model_of(text, {name: array.astype(np.float16).astype(np.float32) for name, array in arrays.items()})
    candidate = engine_fold(reference)
    assert len(list(candidate.graph)) == 1
    result = proven(reference, candidate)
    assert result.proven, result.sentence
    assert [proof.kind for proof in result.proofs].count("merge") == 1
    value = candidate.graph.initializers[next(iter(candidate.graph)).inputs[1].name]
    shifted = np.roll(value.const_value.numpy(), 1, axis=-1)
    value.const_value = ir.tensor(shifted, name=value.name)
    assert {proof.kind for proof in proven(reference, candidate).wrong} == {"merge", "batch_norm"}


def test_a_candidate_that_folded_less_is_followed():
    reference, _ = by_hand(6)
    partly = engine_fold(reference, selected=lambda node: node.outputs[0].name != "v0")
    result = proven(reference, partly)
    assert result.proven, result.sentence
    assert "v0" not in {proof.node for proof in result.proofs}


def test_regions_keep_their_integers_and_draw_the_rest():
    text = """agraph (double[N,4] x, int64[N] i) => (double[N,3] y) {
        t = Gather(table, i)  a = Add(x, t)  h = MatMul(a, w)  n = BatchNormalization(h, scale, bias, mean, var)
        shape = Shape(x)  one = Gather(shape, zero)  m = Unsqueeze(one, zero_)  k = Concat<axis = 0>(m, minus)
        y = Reshape(n, k) }"""
    arrays = constants(table=(5, 4), w=(4, 3)) | norm(3)
    arrays |= {"zero": np.array(0), "zero_": np.array([0]), "minus": np.array([-1])}
    reference = model_of(text, arrays)
    result = proven(reference, engine_fold(reference))
    assert result.proven, result.sentence


@pytest.mark.parametrize("name", ["ordinary", "few channels", "computed beside it"])
def test_constants_that_another_tool_computed_in_their_own_type_are_no_damage(name):
    """Some are the nearest by accident; and what the file computes by itself tells nothing of how others were made."""
    channels = {"ordinary": 24, "few channels": 3, "computed beside it": 24}[name]
    text = "agraph (float[N,3,6,6] x) => (float[N,C,6,6] y) {{ a = Conv(x, w)  {}  y = Relu(b) }}"
    for seed in range(5):
        random = np.random.default_rng(seed)
        arrays = narrow({"w": random.standard_normal((channels, 3, 1, 1)), "scale": random.standard_normal(channels), "bias": random.standard_normal(channels), "mean": random.standard_normal(channels), "var": random.random(channels) + 0.1})  # fmt: skip
        before = "b = BatchNormalization(a, scale, bias, mean, var)"
        after = "b = Identity(a)"
        if name == "computed beside it":
            arrays |= narrow({"k": random.standard_normal((channels, 36)), "l": random.standard_normal((36, 36))})
            arrays["shape"] = np.array([channels, 6, 6])
            extra = "kl = MatMul(k, l)  r = Reshape(kl, shape)  {} = Add({}, r)"
            before, after = before.replace("b =", "n =") + extra.format("b", "n"), extra.format("b", "a")
        scale = arrays["scale"] / np.sqrt(arrays["var"] + np.float32(1e-5))
        folded = {
            "w": arrays["w"] * scale[:, None, None, None],
            "c": arrays["bias"] - scale * arrays["mean"],
        } | {key: array for key, array in arrays.items() if key in ("k", "l", "shape")}
        assert all(array.dtype == np.float32 for key, array in folded.items() if key != "shape")
        candidate = model_of(text.format(after).replace("(x, w)", "(x, w, c)"), folded)
        result = proven(model_of(text.format(before), arrays), candidate)
        assert result.proven, result.sentence


def test_folds_of_large_weights_are_proven_only_if_asked_for(monkeypatch):
    monkeypatch.setattr("bnfold.verification.inquiry._MOST_WEIGHTS", 10)
    pair = by_hand(5)
    result = verify(*pair, VerifyOptions(runtime=False))
    assert result.folds is None
    assert any("--per-fold" in note for note in result.notes)
    assert verify(*pair, FLOAT64_ONLY).folds is not None


def test_what_float64_does_not_run_is_said():
    text = '<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]>\nagraph (float[N,2] x) => (float[N,2] y) <float[2,2] w = {1.1, 2, 3, 4}, float[2] s = {2, 3}> '
    one = "{ h = MatMul(x, w)  m = Mul(h, s)  y = com.microsoft.FastGelu(m) }"
    other = "{ h = MatMul(x, w)  m = Mul(s, h)  y = com.microsoft.FastGelu(m) }"
    pair = (ir.from_proto(onnx.parser.parse_model(text + body)) for body in (one, other))
    result = verify(*pair, VerifyOptions(per_fold=True))
    assert result.ok
    assert result.folds is None
    assert any("folds could not be proven by themselves" in note and "FastGelu" in note for note in result.notes)


def test_images_are_made_small_and_both_sizes_agree():
    text = """agraph (float[1,2,64,65] x) => (float[1,3,H,W] y) {
        a = Conv<strides = [2, 2], auto_pad = "SAME_UPPER">(x, w)  b = BatchNormalization(a, scale, bias, mean, var)
        y = MaxPool<kernel_shape = [3, 3], strides = [2, 2], ceil_mode = 1>(b) }"""
    arrays = {name: array.astype(np.float32) for name, array in (constants(w=(3, 2, 3, 3)) | norm(3)).items()}
    reference = model_of(text, arrays)
    assert proven(reference, engine_fold(reference)).proven


def test_progress_is_told():
    calls = []
    reference, candidate = by_hand(4)
    feeds = drawn_feeds(input_specs(reference), samples=1, seed=0)
    prove_folds(Oracle(reference), Oracle(candidate), feeds, progress=lambda *call: calls.append(call))
    assert {stage for stage, done, total in calls if done == total} == {"algebra of the folds", "the candidate's folds"}


def narrow(arrays):
    return {name: array.astype(np.float32) for name, array in arrays.items()}


CONV_NORM = "agraph (float[N,3,6,6] x) => (float[N,4,6,6] y) { a = Conv<pads = [1, 1, 1, 1]>(x, w)  b = BatchNormalization(a, scale, bias, mean, var)  y = Relu(b) }"


def test_weights_kept_in_a_coarser_type_than_the_reference_has_are_no_rounding():
    reference = model_of(CONV_NORM, narrow(constants(w=(4, 3, 3, 3)) | norm(4)))
    candidate = ir.to_proto(engine_fold(reference))
    weight = candidate.graph.initializer[[t.name for t in candidate.graph.initializer].index("w")]
    halved = onnx.numpy_helper.to_array(weight).astype(np.float16)
    weight.CopyFrom(onnx.numpy_helper.from_array(halved, "half"))
    candidate.graph.node.insert(0, onnx.helper.make_node("Cast", ["half"], ["w"], to=onnx.TensorProto.FLOAT))
    result = proven(reference, ir.from_proto(candidate))
    assert result.wrong, result.sentence


def test_an_output_that_became_a_constant_is_wrong():
    reference = model_of(CONV_NORM, narrow(constants(w=(4, 3, 3, 3)) | norm(4)))
    text = "agraph (float[N,3,6,6] x) => (float[N,4,6,6] y) { y = Identity(c) }"
    result = proven(reference, model_of(text, {"c": np.ones((1, 4, 6, 6), np.float32)}))
    assert result.wrong, result.sentence


def test_a_constant_of_another_shape_that_broadcasts_alike_is_the_same():
    text = "agraph (float[N,3,6,6] x) => (float[N,4,5,5] y) {{ a = Conv(x, w)  b = BatchNormalization(a, scale, bias, mean, var)  r = Tanh(b)  y = Mul(r, k) }}"
    arrays = narrow(constants(w=(4, 3, 2, 2), k=(4, 1, 1)) | norm(4))
    reference = model_of(text.format(), arrays)
    candidate = engine_fold(reference)
    value = candidate.graph.initializers["k"]
    value.const_value = ir.tensor(value.const_value.numpy()[None], name="k")
    value.shape = ir.Shape([1, 4, 1, 1])
    result = proven(reference, candidate)
    assert result.proven, result.sentence


def test_an_operator_whose_meaning_the_opset_changes_is_looked_at():
    """Softmax flattens up to opset 12."""
    text = "agraph (float[N,3,6] x) => (float[N,4,6] y) { a = Conv(x, w)  b = BatchNormalization(a, scale, bias, mean, var)  y = Softmax(b) }"
    arrays = narrow(constants(w=(4, 3, 1)) | norm(4))
    folded = [engine_fold(model_of(text, arrays, opset=opset)) for opset in (12, 13)]
    assert proven(model_of(text, arrays, opset=13), folded[1]).proven
    result = proven(model_of(text, arrays, opset=13), folded[0])
    assert [proof.node for proof in result.wrong] == ["y"], result.sentence


def test_attributes_that_only_say_what_holds_anyway_do_no_harm():
    reference = model_of(CONV_NORM, narrow(constants(w=(4, 3, 3, 3)) | norm(4)))
    candidate = ir.to_proto(engine_fold(reference))
    for name, value in {"group": 1, "strides": [1, 1], "kernel_shape": [3, 3], "auto_pad": "NOTSET"}.items():
        candidate.graph.node[0].attribute.append(onnx.helper.make_attribute(name, value))
    result = proven(reference, ir.from_proto(candidate))
    assert result.proven
    assert all(proof.error is None for proof in result.proofs), "nothing had to be run"


def test_branches_that_were_folded_and_not_merged_are_proven_as_they_are():
    text = """agraph (float[N,4,6,7] x) => (float[N,4,6,7] y) {
        a = Conv<pads = [1, 1, 1, 1]>(x, w3)  c = BatchNormalization(a, scale, bias, mean, var)
        d = Conv(x, w1)  e = BatchNormalization(d, scale_2, bias_2, mean_2, var_2)  y = Add(c, e) }"""
    reference = model_of(text, narrow(constants(w3=(4, 4, 3, 3), w1=(4, 4, 1, 1)) | norm(4) | norm(4, "_2")))
    candidate = engine_fold(reference, merge=False)
    result = proven(reference, candidate)
    assert result.proven
    assert {proof.kind for proof in result.proofs} == {"batch_norm"}
    assert [proof.node for proof in proven(reference, one_bit(candidate, "w1", 3)).wrong] == ["e"]


def test_two_folds_in_a_row_without_an_activation_are_proven_unmerged_too():
    text = """agraph (float[N,4,6,6] x) => (float[N,4,6,6] y) {
        a = Conv(x, w1)  c = BatchNormalization(a, scale, bias, mean, var)
        d = Conv(c, w2)  y = BatchNormalization(d, scale_2, bias_2, mean_2, var_2) }"""
    reference = model_of(text, narrow(constants(w1=(4, 4, 1, 1), w2=(4, 4, 1, 1)) | norm(4) | norm(4, "_2")))
    candidate = engine_fold(reference, merge=False)
    result = proven(reference, candidate)
    assert result.proven
    assert result.rounded_once
    assert [proof.node for proof in proven(reference, one_bit(candidate, "w2", 3)).wrong] == ["y"]


BODIES = {
    "branches": """agraph (float[N,4,5,5] x, bool[1] c) => (float[N,4,5,5] y) {
        a = Conv(x, w)  b = BatchNormalization(a, scale, bias, mean, var)
        y = If(c) <
            then_branch = t () => (float[N,4,5,5] ty) { d = Conv(b, w_2)  e = BatchNormalization(d, scale_2, bias_2, mean_2, var_2)  ty = Relu(e) },
            else_branch = f () => (float[N,4,5,5] fy) { d = Conv(b, w_3)  g = BatchNormalization(d, scale_3, bias_3, mean_3, var_3)  fy = Tanh(g) }> }""",
    "loop": """agraph (float[N,4,5,5] x, int64 n, bool c) => (float[N,4,5,5] y) {
        a = Conv(x, w)  b = BatchNormalization(a, scale, bias, mean, var)
        y = Loop(n, c, b) <body = l (int64 i, bool go, float[N,4,5,5] s) => (bool go_on, float[N,4,5,5] next) {
            go_on = Identity(go)  d = Conv(s, w_2)  e = BatchNormalization(d, scale_2, bias_2, mean_2, var_2)  next = Tanh(e) }> }""",
    "scan": """agraph (float[N,4,5,5] x, float[7,N,4,5,5] many) => (float[N,4,5,5] y, float[7,N,4,5,5] all) {
        a = Conv(x, w)  b = BatchNormalization(a, scale, bias, mean, var)
        y, all = Scan<num_scan_inputs = 1, body = l (float[N,4,5,5] s, float[N,4,5,5] one) => (float[N,4,5,5] next, float[N,4,5,5] out) {
            d = Conv(one, w_2)  e = BatchNormalization(d, scale_2, bias_2, mean_2, var_2)  next = Add(s, e)  out = Tanh(e) }>(b, many) }""",
    "branches in a loop": """agraph (float[N,4,5,5] x, int64 n, bool c) => (float[N,4,5,5] y) {
        y = Loop(n, c, x) <body = l (int64 i, bool go, float[N,4,5,5] s) => (bool go_on, float[N,4,5,5] next) {
            go_on = Identity(go)  a = Conv(s, w)  b = BatchNormalization(a, scale, bias, mean, var)
            next = If(go) <
                then_branch = t () => (float[N,4,5,5] ty) { d = Conv(b, w_2)  e = BatchNormalization(d, scale_2, bias_2, mean_2, var_2)  ty = Relu(e) },
                else_branch = f () => (float[N,4,5,5] fy) { h = Conv(b, w_3)  g = BatchNormalization(h, scale_3, bias_3, mean_3, var_3)  fy = Tanh(g) }> }> }""",
}  # fmt: skip


def with_bodies(name):
    arrays = constants(w=(4, 4, 1, 1), w_2=(4, 4, 1, 1), w_3=(4, 4, 1, 1)) | norm(4) | norm(4, "_2") | norm(4, "_3")
    reference = model_of(BODIES[name], used(BODIES[name], narrow(arrays)))
    return reference, engine_fold(reference)


@pytest.mark.parametrize("name", BODIES)
def test_folds_inside_of_subgraphs_are_proven_one_by_one(name):
    reference, candidate = with_bodies(name)
    result = proven(reference, candidate)
    assert result.proven, result.sentence
    assert result.rounded_once
    norms = [node.outputs[0].name for node in reference.graph.all_nodes() if node.op_type == "BatchNormalization"]
    assert {proof.node for proof in result.proofs} == set(norms)
    assert all(proof.ulp is not None for proof in result.proofs)


@pytest.mark.parametrize("name", BODIES)
def test_one_wrong_bit_inside_of_a_subgraph_is_found_whether_it_is_run_or_not(name):
    """The inputs decide for one branch, and for how many passes; here for the other, and none."""
    reference, candidate = with_bodies(name)
    specs = input_specs(reference)
    feeds = [Feed("still", "user", {s.name: np.zeros([d if isinstance(d, int) else 1 for d in s.shape], s.dtype.numpy()) for s in specs})]  # fmt: skip
    for node in candidate.graph.all_nodes():
        if node.op_type == "Conv":
            broken = one_bit(candidate, node.inputs[1].name, 3)
            result = prove_folds(Oracle(reference), Oracle(broken), feeds)
            assert [proof.verdict for proof in result.wrong] == ["constants"], (node, result.sentence)


def test_folds_in_a_subgraph_that_nothing_tells_apart_are_not_called_proven():
    reference, candidate = with_bodies("branches")
    renamed = next(node for node in candidate.graph if node.op_type == "If")
    renamed.outputs[0].name = "z"
    candidate.graph.append(ir.node("Identity", [renamed.outputs[0]], outputs=[out := ir.Value(name="y")]))
    out.type, out.shape = candidate.graph.outputs[0].type, candidate.graph.outputs[0].shape
    candidate.graph.outputs[0] = out
    result = proven(reference, candidate)
    assert not result.wrong, result.sentence
    assert not result.proven
    assert [proof.node for proof in result.proofs if proof.verdict == "unknown"] == ["e", "g"]


def test_a_branch_that_cannot_be_run_is_run_only_when_it_is_taken():
    text = """agraph (float[2,4,5,5] x) => (float[M,4,5,5] y) {
        a = Conv(x, w)  b = BatchNormalization(a, scale, bias, mean, var)  shape = Shape(x)  size = ReduceMax<keepdims = 0>(shape)  c = Less(size, nine)
        y = If(c) <then_branch = t () => (float[M,4,5,5] ty) { ty = Relu(b) },
                   else_branch = f () => (float[M,4,5,5] fy) { h = Reshape(b, seven)  fy = Conv(h, w) }> }"""
    arrays = narrow(constants(w=(4, 4, 1, 1)) | norm(4)) | {"nine": np.array(9), "seven": np.array([7, 4, 5, 5])}
    reference = model_of(text, arrays)
    assert proven(reference, engine_fold(reference)).proven
