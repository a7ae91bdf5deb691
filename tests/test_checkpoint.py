"""Weights are read without running anything, and fit the network or are refused by name."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from bnfold.errors import CheckpointError
from bnfold.training.checkpoint import (
    Place,
    apply_weights,
    load_checkpoint,
    load_weights,
    save_checkpoint,
    save_weights,
)


def _network(width: int = 4, *, norm: bool = True) -> nn.Module:
    return nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width) if norm else nn.Identity())


def _optimizers(network: nn.Module) -> list[torch.optim.Optimizer]:
    return [
        torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9),
        torch.optim.AdamW(network.parameters(), lr=0.1),
    ]


def _step(network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    network(torch.arange(12.0).reshape(4, 3).sin()).square().sum().backward()
    optimizer.step()


@pytest.mark.parametrize("kind", [0, 1])
def test_a_step_after_loading_is_the_step_that_would_have_come(tmp_path: Path, kind: int) -> None:
    first, second = _network(), _network()
    optimizer = _optimizers(first)[kind]
    place = Place(3, 2, 1.5, ({"epoch": 1, "test_accuracy": 0.5},))
    for _ in range(3):
        _step(first, optimizer)
    save_checkpoint(tmp_path / "c.safetensors", first, optimizer, place)
    restored = _optimizers(second)[kind]
    assert load_checkpoint(tmp_path / "c.safetensors", second, restored) == place
    _step(first, optimizer)
    _step(second, restored)
    for key, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[key]), key


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state_dict": s}, lambda s: {"model": s, "epoch": 3}])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_torch_files_of_tensors_are_read(tmp_path: Path, wrap: Callable[[object], object], prefix: str) -> None:
    network = _network()
    torch.save(wrap({prefix + key: value for key, value in network.state_dict().items()}), tmp_path / "w.pt")
    weights = load_weights(tmp_path / "w.pt")
    assert weights.keys() == network.state_dict().keys()


def test_weights_and_checkpoints_give_the_same_tensors(tmp_path: Path) -> None:
    network = _network()
    save_weights(tmp_path / "w.safetensors", network, {"model": "x"})
    save_checkpoint(tmp_path / "c.safetensors", network, _optimizers(network)[0], Place(0, 0, 0.0, ()))
    for name in ("w.safetensors", "c.safetensors"):
        weights = load_weights(tmp_path / name)
        assert weights.keys() == network.state_dict().keys()
        assert all(torch.equal(weights[key], value) for key, value in network.state_dict().items())


def test_tied_weights_are_written(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    network[1].weight = network[0].weight
    save_weights(tmp_path / "w.safetensors", network, {})
    fresh = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    fresh[1].weight = fresh[0].weight
    apply_weights(fresh, load_weights(tmp_path / "w.safetensors"), "w")
    assert all(torch.equal(fresh.state_dict()[key], value) for key, value in network.state_dict().items())


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (_network(5), r"tensor 0.weight has shape \[4, 3\] and the network's \[5, 3\]"),
        (nn.Sequential(*_network(), nn.Linear(4, 2)), "has no tensor 2.weight"),
        (_network(norm=False), "has a tensor 1.weight"),
    ],
)
def test_another_architecture_is_refused_by_its_first_tensor_and_left_alone(network: nn.Module, message: str) -> None:
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with pytest.raises(CheckpointError, match=message):
        apply_weights(network, _network().state_dict(), "file")
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_whole_numbers_are_not_taken_for_weights() -> None:
    weights = {key: value.long() for key, value in _network().state_dict().items()}
    with pytest.raises(CheckpointError, match=r"0\.weight is torch\.int64"):
        apply_weights(_network(), weights, "file")


class _Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (exec, ("raise SystemExit('this ran')",))


def _missing(folder: Path) -> Path:
    return folder / "none.pt"


def _folder(folder: Path) -> Path:
    return folder


def _pickle(folder: Path) -> Path:
    (folder / "w.pt").write_bytes(pickle.dumps({"a": _Evil()}))
    return folder / "w.pt"


def _saved(content: object) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        torch.save(content, folder / "w.pt")
        return folder / "w.pt"

    return make


def _truncated(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = folder / name
        if name.endswith(".pt"):
            torch.save(_network().state_dict(), path)
        else:
            save_weights(path, _network(), {})
        path.write_bytes(path.read_bytes()[:-20])
        return path

    return make


def _written(name: str, content: bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return make


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_missing, "does not exist"),
        (_folder, "is a folder"),
        (_pickle, "not safe to load"),
        (_saved(_Evil()), "not safe to load"),
        (_saved([1, 2]), "holds a list"),
        (_saved({}), "holds a dict"),
        (_saved({"a": 3}), "holds a int under 'a'"),
        (_truncated("w.pt"), "damaged"),
        (_truncated("w.safetensors"), "damaged"),
        (_written("w.pt", b""), "damaged"),
        (_written("w.pt", b"hello there"), "damaged"),
        (_written("w.safetensors", b""), "damaged"),
        (_written("w.safetensors", b"\xff" * 64), "damaged"),
    ],
)
def test_a_file_that_does_not_hold_tensors_is_refused(
    tmp_path: Path, make: Callable[[Path], Path], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_weights(make(tmp_path))


@pytest.mark.parametrize("header", [None, {"bnfold": "{"}, {"bnfold": json.dumps({"epoch": 1})}])
def test_weights_alone_are_no_checkpoint(tmp_path: Path, header: dict[str, str] | None) -> None:
    network = _network()
    save_file(dict(network.state_dict()), tmp_path / "w.safetensors", header)
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        load_checkpoint(tmp_path / "w.safetensors", network, _optimizers(network)[0])


def test_optimizer_state_of_another_network_is_refused(tmp_path: Path) -> None:
    network = _network()
    optimizer = _optimizers(network)[0]
    _step(network, optimizer)
    save_checkpoint(tmp_path / "c.safetensors", network, optimizer, Place(0, 0, 0.0, ()))
    frozen = _network()
    frozen[0].requires_grad_(False)
    fewer = torch.optim.SGD([p for p in frozen.parameters() if p.requires_grad], lr=0.1)
    with pytest.raises(CheckpointError, match=r"optimizer state for 0\.(weight|bias)"):
        load_checkpoint(tmp_path / "c.safetensors", frozen, fewer)
