"""The samples that a model is run over: where they come from, and how they are read a few at a time."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from bnfold.errors import DataError
from bnfold.prediction.images import Encoded, ImageForm, decode_all
from bnfold.training.data import load_data
from bnfold.training.dataset import Labels
from bnfold.training.image_folder import IMAGE_SUFFIXES, list_image_folder


@dataclass(frozen=True, eq=False)
class RawBatch:
    """Some samples in a row, as they are stored.

    Attributes:
        names: what to call each sample.
        labels: (n,) int64, where they are known; −1 for a sample without one.
        values: (n, …) numbers, or images that are not decoded yet.
    """

    names: tuple[str, ...]
    labels: Labels | None
    values: NDArray[Any] | tuple[Encoded, ...]


class Source(Protocol):
    """Samples in a fixed order, read in pieces.

    Attributes:
        place: what to call it in an error.
        count: how many samples it holds.
        scale: the raw value that stands for white: 255 for 8-bit pixels, 1 for numbers.
        classes: names of the classes, where the data knows them.
        labelled: whether it has labels.
    """

    place: str
    count: int
    scale: float
    classes: tuple[str, ...]
    labelled: bool

    def read(self, start: int, stop: int) -> RawBatch:
        """The samples from ``start`` up to ``stop``; cheapest in order, and from one thread at a time.

        Raises:
            DataError: the data is damaged.
        """
        ...

    def listing(self) -> str:
        """A digest that is another one when the data is."""
        ...

    def close(self) -> None:
        """Close what is open; nothing is read afterwards."""
        ...


@dataclass(frozen=True)
class DataOptions:
    """Which part of the data, and how to find it there.

    Attributes:
        split: of a data set that has parts: ``test`` or ``train``.
        column: of a Parquet file: the one that holds the samples; None where there is but one candidate.
        label_column: of a Parquet file: the one that holds the labels; None takes ``label`` where there is one.
    """

    split: str = "test"
    column: str | None = None
    label_column: str | None = None


def open_source(data: str, options: DataOptions) -> Source:
    """Open the samples that ``data`` names, without reading them yet where that can be avoided.

    Args:
        data: the path of a folder of images, of an ``.npz`` with ``x`` and perhaps ``y``, of an ``.npy``, of a
            ``.parquet`` file or of a folder of such; or a data set (``digits``, ``cifar10:DIR``,
            ``imagefolder:DIR``, ``npz:FILE``).
        options: see :class:`DataOptions`.

    Raises:
        DataError: there is nothing of that kind, or it is damaged.
        MissingExtraError: the package that reads it is not installed.
    """
    from bnfold.prediction.array_sources import open_npy, open_npz
    from bnfold.prediction.parquet_source import ParquetSource, parquet_files

    path = Path(data).expanduser()
    if path.is_dir():
        tables = parquet_files(path)
        if tables:
            return ParquetSource(path, tables, options.column, options.label_column)
        return ImageFiles.below(path)
    kind, _, location = data.partition(":")
    if path.suffix in (".parquet", ".pq"):
        return ParquetSource(path, [path], options.column, options.label_column)
    if path.suffix == ".npz" and kind != "npz":
        return open_npz(path)
    if path.suffix == ".npy":
        return open_npy(path)
    if kind == "imagefolder" and location:
        return ImageFiles.of_data_set(Path(location).expanduser(), options.split)
    return DataSetPart.load(data, options.split)


class ImageFiles:
    """Image files, decoded when they are needed."""

    scale = 255.0

    def __init__(self, folder: Path, names: list[str], labels: Labels | None, classes: tuple[str, ...]) -> None:
        self.place = str(folder)
        self.count = len(names)
        self.classes = classes
        self.labelled = labels is not None
        self._folder = folder
        self._names = names  # below the folder; a million of them take a fifth of the memory that paths would
        self._labels = labels

    @staticmethod
    def below(folder: Path) -> ImageFiles:
        """All images in a folder and the folders in it, sorted by name; hidden ones are left alone.

        Raises:
            DataError: there are none, or a folder cannot be read.
        """
        names = sorted(_images(folder))
        if not names:
            raise DataError(f"{folder} holds no images ({', '.join(sorted(IMAGE_SUFFIXES))})")
        return ImageFiles(folder, names, None, ())

    @staticmethod
    def of_data_set(folder: Path, split: str) -> ImageFiles:
        """A part of a data set of one folder a class.

        Raises:
            DataError: the folder is not laid out so.
        """
        found = list_image_folder(folder)
        files, labels = (
            (found.test_files, found.test_labels) if split == "test" else (found.train_files, found.train_labels)
        )
        return ImageFiles(folder, [str(file.relative_to(folder)) for file in files], labels, found.classes)

    def read(self, start: int, stop: int) -> RawBatch:
        """See :class:`Source`."""
        names = tuple(self._names[start:stop])
        files = tuple(self._folder / name for name in names)
        return RawBatch(names, None if self._labels is None else self._labels[start:stop], files)

    def listing(self) -> str:
        """Names, sizes and times of the files."""
        return files_digest(self._folder, self._names)

    def close(self) -> None:
        """Nothing stays open."""


def _images(folder: Path) -> Iterable[str]:
    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename} cannot be read: {error.strerror}") from error

    for place, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if Path(name).suffix.lower() in IMAGE_SUFFIXES and not name.startswith("."):
                yield str(Path(place, name).relative_to(folder))


class DataSetPart:
    """A part of a data set that is small enough to be in memory."""

    def __init__(self, place: str, images: NDArray[Any], labels: Labels, scale: float, classes: tuple[str, ...]):
        self.place = place
        self.count = len(images)
        self.scale = scale
        self.classes = classes
        self.labelled = True
        self._images = images
        self._labels = labels

    @staticmethod
    def load(data: str, split: str) -> DataSetPart:
        """See :func:`bnfold.training.data.load_data`."""
        loaded = load_data(data)
        part = loaded.test if split == "test" else loaded.train
        return DataSetPart(data, part.images, part.labels, loaded.normalization.scale, loaded.classes)

    def read(self, start: int, stop: int) -> RawBatch:
        """See :class:`Source`."""
        names = tuple(str(index) for index in range(start, min(stop, self.count)))
        return RawBatch(names, self._labels[start:stop], self._images[start:stop])

    def listing(self) -> str:
        """A digest of the images and labels themselves."""
        digest = hashlib.sha256(repr((self._images.shape, self._images.dtype.str)).encode())
        digest.update(np.ascontiguousarray(self._images).data)
        digest.update(np.ascontiguousarray(self._labels).data)
        return digest.hexdigest()

    def close(self) -> None:
        """Nothing stays open."""


def files_digest(folder: Path, names: Iterable[str]) -> str:
    """A digest of the names below ``folder``, the sizes and the times of change of files.

    A file that is gone has neither; who reads it says so.
    """
    digest = hashlib.sha256()
    for name in names:
        try:
            status = (folder / name).stat()
            known = (name, status.st_size, status.st_mtime_ns)
        except OSError:
            known = (name, -1, -1)
        digest.update(repr(known).encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class Samples:
    """Raw samples in memory, decoded.

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


def load_samples(data: str, split: str, form: ImageForm | None) -> Samples:
    """Load all samples that ``data`` names; see :func:`open_source`.

    Args:
        data: see :func:`open_source`.
        split: ``test`` or ``train``.
        form: what images are decoded to.

    Raises:
        DataError: there is nothing of that kind, or it is damaged.
        MissingExtraError: the package that reads it is not installed.
    """
    with closing(open_source(data, DataOptions(split))) as source:
        raw = source.read(0, source.count)
    values = raw.values
    if isinstance(values, tuple):
        if form is None:
            raise DataError(f"{data} holds images, and the model does not say how they become its input")
        values, _kept, failures = decode_all(values, raw.names, source.place, form)
        if failures:
            raise DataError(failures[0].error)
    return Samples(raw.names, np.asarray(values), raw.labels, source.scale, source.classes)
