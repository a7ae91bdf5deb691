"""Networks are built by name, and a name that leads nowhere is one sentence."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bnfold.errors import InputError, MissingExtraError
from bnfold.models import NETWORKS, build, fitting_arguments, names


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 16, 16)])
def test_every_network_fits_itself_to_the_data_and_holds_batch_norms(name: str, shape: tuple[int, ...]) -> None:
    network = build(name, **fitting_arguments(name, shape, 5)).eval()
    assert network(torch.zeros(2, *shape)).shape == (2, 5)
    assert any(isinstance(module, torch.nn.modules.batchnorm._BatchNorm) for module in network.modules())


@pytest.mark.parametrize(
    ("name", "arguments", "blocks"),
    [
        ("resnet", {"widths": [4, 8], "blocks": [1, 3]}, 4),
        ("resnet", {"widths": (4, 8), "blocks": 2}, 4),
        ("preact_resnet", {"widths": [4, 8], "blocks": 2}, 4),
    ],
)
def test_arguments_size_a_network(name: str, arguments: dict[str, object], blocks: int) -> None:
    network = build(name, **arguments)
    assert sum(type(module).__name__.endswith("Block") for module in network.modules()) == blocks


def test_the_users_own_factory_is_found_in_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_net_of_test.py").write_text(
        "from torch import nn\ndef make(num_classes=2, width=4): return nn.Linear(width, num_classes)\n"
    )
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    arguments = fitting_arguments("my_net_of_test:make", (1, 2, 2), 7)
    assert arguments == {"num_classes": 7}
    assert build("my_net_of_test:make", **arguments)(torch.zeros(1, 4)).shape == (1, 7)
    assert sys.path == before


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("resnt", {}, "did you mean resnet"),
        ("zzz", {}, "there are mlp"),
        ("no_such_module_here:make", {}, "cannot be imported"),
        ("training_samples:nothing", {}, "cannot be imported"),
        ("training_samples:Path.sep", {}, "cannot be imported"),
        ("training_samples:__doc__", {}, "not a callable"),
        ("training_samples:not_a_module", {}, "returned a int"),
        ("resnet", {"depth": 3}, "depth=3"),
        ("resnet", {"blocks": [1]}, "one number for each"),
        ("resnet", {"widths": []}, "one number for each"),
    ],
)
def test_a_network_that_cannot_be_built_is_one_sentence(name: str, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build(name, **arguments)


@pytest.mark.parametrize("package", ["torchvision", "timm"])
def test_a_package_that_is_not_installed_is_named(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=f"pip install {package}"):
        build(f"{package}:resnet18")


def test_the_list_of_networks_imports_no_torch() -> None:
    code = "import sys, bnfold.models, bnfold.training, bnfold.exporting; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-P", "-c", code], check=False).returncode == 0
    assert set(names()) == set(NETWORKS)
