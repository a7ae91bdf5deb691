"""LSTM, GRU and RNN in float64: against ONNX Runtime, and folds into them proven and refuted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from folding import Array, model_of
from onnx import TensorProto, helper, numpy_helper

from bnfold.fold import fold
from bnfold.session import SessionOptions, create_session
from bnfold.verification import VerifyOptions, verify
from bnfold.verification.double import NotInFloat64Error
from bnfold.verification.oracle import Oracle
from bnfold.verification.specs import input_specs

TIME, BATCH, INPUTS, HIDDEN = 6, 3, 4, 5
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
LENGTHS = (TIME, 2, 4)
EVERYTHING = {
    "LSTM": ("b", "lens", "h0", "c0", "p"),
    "GRU": ("b", "lens", "h0"),
    "RNN": ("b", "lens", "h0"),
}


def recurrent(
    op: str,
    direction: str,
    given: tuple[str, ...] = ("b",),
    *,
    lengths: tuple[int, ...] = LENGTHS,
    opset: int = 14,
    **attributes: Any,
) -> onnx.ModelProto:
    """One op in float32 with some of its optional inputs, and all of its outputs."""
    directions, rows = 1 + (direction == "bidirectional"), GATES[op] * HIDDEN
    batch_first = attributes.get("layout", 0) == 1
    random = np.random.default_rng(1)
    states = (BATCH, directions, HIDDEN) if batch_first else (directions, BATCH, HIDDEN)
    shapes = {
        "w": (directions, rows, INPUTS),
        "r": (directions, rows, HIDDEN),
        "b": (directions, 2 * rows),
        "h0": states,
        "c0": states,
        "p": (directions, 3 * HIDDEN),
    }
    arrays: dict[str, Array] = {name: random.normal(size=s, scale=0.6).astype(np.float32) for name, s in shapes.items()}
    arrays["lens"] = np.array(lengths, np.int32)
    optional = [name if name in given else "" for name in EVERYTHING[op]]
    outputs = ["y", "yh", "yc"] if op == "LSTM" else ["y", "yh"]
    node = helper.make_node(
        op, ["x", "w", "r", *optional], outputs, hidden_size=HIDDEN, direction=direction, **attributes
    )
    x = helper.make_tensor_value_info(
        "x", TensorProto.FLOAT, [BATCH, TIME, INPUTS] if batch_first else [TIME, BATCH, INPUTS]
    )
    stored = [numpy_helper.from_array(arrays[name], name) for name in node.input if name in arrays]
    results = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    graph = helper.make_graph([node], "g", [x], results, stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def data(seed: int = 2) -> Array:
    return np.random.default_rng(seed).normal(size=(TIME, BATCH, INPUTS)).astype(np.float32)


DIRECTIONS = ("forward", "reverse", "bidirectional")
SETTINGS: list[tuple[str, dict[str, Any]]] = [
    ("LSTM", {}),
    ("LSTM", {"opset": 7}),
    ("LSTM", {"clip": 0.6}),
    ("LSTM", {"input_forget": 1}),
    ("LSTM", {"input_forget": 1, "clip": 0.3}),
    ("GRU", {}),
    ("GRU", {"opset": 7}),
    ("GRU", {"clip": 0.6}),
    ("GRU", {"linear_before_reset": 1}),
    ("GRU", {"linear_before_reset": 1, "clip": 0.3}),
    ("RNN", {}),
    ("RNN", {"opset": 22}),
    ("RNN", {"clip": 0.6}),
]
INPUT_SETS = [(), ("b",), ("lens",), ("b", "h0"), ("b", "lens", "h0"), ("p",), ("c0",), ("b", "lens", "h0", "c0", "p")]


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(("op", "attributes"), SETTINGS, ids=str)
def test_every_setting_agrees_with_the_runtime(op: str, attributes: dict[str, Any], direction: str) -> None:
    for given in INPUT_SETS:
        if set(given) <= set(EVERYTHING[op]):
            assert_agrees(recurrent(op, direction, given, **attributes))


def assert_agrees(model: onnx.ModelProto, tolerance: float = 3e-6) -> None:
    x = data()
    wanted = create_session(model.SerializeToString(), SessionOptions(level="disable")).run(None, {"x": x})
    oracle = Oracle(ir.from_proto(model))
    found = oracle.run({"x": x})
    assert oracle.narrowed == []
    for output, expected in zip(model.graph.output, wanted, strict=True):
        assert found[output.name].dtype == np.float64
        assert found[output.name].shape == expected.shape
        np.testing.assert_allclose(found[output.name], expected, rtol=tolerance, atol=tolerance)


BOUNDED = [
    *("Relu", "Tanh", "Sigmoid", "Affine", "LeakyRelu", "ThresholdedRelu"),
    *("ScaledTanh", "HardSigmoid", "Elu", "Softsign", "Softplus"),
]


@pytest.mark.parametrize("name", BOUNDED)
def test_each_activation_agrees_with_the_runtime(name: str) -> None:
    parameters = {"activation_alpha": [0.3], "activation_beta": [0.7]}
    assert_agrees(recurrent("RNN", "forward", activations=[name], **parameters), 2e-5)
    assert_agrees(recurrent("LSTM", "forward", activations=["Sigmoid", "Tanh", name], **parameters), 2e-5)
    assert_agrees(recurrent("GRU", "forward", activations=["Sigmoid", name], **parameters), 2e-5)


@pytest.mark.parametrize(
    ("names", "alphas", "betas"),
    [
        (["HardSigmoid", "LeakyRelu", "Elu"], [0.3, 0.2, 0.5], [0.4]),
        (["Tanh", "LeakyRelu", "HardSigmoid"], [0.3, 0.2], [0.4]),
        (["Sigmoid", "LeakyRelu", "Elu"], [], []),
        (["HardSigmoid", "LeakyRelu", "Elu"] * 2, [0.3, 0.2, 0.5, 0.1, 0.6, 0.7], [0.4, 0.1]),
        (["HardSigmoid", "LeakyRelu", "Elu"] * 2, [0.3, 0.2], [0.4]),
    ],
    ids=str,
)
def test_parameters_go_to_the_activations_that_have_some_in_their_order(
    names: list[str], alphas: list[float], betas: list[float]
) -> None:
    direction = "forward" if len(names) == 3 else "bidirectional"
    given = {"activation_alpha": alphas} if alphas else {}
    given |= {"activation_beta": betas} if betas else {}
    assert_agrees(recurrent("LSTM", direction, activations=names, **given))


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("op", GATES)
def test_the_other_layout_is_the_same_with_its_axes_exchanged(op: str, direction: str) -> None:
    """ONNX Runtime's CPU provider does not take it."""
    results = []
    for layout in (0, 1):
        model = recurrent(op, direction, ("b", "lens", "h0"), layout=layout)
        state = next(tensor for tensor in model.graph.initializer if tensor.name == "h0")
        array = np.arange(1.0, 1.0 + np.prod(state.dims)).reshape(-1, BATCH, HIDDEN).astype(np.float32) / 10
        state.CopyFrom(numpy_helper.from_array(array.swapaxes(0, layout).copy(), "h0"))
        x = data().swapaxes(0, layout)
        found = Oracle(ir.from_proto(model)).run({"x": x})
        results.append([found["y"].transpose(1, 2, 0, 3) if layout else found["y"], found["yh"].swapaxes(0, layout)])
    for one, other in zip(*results, strict=True):
        np.testing.assert_array_equal(one, other)


def test_outputs_that_are_left_out_do_not_become_inputs_that_are() -> None:
    model = recurrent("GRU", "forward", ("b",))
    del model.graph.output[0]
    model.graph.node[0].output[0] = ""
    later = helper.make_node("Clip", ["yh", "", "one"], ["z"])
    model.graph.node.append(later)
    model.graph.initializer.append(numpy_helper.from_array(np.float32(1), "one"))
    model.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, None))
    assert_agrees(model)


def test_a_sequence_of_no_steps_yields_zeros() -> None:
    for op in GATES:
        assert_agrees(recurrent(op, "bidirectional", ("b", "lens"), lengths=(TIME, 0, 2)))


REFUSED = [
    ("RNN", {"activations": ["Mish"]}),
    ("RNN", {"activations": ["Affine"]}),
    ("RNN", {"activations": ["ThresholdedRelu"]}),
    ("LSTM", {"activations": ["Sigmoid", "Tanh"]}),
    ("GRU", {"lengths": (TIME + 1, 1, 1)}),
    ("GRU", {"lengths": (-1, 1, 1)}),
    ("GRU", {"lengths": (0, 1, 1)}),  # with an initial state, of which the specification does not say what becomes
]


@pytest.mark.parametrize(("op", "attributes"), REFUSED, ids=str)
def test_what_is_not_agreed_on_is_refused(op: str, attributes: dict[str, Any]) -> None:
    oracle = Oracle(ir.from_proto(recurrent(op, "forward", ("b", "lens", "h0"), **attributes)))
    with pytest.raises(NotInFloat64Error):
        oracle.run({"x": data()})


def pair(op: str, *, time: int | str = 6, gain: float = 0.6, seed: int = 0, lengths: bool = True) -> Pair:
    """An affine before a bidirectional op, and the same folded by hand: what a candidate has, in float64."""
    random = np.random.default_rng(seed)
    rows = GATES[op] * HIDDEN
    shapes = {"w": (2, rows, INPUTS), "r": (2, rows, HIDDEN), "b": (2, 2 * rows), "k": (INPUTS,), "s": (INPUTS,)}
    arrays = {name: random.normal(size=shape) for name, shape in shapes.items()}
    arrays["r"] *= gain
    return Pair(op, time, {name: a.astype(np.float32) for name, a in arrays.items()}, lengths)


@dataclass(frozen=True)
class Pair:
    """A reference with an affine before an op, and what a candidate without it may have for weights."""

    op: str
    time: int | str
    arrays: dict[str, Array]
    lengths: bool

    @property
    def weight(self) -> Array:
        """``W ⊙ s`` in float64."""
        return self.arrays["w"].astype(np.float64) * self.arrays["k"]

    @property
    def shift(self) -> Array:
        """``Σ W·t`` of each row, in float64."""
        return (self.arrays["w"].astype(np.float64) * self.arrays["s"]).sum(axis=2)

    def biased(self, shift: Array) -> Array:
        """``B`` with something added to ``Wb``."""
        both = self.arrays["b"].astype(np.float64)
        both[:, : shift.shape[1]] += shift
        return both

    @property
    def reference(self) -> ir.Model:
        """The model before."""
        return self.model("t = Tanh(x) m = Mul(t, k) d = Add(m, s)", self.arrays)

    def candidate(self, **arrays: Array) -> ir.Model:
        """The model after, by its weights; those that are not given are the right ones."""
        given = {"w": self.weight, "b": self.biased(self.shift), **arrays}
        narrow = {name: array.astype(np.float32) for name, array in given.items()}
        return self.model("d = Tanh(x)", {"r": self.arrays["r"], **narrow})

    def model(self, before: str, arrays: dict[str, Array]) -> ir.Model:
        lens, fed = (f", int32[{BATCH}] lens", "lens") if self.lengths else ("", '""')
        states = "y, yh, yc" if self.op == "LSTM" else "y, yh"
        shape = f"float[{self.time},2,{BATCH},{HIDDEN}] y, float[2,{BATCH},{HIDDEN}] yh"
        node = f'{states} = {self.op}<hidden_size={HIDDEN}, direction="bidirectional">(d, w, r, b, {fed})'
        return model_of(f"g (float[{self.time},{BATCH},{INPUTS}] x{lens}) => ({shape}) {{ {before} {node} }}", arrays)


@pytest.mark.parametrize("time", [6, "T"])
@pytest.mark.parametrize("op", GATES)
def test_an_honest_fold_is_proven(op: str, time: int | str) -> None:
    both = pair(op, time=time)
    result = verify(both.reference, both.candidate(), VerifyOptions(samples=1))
    assert result.verdict == "equivalent", result.sentence
    assert result.reference == "float64"
    assert not result.notes
    folded = both.reference
    fold(folded)
    assert verify(both.reference, folded, VerifyOptions(samples=1, runtime=False)).verdict == "equivalent"


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("op", GATES)
def test_an_honest_fold_whose_errors_grow_over_time_is_proven(op: str, seed: int) -> None:
    """With such gains a state depends on the last bit of one far back, and at times there is nothing to be proven."""
    both = pair(op, time=50, gain=2.5, seed=seed, lengths=False)
    result = verify(both.reference, both.candidate(), VerifyOptions(samples=1, runtime=False))
    assert result.verdict in ("equivalent", "nothing proven"), result.sentence


def of_direction(array: Array, direction: int, change: Callable[[Array], Array]) -> Array:
    changed = array.copy()
    changed[direction] = change(array[direction])
    return changed


#: What somebody's fold may do wrong, by the weights that it makes.
WRONG: dict[str, Callable[[Pair], dict[str, Array]]] = {
    "the shift subtracted": lambda p: {"b": p.biased(-p.shift)},
    "no shift": lambda p: {"b": p.biased(0 * p.shift)},
    "the shift scaled too": lambda p: {"b": p.biased((p.weight * p.arrays["s"]).sum(axis=2))},
    "the shift twice, in Rb as well": lambda p: {"b": p.arrays["b"] + np.concatenate([p.shift, p.shift], axis=1)},
    "the shift in one direction only": lambda p: {"b": of_direction(p.biased(p.shift), 1, lambda _: p.arrays["b"][1])},
    "the scale not taken": lambda p: {"w": p.arrays["w"]},
    "the scale on the recurrent weights": lambda p: {"r": p.arrays["r"] * p.arrays["k"][0]},
    "the scale on the rows": lambda p: {"w": p.arrays["w"] * np.resize(p.arrays["k"], p.shift.shape[1])[:, None]},
    "the scale in one direction only": lambda p: {"w": of_direction(p.weight, 0, lambda _: p.arrays["w"][0])},
    "one gate forgotten": lambda p: {"w": np.concatenate([p.arrays["w"][:, :HIDDEN], p.weight[:, HIDDEN:]], axis=1)},
    "directions exchanged": lambda p: {"w": p.weight[::-1]},
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("op", GATES)
def test_a_wrong_fold_is_found(op: str, wrong: str) -> None:
    both = pair(op)
    result = verify(both.reference, both.candidate(**WRONG[wrong](both)), VerifyOptions(samples=1, runtime=False))
    assert result.verdict == "mismatch", wrong


def test_one_wrong_bit_of_a_weight_shows_in_the_proof_of_the_fold() -> None:
    both = pair("LSTM")
    weight = both.weight.astype(np.float32)
    weight[1, 3, 2] = np.nextafter(weight[1, 3, 2], np.float32(9))
    result = verify(both.reference, both.candidate(w=weight), VerifyOptions(samples=1, runtime=False))
    assert result.verdict == "mismatch"
    assert "weight" in result.sentence


@pytest.mark.parametrize(("time", "highest"), [(6, 6), ("T", 1)])
def test_lengths_are_drawn_within_the_data(time: int | str, highest: int) -> None:
    specs = {spec.name: spec for spec in input_specs(pair("GRU", time=time).reference)}
    assert specs["lens"].limits == (1, highest + 1)
