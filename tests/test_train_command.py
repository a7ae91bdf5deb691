"""``bnfold train`` as it is typed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click
import pytest
from training_samples import ODD, write_npz

from bnfold.cli.main import main
from bnfold.cli.train import parse_arguments


@pytest.fixture(autouse=True)
def _in_a_folder_with_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("odd.py").write_text(ODD)
    monkeypatch.delitem(sys.modules, "odd", raising=False)
    write_npz(tmp_path / "d.npz")
    Path("r.toml").write_text(
        'model = "mlp"\ndata = "npz:d.npz"\nepochs = 2\nbatch_size = 8\ndevice = "cpu"\n[model_args]\nwidths = [4]\n'
    )


def test_the_command_line_goes_before_the_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "r.toml", "-o", "run", "--epochs", "1", "--model-args", "dropout=0.1", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["epochs"] == 1
    run = json.loads(Path("run/run.json").read_text())
    assert run["model_args"] == {"in_features": 36, "num_classes": 3, "widths": [4], "dropout": 0.1}
    assert run["options"]["batch_size"] == 8


def test_people_read_a_sentence_and_with_verbose_a_row_an_epoch(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "r.toml", "-o", "run", "-v"]) == 0
    captured = capsys.readouterr()
    assert "held-out test images right" in captured.out
    assert "training loss" in captured.out
    assert [line.split("   ")[0] for line in captured.err.splitlines()] == ["epoch 1/2", "epoch 2/2"]


def test_a_run_is_resumed_from_its_folder_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "r.toml", "-o", "run", "-q"]) == 0
    assert main(["train", "-o", "run", "--resume"]) == 0
    assert "complete already" in capsys.readouterr().out
    assert main(["train", "-o", "run", "--resume", "--seed", "4"]) == 3
    assert "begun with seed 0, not 4" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["train"], 2, "--output"),
        (["train", "-o", "run", "--lr", "fast"], 2, "not a valid float"),
        (["train", "-o", "run", "--model-args", "widths"], 2, "KEY=VALUE"),
        (["train", "-o", "run", "--resume", "--overwrite"], 2, "contradict"),
        (["train", "-o", "run", "--resume"], 3, "holds no training run"),
        (["train", "-o", "run", "--data", "digit"], 3, "did you mean digits"),
        (["train", "-o", "run", "--model", "resnt"], 3, "did you mean resnet"),
        (["train", "-o", "d.npz"], 3, "is a file"),
        (["train", "none.toml", "-o", "run"], 3, "none.toml does not exist"),
        (["train", "r.toml", "-o", "run", "--epochs", "0"], 2, "epochs is 0"),
        (["train", "r.toml", "-o", "run", "--batch-size", "1"], 2, "one image has no batch statistics"),
        (["train", "r.toml", "-o", "run", "--accumulate", "5"], 3, "a multiple of 5"),
        (["train", "r.toml", "-o", "run", "--precision", "half"], 2, "one of float32, bfloat16"),
        (["train", "r.toml", "-o", "run", "--ema", "1.5"], 2, "ema is 1.5"),
        (["train", "r.toml", "-o", "run", "--threads", "5000"], 2, "threads is 5000"),
        (["train", "r.toml", "-o", "run", "--weight-decay", "1e308"], 2, "weight_decay is 1e+308"),
        (["train", "r.toml", "-o", ""], 2, "output is ''"),
        (["train", "r.toml", "-o", "run", "--model-args", "widths=16"], 3, "widths may have to be a list"),
        (["train", "r.toml", "-o", "run", "--model", "odd:Ends"], 3, "odd:Ends cannot be built with num_classes=3"),
        (["train", "r.toml", "-o", "run", "--model", "odd:fails"], 3, "Exception: this cannot be"),
        (["train", "r.toml", "-o", "run", "--model", "odd:Refuses"], 3, "does not take images of shape (1, 6, 6): no"),
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
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("text", "value"),
    [("a=1", 1), ("a=0.5", 0.5), ("a=true", True), ("a=1,2", [1, 2]), ("a=[1]", [1]), ("a=x", "x"), ("a=x,y", "x,y")],
)
def test_values_of_arguments_are_read_as_json_where_they_are(text: str, value: object) -> None:
    assert parse_arguments([text]) == {"a": value}


@pytest.mark.parametrize("text", ["a", "=1", "a b=1"])
def test_an_argument_without_a_name_is_wrong_usage(text: str) -> None:
    with pytest.raises(click.BadParameter):
        parse_arguments([text])
