"""Each reason is reached by a graph, with a sentence for it; together they are all that there are."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from folding import Array, constants, model_of, norm, used

from bnfold.fold import fold
from bnfold.fold.report import FoldReport, Kept, Reason, Refusal
from bnfold.shapes import described

POOL = constants(
    w=(4, 3, 3, 3), v=(4, 3, 3, 3), w1=(1, 3, 3, 3), m=(4, 5), k=(4, 1, 1), columns=(6,), big=(300, 300)
) | norm(4)
BN = "BatchNormalization(c, scale, bias, mean, var)"
IN = "g (double[N,3,8,8] x{more}) => (double[N,4,6,6] y) "
CONV = IN + "{{ c = Conv(x, w) {body} }}"
AFTER = IN + "{{ d = Conv(x, w) {body} y = " + BN + " }}"
BEFORE = "g (double[N,4,6,6] x) => (double[N,4,A,B] y) {{ a = Tanh(x) c = Softplus(a) b = " + BN + " {body} }}"


@dataclass(frozen=True)
class Case:
    reason: Reason
    text: str
    arrays: dict[str, Array] = field(default_factory=dict)
    opset: int = 17
    choices: dict[str, Any] = field(default_factory=dict)

    def model(self) -> ir.Model:
        return model_of(self.text, used(self.text, POOL | self.arrays), opset=self.opset)


def case(reason: Reason, frame: str, body: str, more: str = "", **arrays: Array) -> Case:
    return Case(reason, frame.format(body=body, more=more), arrays)


QUANTIZED = {
    "q": np.ones((4, 4, 1, 1), np.int8), "qs": np.array(0.5, np.float32), "qz": np.array(3, np.int8),
} | {name: array.astype(np.float32) for name, array in norm(4).items()}  # fmt: skip

CASES = [
    case(Reason.PRODUCER_NOT_LINEAR, AFTER, "c = Tanh(d)"),
    case(Reason.CONSUMER_NOT_LINEAR, BEFORE, "y = Tanh(b)"),
    case(Reason.OTHER_CONSUMER, AFTER, "c = Add(d, d)"),
    case(Reason.GRAPH_INPUT, AFTER, "c = Add(d, u)", ", double[N,4,6,6] u"),
    Case(
        Reason.GRAPH_OUTPUT,
        BEFORE.replace("y)", "y, double[N,4,6,6] b)").format(body="y = Conv(b, p)"),
        constants(p=(4, 4, 1, 1)),
    ),
    case(Reason.NO_CONSUMER, BEFORE, "y = Identity(b)"),
    Case(
        Reason.OTHER_SCOPE,
        "g (double[N,3,8,8] x, bool flag) => (double[N,4,6,6] y) { c = Conv(x, w) y = If (flag) <"
        f"then_branch = t () => (double[N,4,6,6] p) {{ p = {BN} }},"
        "else_branch = e () => (double[N,4,6,6] q) { q = Conv(x, v) }> }",
    ),
    case(Reason.WEIGHT_NOT_CONSTANT, IN + "{{ c = Conv(x, r) {body} }}", f"y = {BN}", ", double[4,3,3,3] r"),
    Case(
        Reason.ROUNDED_BETWEEN,
        "g (float[N,4,8,8] x) => (float[N,4,8,8] y) { u = QuantizeLinear(x, qs, qz) c = DequantizeLinear(u, qs, qz) "
        f"y = {BN} }}",
        QUANTIZED,
    ),
    Case(
        Reason.WEIGHT_QUANTIZED,
        "g (float[N,4,6,6] x) => (float[N,4,6,6] y) { c = Tanh(x) d = BatchNormalization(c, scale, bias, mean, var) "
        "r = DequantizeLinear(q, qs, qz) y = Conv(d, r) }",
        QUANTIZED,
    ),
    case(Reason.PARAMETERS_NOT_CONSTANT, CONV, "y = BatchNormalization(c, scale, bias, mean, r)", ", double[4] r"),
    case(Reason.PARAMETERS_INVALID, CONV, f"y = {BN}", var=np.array([1.0, -1.0, 1.0, 1.0])),
    case(Reason.OVERRIDABLE_INPUT, CONV, f"y = {BN}", ", double[4] bias"),
    case(Reason.TRAINING_MODE, CONV, "y = BatchNormalization<training_mode=1>(c, scale, bias, mean, var)"),
    Case(
        Reason.SPATIAL,
        CONV.format(body="y = BatchNormalization<spatial=0>(c, scale, bias, mean, var)", more=""),
        opset=7,
    ),
    case(Reason.AXIS_MISMATCH, CONV, "y = Mul(c, columns)"),
    case(Reason.PADDING, BEFORE, "y = Conv<pads=[1,1,1,1]>(b, p)", p=constants(p=(4, 4, 3, 3))["p"]),
    case(Reason.NEGATIVE_SCALE, AFTER, "c = MaxPool<kernel_shape=[1,1]>(d)"),
    case(Reason.NONZERO_SHIFT, AFTER, "c = Relu(d)"),
    Case(
        Reason.NO_BIAS,
        "g (double[4,4,4] x) => (double[4,4,5] y) { c = Tanh(x) b = BatchNormalization(c, scale, bias, mean, var) t = Transpose<perm=[0,2,1]>(b) y = MatMul(t, m) }",
    ),
    case(Reason.BROADCAST_CHANGES_SHAPE, AFTER, "f = Conv(x, w1) c = Add(d, f)"),
    case(Reason.UNKNOWN_SHAPE, AFTER, "c = Slice(d, run, run)", ", int64[4] run"),
    Case(
        Reason.OVERFLOW,
        "g (float16[N,3,4,4] x) => (float16[N,4,4,4] y) { c = Conv(x, h) y = Mul(c, s) }",
        {"h": np.full((4, 3, 1, 1), 8, np.float16), "s": np.linspace(1e4, 2e4, 4).reshape(4, 1, 1).astype(np.float16)},
    ),
    Case(
        Reason.UNDERFLOW,
        "g (float16[N,3,4,4] x) => (float16[N,4,4,4] y) { c = Conv(x, h) y = Mul(c, s) }",
        {"h": np.full((4, 3, 1, 1), 1e-3, np.float16), "s": np.linspace(1, 4, 4).reshape(4, 1, 1).astype(np.float16) / 1e4},
    ),
    case(Reason.UNSUPPORTED_OP, BEFORE, "y = Max(b, x)"),
    Case(
        Reason.COST,
        "g (double[1,3,302,302] x) => (double[1,4,300,300] y) { d = Conv(x, w) c = Add(d, big) "
        f"y = {BN} }}",
    ),
    Case(Reason.NOT_SELECTED, CONV.format(body=f"y = {BN}", more=""), choices={"selected": lambda _node: False}),
]  # fmt: skip


def reasons(report: FoldReport) -> set[Reason]:
    outcomes = [record.outcome for record in report.records if isinstance(record.outcome, Kept)]
    return {
        refusal.reason for outcome in outcomes for refusal in (outcome.backward, outcome.forward) if refusal is not None
    }


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case.reason))
def test_reason_is_reached(case: Case) -> None:
    report = fold(case.model(), **case.choices)
    assert case.reason in reasons(report), [record.sentence for record in report.records]
    assert all(record.sentence for record in report.records)


#: The refusals of both directions, and the one of the two that comes first.
FIRST = [
    # an output at which the graph ends hides nothing
    (Reason.PRODUCER_NOT_LINEAR, Reason.NO_CONSUMER, Reason.PRODUCER_NOT_LINEAR),
    (Reason.NONZERO_SHIFT, Reason.NO_CONSUMER, Reason.NONZERO_SHIFT),
    (Reason.OTHER_CONSUMER, Reason.NO_CONSUMER, Reason.OTHER_CONSUMER),
    (Reason.GRAPH_INPUT, Reason.NO_CONSUMER, Reason.GRAPH_INPUT),
    # what a user can do something about, in either direction
    (Reason.PRODUCER_NOT_LINEAR, Reason.GRAPH_OUTPUT, Reason.GRAPH_OUTPUT),
    (Reason.NONZERO_SHIFT, Reason.PADDING, Reason.PADDING),
    (Reason.OTHER_CONSUMER, Reason.UNKNOWN_SHAPE, Reason.UNKNOWN_SHAPE),
    (Reason.OVERRIDABLE_INPUT, Reason.PADDING, Reason.OVERRIDABLE_INPUT),
    (Reason.GRAPH_OUTPUT, Reason.CONSUMER_NOT_LINEAR, Reason.GRAPH_OUTPUT),
    # else what stands on the way, rather than an op that takes no affine at all, or none
    (Reason.PRODUCER_NOT_LINEAR, Reason.NONZERO_SHIFT, Reason.NONZERO_SHIFT),
    (Reason.PRODUCER_NOT_LINEAR, Reason.CONSUMER_NOT_LINEAR, Reason.CONSUMER_NOT_LINEAR),
    (Reason.GRAPH_INPUT, Reason.CONSUMER_NOT_LINEAR, Reason.CONSUMER_NOT_LINEAR),
    (Reason.NEGATIVE_SCALE, Reason.CONSUMER_NOT_LINEAR, Reason.NEGATIVE_SCALE),
    (Reason.OTHER_CONSUMER, Reason.CONSUMER_NOT_LINEAR, Reason.OTHER_CONSUMER),
]


@pytest.mark.parametrize(("backward", "forward", "first"), FIRST)
def test_first_reason_is_the_one_nearest_to_a_fold(backward: Reason, forward: Reason, first: Reason) -> None:
    assert Kept(Refusal(backward, "back"), Refusal(forward, "on")).decisive.reason is first


def test_reason_that_has_no_direction_comes_first() -> None:
    assert Kept(Refusal(Reason.TRAINING_MODE, "both")).decisive.reason is Reason.TRAINING_MODE


SENTENCES = [
    ("an op of another domain between a convolution and the end", AFTER, "c = Tanh(d)", "its input comes from Tanh (c)"),
    ("an output that another op reads, too", BEFORE.replace("y)", "y, double[N,4,6,6] b)"), "y = Conv(b, w11)", "its result b is an output of the graph"),
    ("a size that is open", "g (double[N,3,8,8] x) => (double[P,Q] y) {{ c = Conv(x, w) {body} }}", "f = Reshape(c, rows) y = Mul(f, k12)", "the Reshape from (N, 4, 6, 6) to (an unknown size, 12) leaves no axis with the same channels"),
    ("a sum with another value", BEFORE, "y = Add(b, x)", "the Add joins it with a value that it would have to change as well"),
    ("a matrix on the left", BEFORE, "y = MatMul(m66, b)", "a MatMul with its constant on the left spreads a shift over its sums"),
    ("a product", BEFORE, "y = MatMul(b, x)", "a MatMul of two activations spreads a shift over its sums"),
    ("one value by two ways", BEFORE, "e = Identity(b) f = Identity(b) h = Concat<axis=1>(e, f) y = Conv(h, w81)", "paths that part meet again at h, which can change only once"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("frame", "body", "sentence"), [row[1:] for row in SENTENCES], ids=[row[0] for row in SENTENCES]
)
def test_sentence_names_the_obstacle(frame: str, body: str, sentence: str) -> None:
    arrays = constants(w11=(4, 4, 1, 1), w81=(4, 8, 1, 1), m66=(6, 6), k12=(12,), rows=np.array([-1, 12]))
    text = frame.format(body=body, more="")
    (record,) = fold(model_of(text, used(text, POOL | arrays))).records
    assert record.sentence == sentence
    assert record.hint == ("drop that output from the graph, if nobody reads it" if "output" in sentence else None)


def test_size_that_only_the_inference_named_is_called_unknown() -> None:
    assert described(("N", 4, "unk__0", None, "")) == "(N, 4, an unknown size, an unknown size, an unknown size)"


def test_every_reason_is_in_the_table() -> None:
    assert {case.reason for case in CASES} == set(Reason)
