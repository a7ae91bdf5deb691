"""``bnfold export`` as it is typed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from training_samples import ODD

from bnfold.cli.main import main

_MLP = ["export", "mlp", "--model-args", "in_features=8", "--model-args", "widths=4,4", "--input-shape", "8"]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("odd.py").write_text(ODD)
    Path("other.onnx").touch()
    monkeypatch.delitem(sys.modules, "odd", raising=False)


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
        ([*_MLP, "-o", "m.onnx", "--seed", str(1 << 63)], 2, "2 to the power of 63"),
        ([*_MLP, "-o", "m.json"], 3, "end the name in .onnx"),
        ([*_MLP, "-o", "m.onnx", "--input-shape", "9999999,9999999"], 3, "does not take an input of shape"),
        ([*_MLP, "-o", "m.onnx", "--input-shape", str(10**20)], 3, "Overflow"),
        (["export", "odd:Draws", "--input-shape", "4", "-o", "m.onnx"], 3, "something else each time"),
        (["export", "odd:Branches", "--input-shape", "4", "-o", "m.onnx"], 3, "torch cannot trace odd:Branches"),
        (["export", "odd:Refuses", "--input-shape", "4", "-o", "m.onnx"], 3, "of shape (2, 4): no"),
        (["export", "other.onnx", "-o", "m.onnx"], 3, "is an ONNX file already"),
    ],
)
def test_wrong_usage_and_bad_input_are_one_sentence(
    capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, message: str
) -> None:
    assert main(arguments) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert code == 2 or captured.err.count("\n") == 1
    assert "Traceback" not in captured.err
    assert not Path("m.onnx").exists()


def test_what_the_network_is_read_from_is_never_written_over(capsys: pytest.CaptureFixture[str]) -> None:
    weights = Path("w.pt")
    torch.save(torch.nn.Linear(4, 3).state_dict(), weights)
    content = weights.read_bytes()
    arguments = ["--model", "torch.nn:Linear", "--model-args", "in_features=4", "--model-args", "out_features=3"]
    assert main(["export", "w.pt", *arguments, "--input-shape", "4", "-o", "./w.pt"]) == 3
    assert (
        main(["export", "torch.nn:Linear", *arguments[2:], "--weights", "w.pt", "--input-shape", "4", "-o", "w.pt"])
        == 3
    )
    assert capsys.readouterr().err.count("is what the network is read from") == 2
    assert weights.read_bytes() == content


def test_what_a_network_prints_is_no_part_of_the_document(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "odd:Prints", "--input-shape", "4", "-o", "m.onnx", "--json"]) == 0
    captured = capfd.readouterr()
    assert json.loads(captured.out)["network"] == "odd:Prints"
    assert "built" in captured.err


def test_a_sidecar_that_was_there_before_is_told_of(capsys: pytest.CaptureFixture[str]) -> None:
    sidecar = Path("m.onnx.preprocessing.json")
    sidecar.write_text("{}")
    assert main([*_MLP, "-o", "m.onnx"]) == 0
    assert "m.onnx.preprocessing.json was there before" in capsys.readouterr().err
    assert sidecar.read_text() == "{}"
