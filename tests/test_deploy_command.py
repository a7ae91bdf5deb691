"""What of ``bnfold deploy`` needs no extra: its help, its options, and the sentence where the extra is missing."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import get_args

import pytest
from deployments import deploy_bytes

from bnfold.cli import deploy as deploy_command
from bnfold.cli.main import main
from bnfold.deployment import options as deploy_options
from bnfold.deployment.kserve_manifest import service_name
from bnfold.deployment.manifest import TARGETS, Target


def test_the_choices_of_the_command_are_the_librarys() -> None:
    assert deploy_command.TARGETS == TARGETS == get_args(Target)
    assert deploy_command.PRECISIONS == deploy_options.PRECISIONS


@pytest.mark.parametrize("module", ["grpc", "tritonclient", "yaml"])
def test_a_missing_extra_is_exit_code_3_and_the_sentence_that_helps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], module: str
) -> None:
    for present in ("grpc", "tritonclient", "tritonclient.grpc", "yaml"):
        monkeypatch.setitem(sys.modules, present, sys)  # any module will do
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, "tritonclient.grpc") if module == "tritonclient" else None
    assert main(["deploy", str(tmp_path / "net.onnx"), str(tmp_path / "repository")]) == 3
    assert "pip install 'bnfold[triton]'" in capsys.readouterr().err
    assert not (tmp_path / "repository").exists()


def test_listing_and_rolling_back_need_no_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("grpc", "tritonclient", "yaml", "onnxruntime"):
        monkeypatch.setitem(sys.modules, module, None)
    for content in (b"1", b"2"):
        deploy_bytes(tmp_path, content=content)
    assert main(["deploy", "--list", str(tmp_path)]) == 0
    assert main(["deploy", "--rollback", "net", str(tmp_path)]) == 0


def test_a_configuration_changed_by_hand_is_told_by_the_list(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    deploy_bytes(tmp_path)
    (tmp_path / "net" / "config.pbtxt").write_text("name: 'net'\n")
    assert main(["deploy", "--list", str(tmp_path)]) == 1
    assert "is not what bnfold wrote" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("model", "service"),
    [
        ("resnet", "resnet"),
        ("My_Net.v2", "my-net-v2"),
        ("3d", "model-3d"),
        ("_x_", "x"),
        ("a" * 100, "a" * 63),
        ("_", "model"),
    ],
)
def test_a_services_name_is_a_dns_label(model: str, service: str) -> None:
    assert service_name(model) == service
