"""The main job, start to end, on real data: run once, held against everything that is claimed for it."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest
from folding import ops

import bnfold
from bnfold.cli.main import main
from bnfold.demonstration import DemoOptions, DemoResult, _check_is_ours
from bnfold.exporting import ExportOptions
from bnfold.optimizer import OptimizeOptions
from bnfold.verification import VerifyOptions

pytest.importorskip("torch")
pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> DemoResult:
    return bnfold.demo(tmp_path_factory.mktemp("demo"), DemoOptions(seconds=3))


def test_accuracy_is_what_is_claimed_and_the_same_three_times(result: DemoResult) -> None:
    assert set(result.accuracies) == {"torch", "original", "optimized"}
    assert len({round(accuracy, 9) for accuracy in result.accuracies.values()}) == 1
    assert result.accuracies["optimized"] >= 0.975
    assert result.training.test_images >= 350


def test_no_batch_norm_is_left_and_the_proof_holds(result: DemoResult) -> None:
    before, after = ops(ir.load(result.original)), ops(ir.load(result.optimized))
    assert before["BatchNormalization"] == len(result.report.batch_norms) > 5
    assert "BatchNormalization" not in after
    assert sum(after.values()) == sum(before.values()) - before["BatchNormalization"]
    assert result.verification.ok
    assert result.ok


def test_every_artefact_is_there_and_readable(result: DemoResult) -> None:
    for name, _ in result.files:
        assert (result.folder / name).exists(), name
    for name in ("folds.json", "verification.json", "benchmark.json"):
        assert json.loads((result.folder / name).read_text())
    onnx.checker.check_model(result.optimized, full_check=True)
    assert not list(result.folder.rglob("*.pkl")) + list(result.folder.rglob("*.pt"))


def test_report_stands_alone_and_shows_all_four_parts(result: DemoResult) -> None:
    page = (result.folder / "report.html").read_text()
    assert page.count("<svg") == 5
    for words in ("1. Trained", "2. Folded", "3. Proven", "4. Measured", "99." if result.ok else "%"):
        assert words in page
    assert "src=" not in page
    assert "{{" not in page


@pytest.mark.parametrize("static", [False, True])
def test_raw_export_folds_completely(result: DemoResult, tmp_path: Path, static: bool) -> None:
    """What torch's exporter writes with ``optimize=False``: biases are sub-graphs that peers cannot fold through."""
    raw = bnfold.export(result.training.folder, tmp_path / "raw.onnx", ExportOptions(clean=False, static=static))
    assert "CastLike" in ops(ir.load(raw.path))
    folded = bnfold.optimize(raw.path, tmp_path / "folded.onnx", OptimizeOptions(verify=VerifyOptions()))
    assert folded.report.batch_norms_after == 0
    assert {record.fate for record in folded.report.batch_norms} == {"folded"}
    assert "CastLike" not in ops(ir.load(tmp_path / "folded.onnx"))


def test_folder_that_is_a_file_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main(["demo", "--out", str(tmp_path / "file")]) == 3
    assert "cannot be created" in capsys.readouterr().err


@pytest.mark.parametrize(("out", "words"), [("", "name of the folder to write is empty"), (".", "are no demo's")])
def test_folder_with_files_of_someone_else_is_refused_and_stays(
    out: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("ten hours of work")
    assert main(["demo", "--out", out]) == 3
    assert words in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["run", "run.json"]


def test_folder_of_an_earlier_demo_is_taken_again(result: DemoResult) -> None:
    _check_is_ours(result.folder)
    assert (result.folder / "README.md").read_text().startswith("# A demo of bnfold\n")


def test_time_that_is_no_time_is_refused_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", "--time", "nan", "--out", str(tmp_path / "demo")]) == 2
    assert "positive number of seconds" in capsys.readouterr().err
    assert not (tmp_path / "demo").exists()
