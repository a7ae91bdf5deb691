"""Networks are built by name, and a name that leads nowhere is one sentence."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from bnfold.errors import InputError, MissingExtraError
from bnfold.models import NETWORKS, build, fitting_arguments, names
from bnfold.models.levit import Attention
from bnfold.models.shufflenet_v2 import shuffled

#: Networks that normalize in another way, and hold other affines (LayerScale) in place of batch norms.
WITHOUT_BATCH_NORM = {"convnext", "deit", "resmlp"}

#: The arguments that a network's docstring gives for the one in the paper, and the paper's number of parameters, as
#: the authors' code or torchvision's has it.
PAPERS: dict[str, tuple[dict[str, Any], int]] = {
    "convmixer": ({"width": 768, "depth": 32, "kernel": 7, "patch": 7}, 21_110_248),
    "convnext": ({"widths": (96, 192, 384, 768), "blocks": (3, 3, 9, 3), "kernel": 7, "patch": 4}, 28_589_128),
    "deit": ({"width": 384, "depth": 12, "heads": 6, "patch": 16}, 22_059_496),
    "densenet": ({"blocks": (6, 12, 24, 16), "growth": 32, "stem": 64, "large_stem": True}, 7_978_856),
    "efficientnet": (
        {
            "widths": (16, 24, 40, 80, 112, 192, 320), "blocks": (1, 2, 2, 3, 3, 4, 1),
            "kernels": (3, 3, 5, 3, 5, 5, 3), "strides": (1, 2, 2, 2, 1, 2, 1),
            "expansion": (1, 6, 6, 6, 6, 6, 6), "stem": 32, "stem_stride": 2, "head": 1280, "dropout": 0.2,
        },
        5_288_548,
    ),
    "mobilenet_v2": (
        {
            "widths": (16, 24, 32, 64, 96, 160, 320), "blocks": (1, 2, 3, 4, 3, 3, 1),
            "strides": (1, 2, 2, 2, 1, 2, 1), "expansion": (1, 6, 6, 6, 6, 6, 6),
            "stem": 32, "stem_stride": 2, "head": 1280,
        },
        3_504_872,
    ),
    "resmlp": ({"width": 384, "depth": 12, "patch": 16}, 15_350_872),
    "shufflenet_v2": (
        {"widths": (116, 232, 464), "blocks": (4, 8, 4), "stem": 24, "large_stem": True, "head": 1024},
        2_278_604,
    ),
}  # fmt: skip

#: The same for networks of which the docstring promises no more than to come near the paper's.
NEAR_PAPERS: dict[str, dict[str, Any]] = {
    "ghostnet": {
        "widths": (16, 24, 40, 80, 112, 160), "blocks": (1, 2, 2, 4, 2, 5), "strides": (1, 2, 2, 2, 1, 2),
        "expansion": (1, 3, 3, 3, 6, 6), "stem": 16, "stem_stride": 2, "head": 960,
    },
    "inception": {"widths": (256, 576, 1024), "blocks": (2, 4, 2), "stem": 192, "large_stem": True},
    "levit": {"widths": (128, 256, 384), "blocks": 4, "heads": (4, 8, 12), "key_dim": 16, "stem": 4},
    "unet": {"widths": (64, 128, 256, 512, 1024)},
}  # fmt: skip


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 16, 16), (3, 32, 32)])
def test_every_network_fits_itself_to_the_data(name: str, shape: tuple[int, ...]) -> None:
    network = build(name, **fitting_arguments(name, shape, 5)).eval()
    assert network(torch.zeros(2, *shape)).shape == (2, 5)
    holds = any(isinstance(module, torch.nn.modules.batchnorm._BatchNorm) for module in network.modules())
    assert holds == (name not in WITHOUT_BATCH_NORM)


@pytest.mark.parametrize("name", names())
def test_a_few_steps_lower_the_loss_and_reach_every_parameter(name: str) -> None:
    torch.manual_seed(0)
    network = build(name, **fitting_arguments(name, (1, 8, 8), 3))
    images, labels = torch.randn(12, 1, 8, 8), torch.arange(12) % 3
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    losses = []
    for _ in range(6):
        loss = torch.nn.functional.cross_entropy(network(images), labels)
        optimizer.zero_grad()
        loss.backward()
        for label, parameter in network.named_parameters():
            assert parameter.grad is not None, label
            assert torch.isfinite(parameter.grad).all(), label
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("name", PAPERS)
def test_the_papers_arguments_give_the_papers_network(name: str) -> None:
    arguments, parameters = PAPERS[name]
    network = _on_paper(name, arguments)
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters


@pytest.mark.parametrize("name", NEAR_PAPERS)
def test_a_network_can_be_sized_for_224(name: str) -> None:
    _on_paper(name, NEAR_PAPERS[name])


def _on_paper(name: str, arguments: dict[str, Any]) -> torch.nn.Module:
    """A network for 224×224, without the memory of its numbers, and checked to take such images."""
    with torch.device("meta"):
        network = build(name, **fitting_arguments(name, (3, 224, 224), 1000), **arguments).eval()
        assert network(torch.zeros(1, 3, 224, 224)).shape == (1, 1000)
    return network


@pytest.mark.parametrize(
    ("name", "arguments", "input_shape", "output_shape"),
    [
        ("unet", {"dense": True, "num_classes": 3}, (2, 1, 16, 24), (2, 3, 16, 24)),
        ("fcn1d", {"in_channels": 4, "num_classes": 3}, (2, 4, 50), (2, 3)),
        ("fcn1d", {"stride": 2, "num_classes": 3}, (2, 1, 50), (2, 3)),
        ("r2plus1d", {"in_channels": 3, "num_classes": 4}, (2, 3, 6, 12, 12), (2, 4)),
        ("levit", {"input_shape": (1, 32, 32), "stem": 2}, (2, 1, 32, 32), (2, 10)),
        ("levit", {"input_shape": (1, 7, 7), "stem": 0}, (2, 1, 7, 7), (2, 10)),
        ("densenet", {"large_stem": True}, (2, 1, 32, 32), (2, 10)),
        ("inception", {"large_stem": True, "stem": 24}, (2, 1, 32, 32), (2, 10)),
    ],
)
def test_a_network_takes_what_its_docstring_says(
    name: str, arguments: dict[str, Any], input_shape: tuple[int, ...], output_shape: tuple[int, ...]
) -> None:
    network = build(name, **arguments).eval()
    assert network(torch.zeros(input_shape)).shape == output_shape


def test_a_channel_shuffle_takes_the_halves_in_turn() -> None:
    channels = torch.arange(6.0).reshape(1, 6, 1, 1)
    assert shuffled(channels).flatten().tolist() == [0, 3, 1, 4, 2, 5]


def test_attention_of_levit_knows_distances_not_places() -> None:
    attention = Attention(8, 8, heads=2, key_dim=4, value_dim=4, grid=(3, 2))
    offsets = attention.offsets
    assert offsets.diagonal().eq(0).all()
    assert torch.equal(offsets, offsets.T)
    assert offsets[0].tolist() == [0, 1, 2, 3, 4, 5]
    assert offsets[3].tolist() == [3, 2, 1, 0, 3, 2]


@pytest.mark.parametrize(
    ("name", "arguments", "blocks"),
    [
        ("resnet", {"widths": [4, 8], "blocks": [1, 3]}, 4),
        ("resnet", {"widths": (4, 8), "blocks": 2}, 4),
        ("preact_resnet", {"widths": [4, 8], "blocks": 2}, 4),
        ("shufflenet_v2", {"widths": [4, 8], "blocks": [2, 3]}, 5),
        ("convnext", {"widths": [4, 8], "blocks": 2}, 4),
        ("deit", {"depth": 3}, 3),
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
        ("zzz", {}, "there are .*, mlp, "),
        ("no_such_module_here:make", {}, "cannot be imported"),
        ("training_samples:nothing", {}, "cannot be imported"),
        ("training_samples:Path.sep", {}, "cannot be imported"),
        ("training_samples:__doc__", {}, "not a callable"),
        ("training_samples:not_a_module", {}, "returned a int"),
        ("resnet", {"depth": 3}, "depth=3"),
        ("resnet", {"blocks": [1]}, "one number for each"),
        ("resnet", {"widths": []}, "one number for each"),
        ("mobilenet_v2", {"strides": (1, 2)}, "strides needs one number for each of the 3 widths"),
        ("densenet", {"blocks": ()}, "one number for each"),
        ("inception", {"widths": (32, 30)}, "growing multiples of four"),
        ("shufflenet_v2", {"widths": (24, 47)}, "even numbers"),
        ("convmixer", {"kernel": 4}, "an odd number keeps the image's size"),
        ("convnext", {"kernel": 4}, "an odd number keeps the image's size"),
        ("fcn1d", {"kernels": 8}, "odd numbers"),
        ("deit", {"heads": 3}, "3 heads cannot share"),
        ("unet", {"widths": ()}, "at least one number"),
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
