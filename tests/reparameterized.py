"""Shared by the tests of re-parameterization: networks and blocks in float64, with statistics that matter."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from bnfold.models import build
from bnfold.models.acnet import ACBlock
from bnfold.models.dbb import DiverseBranchBlock
from bnfold.models.mobileone import MobileOneBlock
from bnfold.models.repvgg import RepVGGBlock
from bnfold.models.repvit import Head, RepVGGDW

#: A network of bnfold by name, its arguments, and the shape of one sample.
NETWORKS: Mapping[str, tuple[str, dict[str, Any], tuple[int, ...]]] = {
    "RepVGG": ("repvgg", {"widths": (6, 8)}, (1, 8, 8)),
    "RepVGG, five stages": (
        "repvgg",
        {"in_channels": 3, "widths": (4, 4, 6, 8, 10), "blocks": (1, 2, 2, 1, 1), "strides": (2, 2, 2, 2, 2)},
        (3, 32, 32),
    ),
    "RepVGG, groups": ("repvgg", {"widths": (8, 8), "blocks": 3, "groups": 4}, (1, 7, 9)),
    "MobileOne": ("mobileone", {"widths": (6, 8, 8)}, (1, 8, 8)),
    "MobileOne, two branches": ("mobileone", {"widths": (4, 6), "blocks": 2, "branches": 2}, (1, 9, 7)),
    "MobileOne, squeeze-excite": ("mobileone", {"widths": (4, 6), "blocks": 2, "squeeze_excite": 1}, (1, 8, 8)),
    "ACNet": ("acnet", {"widths": (4, 6), "in_channels": 2}, (2, 8, 8)),
    "ACNet, 5×5": ("acnet", {"widths": (4, 6), "depth": 2, "kernel_size": 5}, (1, 8, 8)),
    "DBB": ("dbb", {"widths": (4, 6)}, (1, 8, 8)),
    "DBB, two blocks": ("dbb", {"widths": (4, 4), "blocks": 2, "in_channels": 3}, (3, 7, 9)),
    "RepViT": ("repvit", {"widths": (4, 6)}, (1, 8, 8)),
    "RepViT, plain": ("repvit", {"widths": (4, 6), "blocks": 2, "squeeze_excite": False}, (1, 9, 7)),
    "RepViT, two heads": ("repvit", {"widths": (4, 6), "stem_strides": (2, 2), "heads": 2}, (1, 16, 16)),
}

#: One block alone, and the shape of one sample.
BLOCKS: Mapping[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "RepVGG": (lambda: RepVGGBlock(6, 6), (6, 7, 9)),
    "RepVGG, other width": (lambda: RepVGGBlock(4, 6), (4, 7, 9)),
    "RepVGG, stride": (lambda: RepVGGBlock(6, 6, stride=2), (6, 7, 8)),
    "RepVGG, groups": (lambda: RepVGGBlock(6, 6, groups=3), (6, 6, 6)),
    "RepVGG, groups and stride": (lambda: RepVGGBlock(4, 6, stride=2, groups=2), (4, 6, 7)),
    "RepVGG, stride 3": (lambda: RepVGGBlock(4, 6, stride=3), (4, 8, 9)),
    "MobileOne, dense": (lambda: MobileOneBlock(3, 6, 3, stride=2, branches=1), (3, 8, 8)),
    "MobileOne, dense ×4": (lambda: MobileOneBlock(4, 4, 3), (4, 6, 5)),
    "MobileOne, depthwise": (lambda: MobileOneBlock(6, 6, 3, groups=6), (6, 6, 5)),
    "MobileOne, depthwise and stride": (lambda: MobileOneBlock(6, 6, 3, stride=2, groups=6), (6, 6, 5)),
    "MobileOne, depthwise 7×7": (lambda: MobileOneBlock(6, 6, 7, groups=6, branches=2), (6, 8, 9)),
    "MobileOne, pointwise": (lambda: MobileOneBlock(5, 7, 1), (5, 4, 4)),
    "MobileOne, pointwise and skip": (lambda: MobileOneBlock(6, 6, 1), (6, 4, 4)),
    "ACBlock": (lambda: ACBlock(4, 6), (4, 6, 7)),
    "ACBlock, 7×7 and stride": (lambda: ACBlock(4, 6, 7, stride=2), (4, 9, 8)),
    "ACBlock, groups": (lambda: ACBlock(4, 6, groups=2), (4, 6, 7)),
    "DBB": (lambda: DiverseBranchBlock(4, 6), (4, 6, 7)),
    "DBB, stride": (lambda: DiverseBranchBlock(4, 6, stride=2), (4, 7, 8)),
    "DBB, 5×5": (lambda: DiverseBranchBlock(4, 4, 5), (4, 7, 8)),
    "DBB, groups": (lambda: DiverseBranchBlock(4, 6, groups=2), (4, 6, 7)),
    "DBB, depthwise": (lambda: DiverseBranchBlock(6, 6, groups=6), (6, 6, 7)),
    "DBB, depthwise and stride": (lambda: DiverseBranchBlock(6, 6, 5, stride=2, groups=6), (6, 8, 9)),
    "RepVGGDW": (lambda: RepVGGDW(6), (6, 7, 8)),
    "two heads": (lambda: Head(6, 4, heads=2), (6,)),
}


def network_of(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    """A network of the table, in float64 and evaluation mode, and the shape of its samples."""
    network, arguments, shape = NETWORKS[name]
    torch.manual_seed(0)
    return with_statistics(build(network, **arguments)), shape


def block_of(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    """A block of the table, in float64 and evaluation mode, and the shape of its samples."""
    make, shape = BLOCKS[name]
    torch.manual_seed(0)
    return with_statistics(make()), shape


def with_statistics(network: nn.Module) -> nn.Module:
    """``network`` in float64 and evaluation mode; each batch norm has scales of both signs, and moves what it sees."""
    network.double().eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.get_buffer("running_mean"))
            nn.init.uniform_(module.get_buffer("running_var"), 0.2, 2.0)
    return network
