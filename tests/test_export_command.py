"""``bnfold export`` as it is typed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bnfold.cli.main import main

_MLP = ["export", "mlp", "--model-args", "in_features=8", "--model-args", "widths=4,4", "--input-shape", "8"]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_json_is_the_result_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*_MLP, "-o", "m.onnx", "--opset", "15", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["opset"], document["batch_norms"]) == (15, 2)
    assert Path("m.onnx").stat().st_size == document["size"]


def test_people_read_what_came_out(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*_MLP, "-o", "m.onnx", "--static"]) == 0
    captured = capsys.readouterr()
    assert "2 BatchNormalization" in captured.out
    assert "1 × 8" in captured.out
    assert captured.err == ""


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["export", "mlp"], 2, "--output"),
        ([*_MLP, "-o", "m.onnx", "--input-shape", "a,b"], 2, "not of the form"),
        ([*_MLP, "-o", "m.onnx", "--model-args", "x"], 2, "KEY=VALUE"),
        (["export", "none", "-o", "m.onnx"], 3, "none does not exist"),
        (["export", "mlp", "-o", "m.onnx"], 3, "shape of one input"),
        ([*_MLP, "-o", "m.onnx", "--opset", "3"], 2, "opset is 3"),
        ([*_MLP, "-o", "none/m.onnx"], 3, "does not exist"),
        ([*_MLP, "-o", "."], 3, "is a folder"),
    ],
)
def test_wrong_usage_and_bad_input_are_one_sentence(
    capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, message: str
) -> None:
    assert main(arguments) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert "Traceback" not in captured.err
    assert not Path("m.onnx").exists()
