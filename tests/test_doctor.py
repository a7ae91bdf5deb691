"""The diagnosis says what is there, and how to mend what is not."""

from __future__ import annotations

import json
from importlib import metadata

import pytest

import bnfold
from bnfold import environment
from bnfold.cli.main import main


def test_providers_are_run_not_believed() -> None:
    pytest.importorskip("onnxruntime")
    checks = {check.name: check for check in bnfold.doctor().providers}
    assert checks["cpu"].runs
    assert set(checks) == {"cpu", "cuda", "tensorrt"}
    assert all(check.detail for check in checks.values())


def test_missing_package_comes_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    real = metadata.version

    def version(name: str) -> str:
        if name in ("torch", "onnxruntime", "onnxruntime-gpu"):
            raise metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(environment.metadata, "version", version)
    advice = " ".join(bnfold.doctor().advice)
    assert "pip install 'bnfold[train]' (missing: torch" in advice
    assert "pip install 'bnfold[cpu]'" in advice


def test_two_runtimes_at_once_are_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment.metadata, "version", lambda _name: "1.0")
    assert any("overwrite each other" in sentence for sentence in bnfold.doctor().advice)


def test_command_prints_a_table_and_a_document(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "onnx-ir" in out
    assert out.count("scipy ") == 1  # one row a package, however many extras bring it
    assert main(["doctor", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["cores"] >= 1
