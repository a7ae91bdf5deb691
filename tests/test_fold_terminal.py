"""What `inspect` and `optimize` print of a report: the summary, and the ops that become one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from folding import constants, model_of, norm

from bnfold.cli.folds import summary
from bnfold.cli.main import main
from bnfold.fold.report import Direction, Folded, FoldRecord, FoldReport, Kept, Kind, Merged, Outcome, Reason, Refusal
from bnfold.model_file import save_model


def record(outcome: Outcome, kind: Kind = Kind.BATCH_NORM) -> FoldRecord:
    return FoldRecord("n", "BatchNormalization", "y", kind, 4, outcome, ort_folds=False)


FOLDED = record(Folded(Direction.BACKWARD, (), ("c",)))
MERGED = record(Merged("c"))
KEPT = record(Kept(Refusal(Reason.PADDING, "it pads")))
AFFINE = record(Folded(Direction.BACKWARD, (), ("c",)), Kind.AFFINE)


@pytest.mark.parametrize(
    ("records", "left", "before", "after"),
    [
        ((), 0, "No batch norm in this model.", "No batch norm in this model."),
        ((FOLDED,), 0, "1 of 1 batch norm folds; 0 left.", "1 of 1 batch norm folded; 0 left."),
        ((KEPT, KEPT), 2, "0 of 2 batch norms fold; 2 left.", "0 of 2 batch norms folded; 2 left."),
        ((FOLDED, FOLDED, MERGED), 0, "2 of 3 batch norms fold, 1 merges; 0 left.", "2 of 3 batch norms folded, 1 merged; 0 left."),
        ((MERGED, MERGED, KEPT), 1, "2 of 3 batch norms merge; 1 left.", "2 of 3 batch norms merged; 1 left."),
        ((FOLDED, AFFINE), 0, "1 of 1 batch norm folds; 0 left. 1 other affine goes as well.",
         "1 of 1 batch norm folded; 0 left. 1 other affine went as well."),
    ],
)  # fmt: skip
def test_summary_counts_what_goes_and_what_is_left(
    records: tuple[FoldRecord, ...], left: int, before: str, after: str
) -> None:
    report = FoldReport(records, nodes_before=9, nodes_after=7, batch_norms_after=left)
    assert summary(report, tense="would") == f"{before} Nodes: 9 → 7."
    assert summary(report, tense="did") == f"{after} Nodes: 9 → 7."


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Two branches that become one, and two convolutions in a row that do not."""
    arrays = constants(v=(4, 4, 3, 3), p=(4, 4, 1, 1), w=(4, 4, 3, 3)) | norm(4)
    text = (
        "g (float[N,4,8,8] x) => (float[N,4,6,6] y) { a = Conv<pads=[1,1,1,1]>(x, v) c = Conv(x, p) "
        "d = BatchNormalization(c, scale, bias, mean, var) s = Add(a, d) y = Conv(s, w) }"
    )
    return save_model(model_of(text, {n: a.astype(np.float32) for n, a in arrays.items()}), tmp_path / "model.onnx")


def test_merges_are_listed_and_refused_ones_counted(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(model)]) == 0
    out = capsys.readouterr().out
    assert "linear ops that become one" in out
    assert "a, c" in out
    assert "1 more place holds linear ops side by side or in a row that stay: see --verbose or --json." in out
    assert "1 of 1 batch norm merges; 0 left." in out
    assert max(map(len, out.splitlines())) <= 110


def test_refused_merges_are_listed_on_request(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(model), "-v"]) == 0
    out = capsys.readouterr().out
    assert "see --verbose" not in out
    assert "why not" in out
    assert "neither kernel has size 1" in " ".join(out.split())
