"""What is installed is what the folders hold, and what is imported stays light."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

import bnfold
from bnfold import errors

ROOT = Path(__file__).parent.parent


def test_listed_packages_are_the_folders() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    found = {"bnfold.cli", "bnfold.models"}
    found |= {str(init.parent.relative_to(ROOT)).replace("/", ".") for init in (ROOT / "bnfold").rglob("__init__.py")}
    assert sorted(found) == sorted(settings["packages"])


def test_every_public_name_is_there_and_nothing_else() -> None:
    for name in bnfold.__all__:
        assert getattr(bnfold, name).__module__.startswith("bnfold"), name
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = bnfold.nonsense
    assert {
        "benchmark", "demo", "doctor", "export", "inspect", "optimize", "predict", "train", "verify",
    } <= set(bnfold.__all__)  # fmt: skip


def test_names_known_to_type_checkers_are_those_at_run_time() -> None:
    text = (ROOT / "bnfold" / "__init__.py").read_text()
    for name in bnfold.__all__:
        home = bnfold._HOME[name]
        assert f"from {home} import {name} as {name}" in text
        assert hasattr(import_module(home), name)


def test_importing_bnfold_loads_nothing_heavy() -> None:
    program = (
        "import sys, bnfold; heavy = {'torch', 'onnx', 'onnxruntime', 'numpy', 'click'} & set(sys.modules);"
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_importing_the_optimizer_loads_nothing_of_prediction_or_training() -> None:
    program = (
        "import sys, bnfold.optimizer; others = [name for name in sys.modules if name.startswith(('bnfold.prediction', "
        "'bnfold.training', 'bnfold.deployment'))]; sys.exit(f'loaded {others}' if others else 0)"
    )
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_library_never_imports_the_command_line() -> None:
    for file in (ROOT / "bnfold").rglob("*.py"):
        if file.name != "__main__.py":
            assert "bnfold.cli" not in file.read_text(), file


def test_only_training_and_export_touch_torch() -> None:
    for file in (ROOT / "bnfold").rglob("*.py"):
        lines = [line.strip() for line in file.read_text().splitlines()]
        if any(line.startswith(("import torch", "from torch")) for line in lines):
            assert file.relative_to(ROOT / "bnfold").parts[0] in (
                "training",
                "exporting",
                "recalibration",
                "studies",
            ), file


def test_one_module_edits_graphs() -> None:
    """No other module of the engine calls an editing method of onnx-ir."""
    edits = (
        ".replace_input_with(",
        ".replace_all_uses_with(",
        ".register_initializer(",
        ".insert_after(",
        "node.graph.remove(",
    )
    for file in (ROOT / "bnfold" / "fold").rglob("*.py"):
        for edit in edits:
            assert edit not in file.read_text(), (file, edit)


def test_exception_tree_is_the_one_that_is_drawn() -> None:
    drawn = {line.split("──")[1].split()[0] for line in (errors.__doc__ or "").splitlines() if "──" in line}
    defined = {name for name, value in vars(errors).items() if isinstance(value, type) and name != "BnfoldError"}
    assert drawn == defined
    assert all(issubclass(getattr(errors, name), errors.BnfoldError) for name in defined)
    assert all(getattr(errors, name).__doc__ for name in defined)


def test_core_dependencies_leave_torch_and_onnxruntime_out() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert not any(name.startswith(("torch", "onnxruntime")) for name in project["dependencies"])
    assert {"cpu", "cuda", "train", "plot", "demo", "dev"} <= set(project["optional-dependencies"])
