"""``bnfold models`` as it is typed."""

from __future__ import annotations

import json

import pytest

from bnfold.cli.main import main
from bnfold.models import names
from bnfold.models.published import PUBLISHED


def test_all_networks_and_published_sizes_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--json"]) == 0
    captured = capsys.readouterr()
    listed = {row["name"]: row for row in json.loads(captured.out)}
    assert list(listed) == [*names(), *PUBLISHED]
    assert listed["resnet"] == {
        "name": "resnet", "input_shape": [3, 32, 32], "num_classes": 10,
        "parameters": 78_042, "batch_norms": 9, "multiply_adds": 12_501_632,
    }  # fmt: skip
    assert listed["resnet50"]["input_shape"] == [3, 224, 224]
    assert "4.089 G" in captured.err


def test_one_network_is_measured_as_asked_and_explains_its_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["models", "mlp", "--input-shape", "1,8,8", "--classes", "3", "--model-args", "widths=4", "-v"]
    assert main([*arguments]) == 3  # one number is no list
    capsys.readouterr()
    arguments[arguments.index("widths=4")] = "widths=[4]"
    assert main([*arguments]) == 0
    text = capsys.readouterr().out
    assert "268 " in text  # 64·4 + 4·3
    assert "dropout: probability" in text


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["resnt"], 3, "did you mean resnet?"),
        (["resnet5"], 3, "did you mean resnet50?"),
        (["resnet", "--input-shape", "8,8"], 3, "does not take inputs of shape 8,8"),
        (["resnet", "--input-shape", "3,99999999999999999999,2"], 3, "Overflow when unpacking long long\n"),
        (["resnet", "--input-shape", "3,4000000000,4000000000"], 3, "overflowed with sizes"),
        (["resnet", "--input-shape", "3,x"], 2, "not of the form"),
        (["resnet", "--classes", "0"], 2, "--classes"),
        (["--model-args", "widths=[4]"], 2, "needs the NAME"),
        (["resnet", "--model-args", "depth=4"], 3, "cannot be built"),
    ],
)
def test_wrong_usage_and_bad_input_are_one_sentence(
    capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, message: str
) -> None:
    assert main(["models", *arguments]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert "Traceback" not in captured.err
