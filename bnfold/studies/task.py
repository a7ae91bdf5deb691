"""The data of the study: scikit-learn's digits, in three parts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bnfold.training.data import load_data
from bnfold.training.dataset import Split, stratified_split


@dataclass(frozen=True, eq=False)
class Part:
    """Some samples.

    Attributes:
        x: float32 (N, 64), normalized.
        y: int64 (N,).
    """

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.y)

    def first(self, count: int) -> Part:
        """The first ``count`` samples, whose order is random."""
        return Part(self.x[:count], self.y[:count])


@dataclass(frozen=True, eq=False)
class Task:
    """What networks learn from, what learning rates are chosen on, and what is reported.

    Attributes:
        fit: 1,151 images.
        validation: 287 images.
        test: 359 images that no choice depends on.
    """

    fit: Part
    validation: Part
    test: Part
    features: int = 64
    classes: int = 10


def digits() -> Task:
    """The task.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    data = load_data("digits")

    def part(split: Split) -> Part:
        return Part(torch.from_numpy(data.inputs(split)).flatten(1), torch.from_numpy(split.labels))

    fit, validation = stratified_split(data.train.labels, data.classes, "digits")
    shuffled = np.random.default_rng(0).permutation(fit)
    return Task(part(data.train.take(shuffled)), part(data.train.take(validation)), part(data.test))
