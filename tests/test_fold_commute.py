"""An affine crosses each op, backward and forward, or is refused with a reason: the tables of commuting.py, proven."""

from __future__ import annotations

import numpy as np
import pytest
from commuting import BACKWARD, BACKWARD_REFUSED, FORWARD, FORWARD_REFUSED, POOL, Row
from folding import constants, folded, model_of, norm, ops, used

from bnfold.fold import fold
from bnfold.fold.commute import RULES
from bnfold.fold.report import Folded, Kept

NORM = "BatchNormalization(c, scale, bias, mean, var)"
RUN = "int64[K] run"


@pytest.mark.parametrize("row", BACKWARD, ids=str)
def test_batch_norm_folds_back_across(row: Row) -> None:
    text = f"d = Conv(x, w) e = Conv(x, v) {row.body} y = {NORM}"
    text = text if "e" in used(text, {"e": np.zeros(0)}) else text.replace("e = Conv(x, v) ", "")
    text = f"g (double[N,3,8,8] x, {RUN}) => (double[{row.shape}] y) {{ {text} }}"
    model, report = folded(model_of(text, used(text, POOL | row.norm()), opset=row.opset), merge=False)
    assert "BatchNormalization" not in ops(model)
    (record,) = report.batch_norms
    assert isinstance(record.outcome, Folded)
    assert record.outcome.direction == "backward"
    assert record.outcome.path


@pytest.mark.parametrize("row", FORWARD, ids=str)
def test_batch_norm_folds_forward_across(row: Row) -> None:
    shape = row.shape.split(",")
    end, weight = "Conv", (5, int(shape[1]), *[1] * (len(shape) - 2))
    if len(shape) == 2:
        end, weight = "MatMul", (int(shape[-1]), 3)
    output = ",".join("ABCDEF"[: len(shape)])
    text = f"a = Tanh(x) b = BatchNormalization(a, scale, bias, mean, var) {row.body} y = {end}(c, last)"
    text = f"g (double[N,4,6,6] x, {RUN}) => (double[{output}] y) {{ {text} }}"
    arrays = used(text, POOL | row.norm()) | constants(last=weight)
    model, report = folded(model_of(text, arrays, opset=row.opset), merge=False)
    assert "BatchNormalization" not in ops(model)
    (record,) = report.batch_norms
    assert isinstance(record.outcome, Folded)
    assert record.outcome.direction == "forward"
    assert record.outcome.path


#: Inputs of which the shape is not fully known, and others that only the refused rows read.
INPUTS = (
    f"double[N,3,H,6] tall, double[N,4,6,6] u, double[N,S,4,4] some, {RUN}, int64[4] run4, "
    "int64[1] run1, double value, double[4,6,6] own, double[4] own4, bool flag"
)


def kept(row: Row, inputs: str, body: str) -> Kept:
    loose = "loose = Reshape(x, run)" if "loose" in body else ""
    text = f"g ({inputs}, {INPUTS}) => (int64[R] rank) {{ {loose} {body} rank = Shape(y) }}"
    model = model_of(text, used(text, POOL | row.norm()), opset=row.opset)
    before = ops(model)
    report = fold(model)
    assert ops(model) == before
    (record,) = [record for record in report.records if isinstance(record.outcome, Kept)]
    assert isinstance(record.outcome, Kept)
    return record.outcome


@pytest.mark.parametrize("row", BACKWARD_REFUSED, ids=str)
def test_batch_norm_does_not_go_back_across(row: Row) -> None:
    text = f"d = Conv(x, w) e = Conv(x, v) {row.body}" + ("" if " y = " in row.body else f" y = {NORM}")
    outcome = kept(row, "double[N,3,8,8] x", text)
    assert outcome.backward.reason == row.reason, outcome.backward


@pytest.mark.parametrize("row", FORWARD_REFUSED, ids=str)
def test_batch_norm_does_not_go_forward_across(row: Row) -> None:
    outcome = kept(row, "double[N,4,6,6] x", f"a = Tanh(x) {row.body}")
    assert outcome.forward is not None
    assert outcome.forward.reason == row.reason, outcome.forward


def test_every_rule_has_rows_of_each_kind() -> None:
    """Identity lets everything pass; a global average leaves no axis on which an affine could differ."""
    joins = {"Add", "Max", "Mean", "Min", "Sub", "Sum"}  # forward the other inputs would have to be divided
    norms = {op for op in RULES if op.endswith("Normalization")}  # take a scale out again
    assert {row.op for row in BACKWARD} == set(RULES)
    assert {row.op for row in FORWARD} == set(RULES) - joins - norms
    assert {row.op for row in BACKWARD_REFUSED} == set(RULES) - {"Identity", "GlobalAveragePool"}
    assert {row.op for row in FORWARD_REFUSED} == set(RULES) - {"Identity"}


def test_everything_composes() -> None:
    """Conv → Concat → BN → GlobalAveragePool → Flatten → Gemm, and the batch norm of one branch goes forward."""
    text = (
        "g (double[N,4,6,6] x) => (double[N,5] z) { d = Conv(x, w) e = BatchNormalization(x, scale, bias, mean, var) "
        "c = Concat<axis=1>(d, e) n = BatchNormalization(c, scale8, bias8, mean8, var8) p = GlobalAveragePool(n) "
        "f = Flatten(p) z = Gemm(f, g) }"
    )
    model, report = folded(model_of(text, constants(w=(4, 4, 1, 1), g=(8, 5)) | norm(4) | norm(8, "8")))
    assert ops(model) == {"Conv": 1, "Concat": 1, "GlobalAveragePool": 1, "Flatten": 1, "Gemm": 1}
    assert [record.fate for record in report.records] == ["folded", "folded"]


def test_one_conv_reached_along_two_paths_is_left_alone() -> None:
    text = "g (double[N,4,8,8] x) => (double[N,4,8,8] y) { a = Mul(x, k) b = Identity(a) c = Identity(a) d = Add(b, c) y = Conv(d, w) }"
    model, _ = folded(model_of(text, constants(w=(4, 4, 1, 1), k=(4, 1, 1))))
    assert ops(model)["Mul"] == 1
