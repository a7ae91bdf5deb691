"""Folded equals original in float64, whatever the graph.

``BNFOLD_GRAPHS=20000 pytest tests/test_fold_random.py`` runs the deep profile; ``--hypothesis-show-statistics`` adds
which share of the graphs folded, and across which ops.
"""

from __future__ import annotations

import os

from folding import folded, ops
from hypothesis import HealthCheck, event, given, settings
from random_graphs import Recipe, recipes

from bnfold.fold.report import Folded

GRAPHS = int(os.environ.get("BNFOLD_GRAPHS", "150"))


@settings(max_examples=GRAPHS, deadline=None, suppress_health_check=list(HealthCheck))
@given(recipes)
def test_folded_equals_original_in_float64(recipe: Recipe) -> None:
    model = recipe.model()
    after, report = folded(model, tolerance=1e-9)
    assert sum(ops(after).values()) <= sum(ops(model).values())
    assert report.batch_norms_after == ops(after).get("BatchNormalization", 0)
    for record in report.records:
        event(record.fate)
        if isinstance(record.outcome, Folded):
            for name in record.outcome.path:
                event(f"{record.outcome.direction} across {name.split('_')[0]}")
