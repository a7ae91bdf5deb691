"""LSTM, GRU and RNN absorb an affine before them, and none after them: a table of graphs, proven in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
import pytest
from dtypes import rounding_moves, with_dtype
from folding import Array, constants, feeds_of, folded, model_of, norm, ops, reason_of, used

from bnfold.fold import fold
from bnfold.fold.report import Collapsed, Kept, Refusal
from bnfold.verification.oracle import Oracle

TIME, BATCH, INPUTS, HIDDEN = 5, 3, 4, 2
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
STEPS = f"double[{TIME},{BATCH},{INPUTS}]"


@dataclass(frozen=True)
class Layer:
    """One recurrent op: which, in how many directions, and what it reads and is told besides."""

    op: str
    direction: str = "forward"
    bias: bool = True
    more: str = ""
    attributes: str = ""
    data: str = "d"
    arrays: dict[str, Array] = field(default_factory=dict)

    @property
    def directions(self) -> int:
        return 2 if self.direction == "bidirectional" else 1

    @property
    def node(self) -> str:
        """``y`` and its states; all of the states are outputs."""
        states = "y, yh, yc" if self.op == "LSTM" else "y, yh"
        bias = "b" if self.bias else '""'
        told = f'hidden_size={HIDDEN}, direction="{self.direction}"{self.attributes}'
        inputs = ", ".join(
            [self.data, "w", "r", *([bias] if self.bias or self.more else []), *([self.more] if self.more else [])]
        )
        return f"{states} = {self.op}<{told}>({inputs})"

    @property
    def outputs(self) -> str:
        batch_first = "layout=1" in self.attributes
        shapes = [(BATCH, TIME, self.directions) if batch_first else (TIME, self.directions, BATCH)]
        shapes += [(BATCH, self.directions) if batch_first else (self.directions, BATCH)] * (
            2 if self.op == "LSTM" else 1
        )
        names = ("y", "yh", "yc")
        return ", ".join(f"double[{','.join(map(str, s))},{HIDDEN}] {n}" for s, n in zip(shapes, names, strict=False))

    @property
    def constants(self) -> dict[str, Array]:
        rows = GATES[self.op] * HIDDEN
        found = constants(
            w=(self.directions, rows, INPUTS), r=(self.directions, rows, HIDDEN), b=(self.directions, 2 * rows)
        )
        return found | {
            "lens": np.array([TIME, 2, 3], np.int32),
            "h0": constants(3, a=(self.directions, BATCH, HIDDEN))["a"],
            "c0": constants(4, a=(self.directions, BATCH, HIDDEN))["a"],
            "p": constants(5, a=(self.directions, 3 * HIDDEN))["a"],
        }


def model(layer: Layer, before: str, declared: str, arrays: dict[str, Array], opset: int = 17) -> ir.Model:
    text = f"g ({declared} x) => ({layer.outputs}) {{ {before} {layer.node} }}"
    return model_of(text, used(text, layer.constants | arrays), opset=opset)


#: An affine on the last axis, behind something that absorbs nothing.
CHAIN = "t = Tanh(x) m = Mul(t, k) d = Add(m, s)"
VECTORS = constants(k=(INPUTS,), s=(INPUTS,))

OP = [Layer(op, direction) for op in GATES for direction in ("forward", "reverse", "bidirectional")]
SETTINGS = [
    *OP,
    *(Layer(op, "bidirectional", bias=False) for op in GATES),
    *(Layer(op, "bidirectional", more="lens") for op in GATES),
    *(Layer(op, "reverse", bias=False, more="lens, h0") for op in GATES),
    *(Layer(op, attributes=", layout=1") for op in GATES),
    *(Layer(op, "bidirectional", attributes=", clip=0.5") for op in GATES),
    Layer("LSTM", "bidirectional", more="lens, h0, c0, p"),
    Layer("LSTM", bias=False, more='"", "", "", p', attributes=", input_forget=1"),
    Layer("LSTM", attributes=', activations=["HardSigmoid", "Softsign", "LeakyRelu"], activation_alpha=[0.3]'),
    Layer("GRU", "bidirectional", attributes=", linear_before_reset=1"),
    Layer("GRU", bias=False, attributes=", linear_before_reset=1, clip=0.5"),
    Layer("RNN", "bidirectional", attributes=', activations=["Relu", "Sigmoid"]'),
]


@pytest.mark.parametrize("layer", SETTINGS, ids=lambda layer: layer.node)
def test_a_recurrent_op_absorbs_an_affine_of_its_data(layer: Layer) -> None:
    declared = f"double[{BATCH},{TIME},{INPUTS}]" if "layout=1" in layer.attributes else STEPS
    source = model(layer, CHAIN, declared, VECTORS)
    result, report = folded(source)
    assert ops(result) == {"Tanh": 1, layer.op: 1}
    assert [record.fate for record in report.records] == ["folded"]
    assert_untouched(source, result, layer)


def assert_untouched(source: ir.Model, result: ir.Model, layer: Layer) -> None:
    """What multiplies the states, its bias, and all else that the op reads are the same bits."""
    before, after = (next(node for node in m.graph if node.op_type == layer.op) for m in (source, result))
    for index, (one, other) in enumerate(zip(before.inputs, after.inputs, strict=False)):
        if index in (0, 1, 3):
            continue
        assert (one is None) == (other is None)
        assert one is None or one.const_value.numpy().tobytes() == other.const_value.numpy().tobytes()
    half = GATES[layer.op] * HIDDEN
    recurrent = after.inputs[3].const_value.numpy()[:, half:]
    stored = before.inputs[3].const_value.numpy()[:, half:] if layer.bias else np.zeros_like(recurrent)
    assert recurrent.tobytes() == stored.tobytes()


BN = "BatchNormalization(c, scale, bias, mean, var)"
SEQUENCE = {"rows": np.array([-1, INPUTS]), "steps": np.array([TIME, BATCH, INPUTS])}
LSTM = Layer("LSTM", "bidirectional")

#: How networks come by a batch norm between the layers; what is left of it besides the op itself.
SHAPES = [
    ("batch norm of rows", f"t = Tanh(x) c = Reshape(t, rows) n = {BN} d = Reshape(n, steps)", STEPS, {"Tanh": 1, "Reshape": 2}),
    ("batch norm of channels first", f"t = Tanh(x) c = Transpose<perm=[1,2,0]>(t) n = {BN} d = Transpose<perm=[2,0,1]>(n)", STEPS, {"Tanh": 1, "Transpose": 2}),
    ("of an image", f"e = Relu(x) c = Relu(e) n = {BN} q = Squeeze(n, two) d = Transpose<perm=[2,0,1]>(q)", f"double[{BATCH},{INPUTS},1,{TIME}]", {"Relu": 2, "Squeeze": 1, "Transpose": 1}),
    ("of an image, pooled", f"e = Relu(x) c = Relu(e) n = {BN} a = AveragePool<kernel_shape=[4,1]>(n) q = Squeeze(a, two) d = Transpose<perm=[2,0,1]>(q)", f"double[{BATCH},{INPUTS},4,{TIME}]", {"Relu": 2, "AveragePool": 1, "Squeeze": 1, "Transpose": 1}),
    ("of an image whose columns become steps", f"e = Relu(x) c = Relu(e) n = {BN} q = Transpose<perm=[3,0,1,2]>(n) d = Reshape(q, steps)", f"double[{BATCH},2,2,{TIME}]", {"Relu": 2, "Transpose": 1, "Reshape": 1}),
    ("a scale alone", "t = Tanh(x) d = Mul(t, k)", STEPS, {"Tanh": 1}),
    ("a shift alone", "t = Tanh(x) d = Sub(s, t)", STEPS, {"Tanh": 1}),
    ("one number", "t = Tanh(x) m = Mul(t, one) d = Add(m, one)", STEPS, {"Tanh": 1}),
    ("the input normalized", "m = Sub(x, s) d = Div(m, k)", STEPS, {}),
    ("through a sum with a constant", "t = Tanh(x) m = Mul(t, k) e = Add(m, whole) d = Identity(e)", STEPS, {"Tanh": 1, "Add": 1, "Identity": 1}),
]  # fmt: skip


@pytest.mark.parametrize("op", GATES)
@pytest.mark.parametrize(("before", "declared", "left"), [s[1:] for s in SHAPES], ids=[s[0] for s in SHAPES])
def test_an_affine_gets_there_in_the_forms_that_networks_have(
    op: str, before: str, declared: str, left: dict[str, int]
) -> None:
    layer = Layer(op, "bidirectional")
    channels = 2 if "double[3,2,2" in declared else INPUTS
    arrays = VECTORS | norm(channels) | SEQUENCE | constants(9, one=(), whole=(TIME, BATCH, INPUTS))
    source = model(layer, before, declared, arrays | {"two": np.array([2])})
    result, _ = folded(source)
    assert ops(result) == left | {op: 1}


@pytest.mark.parametrize("opset", [7, 8, 13, 14, 21, 22, 24])
@pytest.mark.parametrize("op", GATES)
def test_an_affine_is_absorbed_at_every_operator_set(op: str, opset: int) -> None:
    layer = Layer(op, "bidirectional")
    result, _ = folded(model(layer, CHAIN, STEPS, VECTORS, opset))
    assert ops(result) == {"Tanh": 1, op: 1}


def test_layers_with_batch_norms_between_take_in_each_its_own() -> None:
    layers = "".join(
        f"t{i} = Transpose<perm=[0,2,1,3]>(y{i}) c{i} = Reshape(t{i}, rows)"
        f" n{i} = BatchNormalization(c{i}, scale, bias, mean, var) d{i} = Reshape(n{i}, steps)"
        f' y{i + 1} = LSTM<hidden_size=2, direction="bidirectional">(d{i}, w, r, b)'
        for i in range(2)
    )
    text = (
        "g (double[5,3,4] x) => (double[5,2,3,2] y2)"
        f' {{ y0 = LSTM<hidden_size=2, direction="bidirectional">(x, w, r, b) {layers} }}'
    )
    arrays = constants(w=(2, 8, 4), r=(2, 8, 2), b=(2, 16)) | norm(4) | SEQUENCE
    result, report = folded(model_of(text, arrays))
    assert "BatchNormalization" not in ops(result)
    weights = [node.inputs[1] for node in result.graph if node.op_type == "LSTM"]
    assert weights[1] is weights[2]  # both absorbed the same; the first absorbed nothing
    assert weights[0].name == "w"
    assert report.records[0].outcome.into == ("y1",)


def test_no_bias_is_made_where_there_is_nothing_to_add() -> None:
    layer = Layer("LSTM", bias=False)
    result, _ = folded(model(layer, "t = Tanh(x) d = Mul(t, k)", STEPS, VECTORS))
    (node,) = (node for node in result.graph if node.op_type == "LSTM")
    assert len(node.inputs) == 3


def test_a_bias_that_nothing_is_added_to_is_not_copied() -> None:
    layer = Layer("LSTM")
    text = (
        f"g ({STEPS} x) => ({layer.outputs}, double[1,16] z) {{ t = Tanh(x) d = Mul(t, k) {layer.node} z = Tanh(b) }}"
    )
    result, _ = folded(model_of(text, used(text, layer.constants | VECTORS)))
    biases = [value for value in result.graph.initializers.values() if list(value.shape) == [1, 16]]
    assert [value.name for value in biases] == ["b"]


@pytest.mark.parametrize("dtype", ["FLOAT", "FLOAT16", "DOUBLE"])
@pytest.mark.parametrize("op", GATES)
def test_each_weight_is_rounded_once_whatever_its_type(op: str, dtype: str) -> None:
    layer = Layer(op, "bidirectional", more="lens")
    source = with_dtype(model(layer, CHAIN, STEPS, VECTORS), ir.DataType[dtype])
    result = source.clone()
    fold(result)
    assert ops(result) == {"Tanh": 1, op: 1}
    assert_untouched(source, result, layer)
    before = {name: value.const_value.numpy().astype(np.float64) for name, value in source.graph.initializers.items()}
    weight = before["w"] * before["k"]
    bias = before["b"][:, : weight.shape[1]] + (before["w"] * before["s"]).sum(axis=2)
    node = next(node for node in result.graph if node.op_type == op)
    stored, biases = (node.inputs[index].const_value.numpy() for index in (1, 3))
    np.testing.assert_array_equal(stored, weight.astype(stored.dtype))
    np.testing.assert_array_equal(biases[:, : weight.shape[1]], bias.astype(stored.dtype))
    feeds = feeds_of(source)
    moves, wanted, got = (
        rounding_moves(source, ir.DataType[dtype], feeds),
        Oracle(source).run(feeds),
        Oracle(result).run(feeds),
    )
    for name, expected in wanted.items():
        assert np.abs(got[name] - expected).max() <= 6 * moves[name] + 1e-12


BIDIRECTIONAL = Layer("LSTM", "bidirectional")
LIKE = constants(7, time=(TIME, 1, 1), batch=(BATCH, 1), whole=(TIME, 1, INPUTS), k2=(HIDDEN,), four=(2, 1, 1, 1))

#: Reason, what comes before, the op, and what comes after it.
KEPT = [
    ("a scale of steps", "axis-mismatch", "t = Tanh(x) d = Mul(t, time)", BIDIRECTIONAL),
    ("a scale of samples", "axis-mismatch", "t = Tanh(x) d = Mul(t, batch)", BIDIRECTIONAL),
    ("a batch norm of the batch's axis", "axis-mismatch", "c = Tanh(x) d = BatchNormalization(c, scale, bias, mean, var)", BIDIRECTIONAL),
    ("read elsewhere too", "consumer-not-linear", "t = Tanh(x) m = Mul(t, k) d = Identity(m) z = Tanh(m)", BIDIRECTIONAL),
    ("of the weight", "weight-not-constant", "d = Tanh(x) v = Tanh(w) w2 = Mul(v, k)", Layer("LSTM", data="d")),
    ("of the initial state", "consumer-not-linear", "d = Tanh(x) v = Tanh(h0) h2 = Mul(v, k2)", Layer("LSTM", more='"", h2')),
    ("of the recurrent weight", "consumer-not-linear", "d = Tanh(x) v = Tanh(r) r2 = Mul(v, k2)", Layer("LSTM")),
]  # fmt: skip


@pytest.mark.parametrize(("reason", "before", "layer"), [c[1:] for c in KEPT], ids=[c[0] for c in KEPT])
def test_what_algebra_forbids_is_kept_with_its_reason(reason: str, before: str, layer: Layer) -> None:
    text = f"g ({STEPS} x{', ' + STEPS + ' q' if 'q' in before else ''}) => ({layer.outputs}{extra(before)}) {{ {before} {node_of(layer, before)} }}"
    source = model_of(text, used(text, layer.constants | VECTORS | LIKE | norm(BATCH)))
    result, report = folded(source)
    assert ops(result) == ops(source) or reason == "consumer-not-linear"
    assert reason_of(report) == reason


def extra(before: str) -> str:
    return f", {STEPS} z" if "z = " in before else ""


def node_of(layer: Layer, before: str) -> str:
    for name in ("w", "r"):
        if f"{name}2 = " in before:
            return layer.node.replace(f" {name},", f" {name}2,")
    return layer.node


AFTER = [
    ("the hidden axis", "z = Mul(y, k2)"),
    ("the axis of directions", "z = Mul(y, directions)"),
    ("a batch norm of directions", "z = BatchNormalization(y, scale, bias, mean, var)"),
]


@pytest.mark.parametrize("after", [a[1] for a in AFTER], ids=[a[0] for a in AFTER])
@pytest.mark.parametrize("op", GATES)
def test_a_recurrent_op_absorbs_nothing_after_it(op: str, after: str) -> None:
    layer = Layer(op, "bidirectional", data="x")
    text = f"g ({STEPS} x) => (double[{TIME},2,{BATCH},{HIDDEN}] z) {{ {layer.node} {after} }}"
    arrays = layer.constants | constants(k2=(HIDDEN,), directions=(2, 1, 1)) | norm(2)
    source = model_of(text, used(text, arrays))
    result, report = folded(source)
    assert ops(result) == ops(source)
    assert report.records[0].outcome.backward.reason == "producer-not-linear"
    assert report.records[0].outcome.backward.detail.startswith(f"its input comes from {op}")


def constant(name: str, array: Array) -> Callable[[ir.Model], None]:
    """Another array in the place of a constant."""

    def change(model: ir.Model) -> None:
        value = model.graph.initializers[name]
        value.const_value = ir.tensor(array, name=name)
        value.shape, value.dtype = ir.Shape(array.shape), ir.DataType.from_numpy(array.dtype)

    return change


def offered(name: str) -> Callable[[ir.Model], None]:
    """A constant that the caller may feed."""
    return lambda model: model.graph.inputs.append(model.graph.initializers[name])


def asked_for(name: str) -> Callable[[ir.Model], None]:
    """An input in the place of a constant."""

    def change(model: ir.Model) -> None:
        value = model.graph.initializers.pop(name)
        value.const_value = None
        model.graph.inputs.append(value)

    return change


def quantized(model: ir.Model) -> None:
    weight = model.graph.initializers["w"]
    parts = [
        ir.val(name, const_value=ir.tensor(a, name=name))
        for name, a in (("q", np.ones((1, 8, 4), np.int8)), ("e", np.array(0.5)))
    ]
    for part in parts:
        model.graph.register_initializer(part)
    node = ir.node("DequantizeLinear", parts)
    node.outputs[0].name, node.outputs[0].dtype = "dequantized", ir.DataType.DOUBLE
    model.graph.insert_before(model.graph[0], node)
    weight.replace_all_uses_with(node.outputs[0])


#: Reason, and what is done to a model that would fold.
UNFIT = [
    ("the weight is an input with a default", "overridable-input", offered("w")),
    ("the weight is an input", "weight-not-constant", asked_for("w")),
    ("the bias is an input with a default", "weight-not-constant", offered("b")),
    ("the bias is an input", "weight-not-constant", asked_for("b")),
    ("the weight is quantized", "weight-quantized", quantized),
    ("the weight is empty", "parameters-invalid", constant("w", np.zeros((1, 8, 0)))),
    ("the weight is a matrix", "parameters-invalid", constant("w", np.ones((8, 4)))),
    ("the weight is a number", "parameters-invalid", constant("w", np.array(2.0))),
    ("the weight has an odd number of rows", "parameters-invalid", constant("w", np.ones((1, 7, 4)))),
    ("the weight is of two directions", "parameters-invalid", constant("w", np.ones((2, 8, 4)))),
    ("the weight is of other inputs", "parameters-invalid", constant("w", np.ones((1, 8, 3)))),
    ("the weight is of integers", "weight-not-constant", constant("w", np.ones((1, 8, 4), np.int64))),
    ("the bias has half of its length", "parameters-invalid", constant("b", np.ones((1, 8)))),
    ("the bias is a vector", "parameters-invalid", constant("b", np.ones(16))),
    ("the bias is a number", "parameters-invalid", constant("b", np.array(1.0))),
    ("the bias is of two directions", "parameters-invalid", constant("b", np.ones((2, 16)))),
]  # fmt: skip


@pytest.mark.parametrize(("reason", "change"), [c[1:] for c in UNFIT], ids=[c[0] for c in UNFIT])
def test_weights_and_biases_that_cannot_take_it_are_a_reason_to_stay(
    reason: str, change: Callable[[ir.Model], None]
) -> None:
    source = model(Layer("LSTM"), CHAIN, STEPS, VECTORS)
    change(source)
    result = source.clone()
    report = fold(result)
    assert [node.op_type for node in result.graph if node.op_type in ("Mul", "Add")]
    assert reason in {str(r.reason) for record in report.records for r in refusals(record.outcome)}


@pytest.mark.parametrize(
    ("reason", "name", "value"), [("overflow", "k", 6e4), ("overflow", "s", 6e4), ("underflow", "k", 6e-8)]
)
def test_what_does_not_fit_the_weights_type_stays(reason: str, name: str, value: float) -> None:
    source = with_dtype(model(Layer("LSTM"), CHAIN, STEPS, VECTORS), ir.DataType.FLOAT16)
    constant(name, np.array([value, 1, 1, 1], np.float16))(source)
    result = source.clone()
    report = fold(result)
    assert {"Mul", "Add"} & ops(result).keys()
    assert reason in {str(r.reason) for record in report.records for r in refusals(record.outcome)}


def refusals(outcome: object) -> list[Refusal]:
    return [outcome.backward, outcome.forward] if isinstance(outcome, Kept | Collapsed) and outcome.forward else []


def test_an_op_of_another_domain_is_not_touched() -> None:
    source = model(Layer("LSTM"), CHAIN, STEPS, VECTORS)
    node = next(node for node in source.graph if node.op_type == "LSTM")
    node.domain = "com.microsoft"
    result = source.clone()
    fold(result)
    assert ops(result) == ops(source)


def test_open_axes_do_not_hide_a_batch_norm_of_rows() -> None:
    """What Deep Speech 2 writes as ``x.view(t * n, -1)``, of which the inference does not know how long rows are."""
    text = (
        "g (double[T,N,4] x) => (double[T,1,N,2] y) {"
        " t = Tanh(x) s = Shape(t) first = Gather(s, zero) second = Gather(s, one) m = Mul(first, second)"
        " flat = Concat<axis=0>(m, rest) back = Concat<axis=0>(first, second, rest) c = Reshape(t, flat)"
        " n = BatchNormalization(c, scale, bias, mean, var) d = Reshape(n, back) y = LSTM<hidden_size=2>(d, w, r) }"
    )
    indices = {"zero": np.array([0]), "one": np.array([1]), "rest": np.array([-1])}
    result, report = folded(model_of(text, constants(w=(1, 8, 4), r=(1, 8, 2)) | norm(4) | indices))
    assert "BatchNormalization" not in ops(result), report.to_json()
