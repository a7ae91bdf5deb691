"""The plan of a network in stages: how many blocks, with which channels and strides.

A stage is a row of blocks of equal width. Its first block changes the number of channels and halves the image, or not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from bnfold.models.layers import for_each_stage


class Block(NamedTuple):
    """The shape of one block."""

    in_channels: int
    out_channels: int
    stride: int


def plan_stages(
    in_channels: int, widths: Sequence[int], blocks: int | Sequence[int], strides: Sequence[int] | None
) -> list[list[Block]]:
    """The blocks of each stage.

    Args:
        in_channels: channels before the first block.
        widths: channels of each stage.
        blocks: blocks of each stage; one number serves all stages.
        strides: stride of the first block of each stage; where none are given, each stage but the first has 2.

    Raises:
        ValueError: there is no stage, or blocks or strides are not as many.
    """
    depths = for_each_stage("blocks", blocks, widths)
    steps = for_each_stage("strides", [1, *[2] * (len(widths) - 1)] if strides is None else strides, widths)
    stages: list[list[Block]] = []
    channels = in_channels
    for width, depth, step in zip(widths, depths, steps, strict=True):
        stage: list[Block] = []
        for index in range(depth):
            stage.append(Block(channels, width, step if index == 0 else 1))
            channels = width
        stages.append(stage)
    return stages
