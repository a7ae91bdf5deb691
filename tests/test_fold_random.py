"""Folded equals original in float64, whatever the graph, and within the rounding of its constants in narrower types.

``BNFOLD_GRAPHS=20000 pytest tests/test_fold_random.py`` runs the deep profile; ``--hypothesis-show-statistics`` adds
which share of the graphs folded, and across which ops.
"""

from __future__ import annotations

import os

import numpy as np
import onnx
import onnx_ir as ir
from dtypes import rounding_moves, with_dtype
from folding import feeds_of, folded, ops
from hypothesis import HealthCheck, assume, event, given, settings
from hypothesis import strategies as st
from random_graphs import Recipe, recipes

from bnfold.fold import fold
from bnfold.fold.linear import unit_roundoff
from bnfold.fold.report import Folded
from bnfold.verification.oracle import Oracle

GRAPHS = int(os.environ.get("BNFOLD_GRAPHS", "150"))

PROFILE = settings(max_examples=GRAPHS, deadline=None, suppress_health_check=list(HealthCheck))


@PROFILE
@given(recipes, st.booleans())
def test_folded_equals_original_in_float64(recipe: Recipe, tidy: bool) -> None:
    model = recipe.model()
    after, report = folded(model, tolerance=1e-9, smallest=1e-2, tidy=tidy)
    assert sum(ops(after).values()) <= sum(ops(model).values())
    assert report.batch_norms_after == ops(after).get("BatchNormalization", 0)
    for record in report.records:
        event(record.fate)
        if isinstance(record.outcome, Folded):
            for name in record.outcome.path:
                event(f"{record.outcome.direction} across {name.split('_')[0]}")


#: The operator takes bfloat16 in all of a graph's ops from there on.
_BFLOAT16_OPSET = 22


@settings(PROFILE, max_examples=max(GRAPHS // 4, 1))
@given(recipes, st.sampled_from([ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16]))
def test_narrower_types_lose_no_more_than_the_rounding_of_each_constant(recipe: Recipe, dtype: ir.DataType) -> None:
    """The outputs move less than ten times as far as a unit roundoff in each folded constant moves them.

    None is asked to be nearer than its own type resolves.
    """
    assume(dtype is not ir.DataType.BFLOAT16 or recipe.opset >= _BFLOAT16_OPSET)
    model = with_dtype(recipe.model(), dtype)
    after = model.clone()
    report = fold(after)
    onnx.checker.check_model(ir.to_proto(after), full_check=True)
    assume(any(record.fate != "kept" for record in report.records))
    feeds = feeds_of(model)
    wanted, got = Oracle(model).run(feeds), Oracle(after).run(feeds)
    assume(all(np.isfinite(array).all() for array in wanted.values()))  # a quotient may overflow
    moves = rounding_moves(after, dtype, feeds)
    for name, expected in wanted.items():
        if expected.dtype.kind == "f":
            noise = unit_roundoff(np.dtype(dtype.numpy())) * max(float(np.abs(expected).max(initial=0)), 1e-2)
            assert np.abs(got[name] - expected).max(initial=0) <= 10 * moves[name] + noise, name
