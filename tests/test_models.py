"""Networks are built by name, and a name that leads nowhere is one sentence."""

from __future__ import annotations

import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bnfold.errors import InputError, MissingExtraError
from bnfold.models import NETWORKS, build, fitting_arguments, names
from bnfold.models.levit import Attention
from bnfold.models.published import PUBLISHED
from bnfold.models.reparameterization import reparameterized
from bnfold.models.shufflenet_v2 import shuffled
from bnfold.models.size import network_size, network_sizes

#: Networks that normalize in another way, and hold other affines (LayerScale) in place of batch norms.
WITHOUT_BATCH_NORM = {"convnext", "deit", "resmlp"}

#: Parameters, and billions of multiply-adds where they are published for this very form, of each published size.
#: torchvision: the documentation of its weights ("Num params", "GFLOPS", which are multiply-adds); timm: its table of
#: results; otherwise the paper. VGG-16 has no biases beside its batch norms: 4,224 fewer than torchvision's.
LITERATURE: dict[str, tuple[int, float | None, str]] = {
    "convmixer_768_32": (21_110_248, None, "authors' code"),
    "convnext_tiny": (28_589_128, 4.456, "torchvision"),
    "deit_small": (22_059_496, 4.6, "paper, table 5; with LayerScale's 9,216"),
    "densenet121": (7_978_856, 2.834, "torchvision"),
    "efficientnet_b0": (5_288_548, 0.386, "torchvision"),
    "mobilenet_v2_1.0": (3_504_872, 0.301, "torchvision"),
    "mobileone_s0": (5_290_000, None, "timm, in the form for training"),
    "repvgg_a0": (9_110_000, None, "timm, in the form for training"),
    "resmlp_12": (15_350_872, 3.0, "paper, table 1"),
    "resnet18": (11_689_512, 1.814, "torchvision"),
    "resnet34": (21_797_672, 3.664, "torchvision"),
    "resnet50": (25_557_032, 4.089, "torchvision"),
    "shufflenet_v2_1.0": (2_278_604, 0.145, "torchvision"),
    "vgg16": (138_365_992 - 4_224, 15.47, "torchvision, vgg16_bn"),
}

#: The same, in millions and billions, for the merged form in which the paper gives them.
MERGED: dict[str, tuple[float, float]] = {"repvgg_a0": (8.30, 1.4), "mobileone_s0": (2.1, 0.275)}

#: Arguments for 224×224 pixels of networks of which the docstring promises no more than to come near the paper's.
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
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32)])
def test_every_network_fits_itself_to_the_data(name: str, shape: tuple[int, ...]) -> None:
    network = build(name, **fitting_arguments(name, shape, 5)).eval()
    assert network(torch.zeros(2, *shape)).shape == (2, 5)
    holds = any(isinstance(module, torch.nn.modules.batchnorm._BatchNorm) for module in network.modules())
    assert holds == (name not in WITHOUT_BATCH_NORM)


@pytest.mark.parametrize("name", [name for name in names() if name != "mlp"])
def test_every_network_of_default_size_runs_forward_and_backward_at_224(name: str) -> None:
    with torch.device("meta"):
        network = build(name, **fitting_arguments(name, (3, 224, 224), 5))
        network(torch.zeros(2, 3, 224, 224)).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_network_takes_a_step(name: str) -> None:
    network = build(name)
    loss = nn.functional.cross_entropy(network(torch.randn(2, 3, 224, 224)), torch.tensor([1, 2]))
    loss.backward()
    for label, parameter in network.named_parameters():
        assert parameter.grad is not None, label
        assert torch.isfinite(parameter.grad).all(), label


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


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_size_has_the_parameters_and_multiply_adds_of_the_literature(name: str) -> None:
    parameters, billions, _source = LITERATURE[name]
    (size,) = network_sizes([name])
    rounded = parameters % 10_000 == 0
    assert size.parameters == pytest.approx(parameters, abs=5_000) if rounded else size.parameters == parameters
    if billions is not None:
        digits = len(str(billions).partition(".")[2])
        assert round(size.multiply_adds / 1e9, digits) == billions


@pytest.mark.parametrize("name", MERGED)
def test_a_merged_network_has_the_size_that_its_paper_gives(name: str) -> None:
    parameters, billions = MERGED[name]
    network = reparameterized(build(name))
    size = network_size(network, name, (3, 224, 224), 1000)
    assert size.parameters / 1e6 == pytest.approx(parameters, abs=0.05)
    assert size.multiply_adds / 1e9 == pytest.approx(billions, rel=0.04)


@pytest.mark.parametrize(
    ("name", "arguments", "input_shape", "multiply_adds"),
    [
        ("mlp", {"widths": [7]}, (2, 3, 4), 24 * 7 + 7 * 5),
        # 3×3 from 2 to 4 channels at each of 6·8 pixels, then a maximum; a linear layer of 4 to 5.
        ("vgg", {"widths": [4], "depth": 1}, (2, 6, 8), 9 * 2 * 4 * 48 + 4 * 5),
        # Depthwise and 1×1 after a 2×2 patch of 6×6: 3×3 pixels.
        ("convmixer", {"width": 4, "depth": 1, "kernel": 3, "patch": 2}, (1, 6, 6), 9 * (4 * 4 + 9 * 4 + 16) + 4 * 5),
        ("fcn1d", {"widths": [3], "kernels": 5}, (2, 11), 11 * 5 * 2 * 3 + 3 * 5),
        # 3×3 from 2 to 3 channels at 4·6 pixels, of which 2 rows are left; 3 steps, both ways: gates of 5 from 6, then
        # from 10; a linear layer of 10 to 5.
        ("crnn", {"widths": [3], "hidden": 5}, (2, 4, 6), 24 * 9 * 6 + 3 * 2 * 20 * (6 + 5 + 10 + 5) + 10 * 5),
        ("crnn", {"widths": [3], "hidden": 5, "cell": "gru", "depth": 1}, (2, 4, 6), 24 * 54 + 3 * 2 * 15 * 11 + 50),
    ],
)
def test_multiply_adds_are_those_counted_by_hand(
    name: str, arguments: dict[str, Any], input_shape: tuple[int, ...], multiply_adds: int
) -> None:
    (size,) = network_sizes([name], input_shape, 5, arguments)
    assert size.multiply_adds == multiply_adds
    on_this_machine = build(name, **fitting_arguments(name, input_shape, 5) | arguments)
    assert network_size(on_this_machine, name, input_shape, 5).multiply_adds == multiply_adds


def test_attention_and_transposed_convolutions_are_counted() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.ConvTranspose2d(2, 3, 2, stride=2, groups=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            tokens = self.up(x).flatten(2).transpose(1, 2)  # (1, 4·H·W, 3)
            return nn.functional.scaled_dot_product_attention(tokens, tokens, tokens)

    # Each of 4×5 pixels gives 2×2 of 3 channels from 2; 80 tokens of 3 numbers meet each other twice.
    assert network_size(Both(), "both", (2, 4, 5), 1).multiply_adds == 20 * 4 * 2 * 3 + 2 * 80 * 80 * 3


def test_a_network_that_needs_numbers_to_be_built_is_measured_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "net_with_items.py").write_text(
        "import torch\nfrom torch import nn\n"
        "def make():\n    rates = [rate.item() for rate in torch.linspace(0, 0.1, 3)]\n"
        "    return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(4), nn.Linear(4, 3), nn.Dropout(rates[1]))\n"
    )
    monkeypatch.chdir(tmp_path)
    (size,) = network_sizes(["net_with_items:make"], (1, 2, 2))
    assert (size.parameters, size.batch_norms, size.multiply_adds) == (8 + 15, 1, 12)


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
        ("resnet", {"large_stem": True, "bottleneck": True, "blocks": 2}, (2, 1, 32, 32), (2, 10)),
        ("preact_resnet", {"blocks": (1, 2, 1)}, (2, 1, 8, 8), (2, 10)),
        ("crnn", {"cell": "gru", "depth": 3, "input_shape": (1, 8, 8)}, (2, 1, 8, 20), (2, 10)),
        ("vgg", {"depth": (1, 2, 1), "hidden": (20, 10), "side": 2}, (2, 1, 16, 16), (2, 10)),
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
        ("crnn", {"cell": "rnn"}, "cell must be one of gru, lstm"),
        ("crnn", {"depth": 0}, "depth is 1 or more"),
        ("crnn", {"widths": ()}, "at least one number"),
        ("crnn", {"input_shape": (1, 3, 8)}, "3×8 pixels is too small for 2 poolings"),
        ("deit", {"heads": 3}, "3 heads cannot share"),
        ("unet", {"widths": ()}, "at least one number"),
    ],
)
def test_a_network_that_cannot_be_built_is_one_sentence(name: str, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build(name, **arguments)


@pytest.mark.parametrize(("package", "channels"), [("torchvision", {}), ("timm", {"in_chans": 3})])
def test_networks_of_a_package_that_is_installed_are_built_by_it(
    package: str, channels: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def factory(name: str, **arguments: Any) -> nn.Module:
        asked.append((name, arguments))
        return nn.Sequential(nn.Flatten(), nn.Linear(12, arguments["num_classes"]))

    stand_in = types.SimpleNamespace(models=types.SimpleNamespace(get_model=factory), create_model=factory)
    monkeypatch.setitem(sys.modules, package, stand_in)
    (size,) = network_sizes([f"{package}:some_net"], (3, 2, 2), 4, {"width": 2})
    assert asked[0] == ("some_net", {**channels, "num_classes": 4, "width": 2})
    assert (size.name, size.parameters) == (f"{package}:some_net", 52)


@pytest.mark.parametrize("package", ["torchvision", "timm"])
def test_a_package_that_is_not_installed_is_named(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=f"pip install {package}"):
        build(f"{package}:resnet18")


def test_the_list_of_networks_imports_no_torch() -> None:
    code = "import sys, bnfold.models, bnfold.training, bnfold.exporting; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-P", "-c", code], check=False).returncode == 0
    assert set(names()) == set(NETWORKS)
