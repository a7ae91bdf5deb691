"""Small data sets and networks for the tests of training and export."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bnfold.training import TrainOptions


def write_npz(path: Path, *, count: int = 60, classes: int = 3, side: int = 6, seed: int = 0) -> Path:
    """An archive of gray images, each class brighter than the one before."""
    random = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    images = random.integers(0, 100, (count, side, side)) + labels[:, None, None] * 50
    np.savez(path, x=images.astype(np.uint8), y=labels)
    return path


def quick_options(folder: Path, **changes: Any) -> TrainOptions:
    """A run of a second: 48 images of 6×6, a network with dropout, three epochs of six steps."""
    archive = folder / "data.npz"
    if not archive.exists():
        write_npz(archive)
    options = TrainOptions(
        output=folder / "run",
        model="mlp",
        model_args={"widths": [8], "dropout": 0.2},
        data=f"npz:{archive}",
        epochs=3,
        batch_size=8,
        flip=True,
        device="cpu",
        threads=1,
    )
    return replace(options, **changes)


class TwoHeads(nn.Module):
    """Two outputs, with a batch norm that is evaluated twice and one that is called as a function."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, bias=False)
        self.bn = nn.BatchNorm2d(4)
        self.register_buffer("mean", torch.linspace(-1, 1, 4))
        self.register_buffer("var", torch.linspace(0.5, 2, 4))
        self.linear = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.bn(self.bn(self.conv(x)))
        y = nn.functional.batch_norm(y, self.get_buffer("mean"), self.get_buffer("var"))
        return self.linear(y.mean((2, 3))), y


def two_heads() -> TwoHeads:
    return TwoHeads()


class BatchBound(nn.Module):
    """Takes a batch of two and no other."""

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(2, 8).sum(1)


def batch_bound() -> BatchBound:
    return BatchBound()


class Float32Inside(nn.Module):
    """Code that insists on float32, so that it cannot be evaluated in float64."""

    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(x) @ torch.eye(4, dtype=torch.float32)


def float32_inside() -> Float32Inside:
    return Float32Inside()


def not_a_module() -> int:
    return 3


#: A module of a user's, whose networks misbehave.
ODD = """
import torch
from torch import nn


def fails(num_classes=3, **more):
    raise Exception("this cannot be")


class Ends(nn.Module):
    def __init__(self, num_classes=3, **more):
        raise SystemExit(5)


class Refuses(nn.Module):
    def __init__(self, **more):
        super().__init__()

    def forward(self, x):
        raise Exception("no")


class Draws(nn.Module):
    def forward(self, x):
        return x + torch.rand_like(x)


class Branches(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


class Prints(nn.Module):
    def __init__(self):
        super().__init__()
        print("built")

    def forward(self, x):
        return torch.relu(x)
"""
