"""Data sets as plain values: raw images, labels, and how raw pixels become a network's input.

Only numpy is needed here, so that deployment can read data where torch is not installed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from bnfold.errors import DataError

FloatImages = NDArray[np.float32]
Labels = NDArray[np.int64]

#: The share of each class that is held out where a data set has no test split of its own.
TEST_SHARE = 0.2


@dataclass(frozen=True)
class Normalization:
    """How raw pixels become the network's input: ``x = (raw / scale − mean) / std``, channel by channel.

    Attributes:
        scale: the raw value that stands for 1: 255 for 8-bit images, 16 for digits, 1 for floating point.
        mean: of raw / scale over the training images, one for each channel.
        std: the standard deviation likewise; 1 for a channel that is constant.
    """

    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def apply(self, raw: NDArray[Any]) -> FloatImages:
        """Normalize images (N, C, H, W) of any real type; returns float32 of the same shape."""
        scale = 1.0 / (self.scale * np.asarray(self.std, dtype=np.float64))
        shift = -np.asarray(self.mean, dtype=np.float64) / np.asarray(self.std, dtype=np.float64)
        column = (1, -1, 1, 1)
        images = raw.astype(np.float32)
        images *= scale.astype(np.float32).reshape(column)
        images += shift.astype(np.float32).reshape(column)
        return images

    def to_json(self) -> dict[str, Any]:
        """As a plain document; :meth:`from_json` reads it back."""
        return {"scale": self.scale, "mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        """Read what :meth:`to_json` wrote.

        Raises:
            KeyError, TypeError, ValueError: the document is not of that form.
        """
        return cls(
            scale=float(document["scale"]),
            mean=tuple(float(value) for value in document["mean"]),
            std=tuple(float(value) for value in document["std"]),
        )

    @classmethod
    def of(cls, raw: NDArray[Any], scale: float) -> Self:
        """The normalization that gives the images (N, C, H, W) mean 0 and variance 1 in each channel."""
        means, stds = [], []
        for channel in range(raw.shape[1]):
            if raw.dtype == np.uint8:  # exact and without a float64 copy of the whole set
                counts = sum(np.bincount(image[channel].ravel(), minlength=256) for image in raw)
                values = np.arange(256, dtype=np.float64) / scale
                mean = float(np.average(values, weights=counts))
                std = float(np.sqrt(np.average((values - mean) ** 2, weights=counts)))
            else:
                plane = raw[:, channel].astype(np.float64) / scale
                mean, std = float(plane.mean()), float(plane.std())
            means.append(mean)
            stds.append(std if std > 1e-12 else 1.0)
        return cls(scale=scale, mean=tuple(means), std=tuple(stds))


@dataclass(frozen=True, eq=False)
class Split:
    """One part of a data set.

    Attributes:
        images: raw images (N, C, H, W), uint8 or float32.
        labels: class of each image (N,), int64, from 0.
    """

    images: NDArray[Any]
    labels: Labels

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: NDArray[np.integer[Any]]) -> Split:
        """The part made of the images at ``indices``."""
        return Split(self.images[indices], self.labels[indices])


@dataclass(frozen=True, eq=False)
class DataSet:
    """A data set in memory, with all that is needed to feed it to a network.

    Attributes:
        spec: what it was loaded from, a folder or file as an absolute path.
        train: images to learn from.
        test: images held out.
        classes: the name of each class, in the order of the labels.
        normalization: how raw pixels become the network's input, computed on ``train``.
        mirrored: whether an image and its mirror image are of the same class (not so for digits).
    """

    spec: str
    train: Split
    test: Split
    classes: tuple[str, ...]
    normalization: Normalization
    mirrored: bool

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one image, (C, H, W)."""
        return self.train.images.shape[1:]

    def inputs(self, split: Split) -> FloatImages:
        """The network's input for the images of ``split``: normalized float32 (N, C, H, W)."""
        return self.normalization.apply(split.images)

    def fingerprint(self) -> str:
        """A digest of all images and labels, so that a run resumes on the data that it began with."""
        digest = hashlib.blake2b(digest_size=16)
        for split in (self.train, self.test):
            digest.update(repr((split.images.shape, split.images.dtype.str)).encode())
            digest.update(np.ascontiguousarray(split.images).data)
            digest.update(np.ascontiguousarray(split.labels).data)
        return digest.hexdigest()


def stratified_split(labels: Labels, classes: Sequence[str], where: str) -> tuple[Labels, Labels]:
    """Indices of a training and a test part; each class gives :data:`TEST_SHARE` of its samples to the test.

    The split depends on the labels alone, never on a seed, so that accuracies of different runs compare.

    Args:
        labels: (N,) from 0.
        classes: the name of each class.
        where: what to call the data in an error.

    Raises:
        DataError: a class has fewer than two samples.
    """
    train: list[Labels] = []
    test: list[Labels] = []
    for label, name in enumerate(classes):
        members = np.flatnonzero(labels == label)
        if len(members) < 2:
            raise DataError(
                f"{where}: class {name!r} has {len(members)} of the 2 images that are needed at least "
                "to hold one out for testing"
            )
        order = np.random.default_rng([0, label]).permutation(members)
        held_out = max(1, round(TEST_SHARE * len(members)))
        test.append(order[:held_out])
        train.append(order[held_out:])
    return np.sort(np.concatenate(train)), np.sort(np.concatenate(test))


def top1_accuracy(logits: NDArray[Any], labels: NDArray[Any]) -> float:
    """The share of samples whose largest logit is that of their label, from 0 to 1.

    A row that holds a NaN counts as wrong.

    Args:
        logits: (N, classes).
        labels: (N,) integers.

    Raises:
        DataError: the shapes do not belong together, or there are no samples.
    """
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or not len(labels):
        raise DataError(
            f"logits of shape {logits.shape} and labels of shape {labels.shape} do not belong together; "
            "(N, classes) and (N,) do, with N at least 1"
        )
    finite = ~np.isnan(logits).any(axis=1)
    return float(np.mean((logits.argmax(axis=1) == labels) & finite))
