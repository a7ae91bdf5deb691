"""Numpy files, read a few samples at a time: ``.npy`` mapped into memory, ``.npz`` as a stream."""

from __future__ import annotations

import io
import lzma
import math
import tokenize
import zipfile
import zlib
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from bnfold.errors import DataError
from bnfold.prediction.samples import RawBatch, files_digest
from bnfold.training.dataset import Labels

#: What numpy and zipfile raise for damaged files.
_DAMAGE = (
    OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, tokenize.TokenError,
    RuntimeError,  # an archive with a password, or compressed in a way that is not known
    OverflowError, MemoryError,  # a shape that no file has
)  # fmt: skip


class _Rows(Protocol):
    """An array of which a range of rows is read."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...

    def __getitem__(self, rows: slice) -> NDArray[Any]: ...


class ArraySource:
    """Samples of an array ``(N, …)``, with labels or not."""

    classes: tuple[str, ...] = ()

    def __init__(self, file: Path, values: _Rows, labels: NDArray[Any] | None) -> None:
        if values.dtype.kind not in "fui" or len(values.shape) < 2 or not values.shape[0]:
            raise DataError(f"{file}: x is {values.dtype} of shape {values.shape}; samples are numbers of shape (N, …)")
        if labels is not None and (labels.shape != values.shape[:1] or labels.dtype.kind not in "iu"):
            raise DataError(
                f"{file}: y is {labels.dtype} of shape {labels.shape}; "
                f"labels are integers of shape ({values.shape[0]},)"
            )
        self.place = str(file)
        self.count = values.shape[0]
        self.scale = 255.0 if values.dtype == np.uint8 else 1.0
        self.labelled = labels is not None
        self._file = file
        self.opened = ExitStack()  # what to close at the end
        self._values = values
        self._labels: Labels | None = None if labels is None else _as_labels(labels)

    def read(self, start: int, stop: int) -> RawBatch:
        """See :class:`bnfold.prediction.samples.Source`."""
        stop = min(stop, self.count)
        try:
            values = self._values[start:stop]
        except _DAMAGE as error:
            raise DataError(f"{self.place} is damaged: samples from {start} on cannot be read") from error
        labels = None if self._labels is None else self._labels[start:stop]
        return RawBatch(tuple(str(index) for index in range(start, stop)), labels, values)

    def listing(self) -> str:
        """Name, size and time of the file."""
        return files_digest(self._file.parent, [self._file.name])

    def close(self) -> None:
        """Close the file."""
        self.opened.close()


def _as_labels(numbers: NDArray[Any]) -> Labels:
    """Integers of any type as labels; those beyond int64 stay beyond every class rather than turn negative."""
    if numbers.dtype == np.uint64:
        numbers = np.minimum(numbers, np.iinfo(np.int64).max)
    return numbers.astype(np.int64)


def open_npy(file: Path) -> ArraySource:
    """An ``.npy`` file, mapped: only what is read is in memory.

    Raises:
        DataError: it is missing, damaged, or holds something else than numbers (N, …).
    """
    _check_there(file)
    try:
        mapped = np.lib.format.open_memmap(file, mode="r")
    except _DAMAGE as error:
        raise _not_numpy(file) from error
    return ArraySource(file, mapped, None)


def open_npz(file: Path) -> ArraySource:
    """An ``.npz`` archive with ``x``, which is read as a stream, and perhaps ``y``.

    Raises:
        DataError: it is missing, damaged, or laid out otherwise.
    """
    _check_there(file)
    with ExitStack() as opened:
        try:
            archive = opened.enter_context(zipfile.ZipFile(opened.enter_context(file.open("rb"))))
            held = [name.removesuffix(".npy") for name in archive.namelist()]
            labels = _whole(archive, "y") if "y" in held else None
            values = _StreamedArray(opened.enter_context(archive.open("x.npy"))) if "x" in held else None
        except _DAMAGE as error:
            raise _not_numpy(file) from error
        if values is None:
            names = ", ".join(held) or "nothing"
            raise DataError(f"{file} holds {names}; an array named x is needed, and y for labels")
        source = ArraySource(file, values, labels)
        source.opened = opened.pop_all()
        return source


def _whole(archive: zipfile.ZipFile, name: str) -> NDArray[Any]:
    with archive.open(f"{name}.npy") as stream:
        array: NDArray[Any] = np.lib.format.read_array(io.BytesIO(stream.read()), allow_pickle=False)
        return array


class _StreamedArray:
    """An array inside an archive, of which rows are read in order; going back starts again from the beginning."""

    def __init__(self, stream: IO[bytes]) -> None:
        version = np.lib.format.read_magic(stream)
        readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        if version not in readers:
            raise ValueError(f"version {version} of the format")
        self.shape, by_columns, self.dtype = readers[version](stream)
        if self.dtype.hasobject:
            raise ValueError("pickled objects")
        if min(self.shape, default=0) < 0:
            raise ValueError(f"shape {self.shape}")
        self._stream = stream
        self._begin = stream.tell()
        self._row_bytes = math.prod(self.shape[1:]) * self.dtype.itemsize
        # Columns lie apart in a stream: such an array has to be in memory.
        self._whole = self._read_all() if by_columns else None

    def __getitem__(self, rows: slice) -> NDArray[Any]:
        if self._whole is not None:
            return self._whole[rows]
        start, stop, _step = rows.indices(self.shape[0])
        self._stream.seek(self._begin + start * self._row_bytes)
        content = self._exactly((stop - start) * self._row_bytes)
        return np.frombuffer(content, self.dtype).reshape((stop - start, *self.shape[1:]))

    def _read_all(self) -> NDArray[Any]:
        content = self._exactly(self.shape[0] * self._row_bytes)
        return np.frombuffer(content, self.dtype).reshape(self.shape, order="F")

    def _exactly(self, count: int) -> bytes:
        content = self._stream.read(count)
        if len(content) != count:
            raise EOFError(f"{len(content)} of {count} bytes")
        return content


def _check_there(file: Path) -> None:
    if not file.is_file():
        raise DataError(f"{file} does not exist")


def _not_numpy(file: Path) -> DataError:
    return DataError(f"{file} is not a numpy file of plain arrays, or is damaged")
