"""The samples that a model is run over, from a data set, a folder of images or a numpy file."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnfold.errors import DataError
from bnfold.training.data import load_data
from bnfold.training.dataset import Labels
from bnfold.training.image_folder import IMAGE_SUFFIXES, read_images


@dataclass(frozen=True, eq=False)
class Samples:
    """Raw samples in memory.

    Attributes:
        names: what to call each sample: its file, or its index.
        values: (N, …), as they were stored: uint8 pixels, or numbers.
        labels: (N,) int64, where they are known.
        scale: the raw value that stands for 1: 255 for 8-bit pixels, 1 for numbers.
        classes: names of the classes, where the data knows them.
    """

    names: tuple[str, ...]
    values: NDArray[Any]
    labels: Labels | None
    scale: float
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)


def load_samples(data: str, split: str, image_size: int | None) -> Samples:
    """Load the samples that ``data`` names.

    Args:
        data: a data set (``digits``, ``cifar10:DIR``, ``imagefolder:DIR``, ``npz:FILE``), of which ``split`` is
            taken; or the path of a folder of images, of an ``.npz`` with ``x`` and perhaps ``y``, or of an ``.npy``.
        split: ``test`` or ``train``.
        image_size: side to which images are resized, as the model's input asks for.

    Raises:
        DataError: there is nothing of that kind, or it is damaged.
        MissingExtraError: the package that reads it is not installed.
    """
    path = Path(data).expanduser()
    if path.is_dir():
        return _image_folder(path, image_size)
    if path.suffix in (".npz", ".npy") and not data.startswith("npz:"):
        return _arrays(path)
    loaded = load_data(data, image_size=image_size if data.startswith("imagefolder:") else None)
    part = loaded.test if split == "test" else loaded.train
    names = tuple(str(index) for index in range(len(part)))
    return Samples(names, part.images, part.labels, loaded.normalization.scale, loaded.classes)


def _image_folder(folder: Path, image_size: int | None) -> Samples:
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise DataError(f"{folder} holds no images ({', '.join(sorted(IMAGE_SUFFIXES))})")
    names = tuple(str(file.relative_to(folder)) for file in files)
    return Samples(names, read_images(files, image_size), None, 255.0, ())


def _arrays(file: Path) -> Samples:
    arrays = _read_arrays(file)
    if "x" not in arrays:
        raise DataError(f"{file} holds {', '.join(arrays) or 'nothing'}; an array named x is needed, and y for labels")
    values, labels = arrays["x"], arrays.get("y")
    if values.dtype.kind not in "fui" or values.ndim < 2 or not len(values):
        raise DataError(f"{file}: x is {values.dtype} of shape {values.shape}; samples are numbers of shape (N, …)")
    if labels is not None and (labels.shape != values.shape[:1] or labels.dtype.kind not in "iu"):
        raise DataError(
            f"{file}: y is {labels.dtype} of shape {labels.shape}; labels are integers of shape ({len(values)},)"
        )
    return Samples(
        names=tuple(str(index) for index in range(len(values))),
        values=values,
        labels=None if labels is None else labels.astype(np.int64),
        scale=255.0 if values.dtype == np.uint8 else 1.0,
        classes=(),
    )


def _read_arrays(file: Path) -> Mapping[str, NDArray[Any]]:
    if not file.is_file():
        raise DataError(f"{file} does not exist")
    try:
        with file.open("rb") as stream:  # opened here: numpy leaves a damaged archive open
            loaded = np.load(stream, allow_pickle=False)
            return {"x": loaded} if isinstance(loaded, np.ndarray) else {name: loaded[name] for name in loaded.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{file} is not a numpy file of plain arrays, or is damaged") from error
