"""Samples of Parquet files, read a few rows at a time: encoded images, or lists of numbers."""

from __future__ import annotations

import json
import os
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnfold.errors import DataError
from bnfold.extras import require
from bnfold.prediction.images import Encoded
from bnfold.prediction.samples import RawBatch, files_digest
from bnfold.training.dataset import Labels

#: Rows that are decoded from a file at a time; a row group may be larger than memory.
_READ_ROWS = 256

_LABEL_COLUMN = "label"
_LARGEST = int(np.iinfo(np.int64).max)  # a label beyond it is beyond every class as well
_SUFFIXES = (".parquet", ".pq")


def parquet_files(folder: Path) -> list[Path]:
    """The Parquet files in a folder and the folders in it, sorted by name; hidden ones are left alone."""
    found = []
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith((".", "_"))]
        found += [Path(place, name) for name in names if name.endswith(_SUFFIXES) and not name.startswith((".", "_"))]
    return sorted(found)


class ParquetSource:
    """One or more Parquet files of one schema, one after the other.

    A sample is encoded images (binary, or the struct of ``bytes`` and ``path`` that Hugging Face writes) or numbers
    (lists, nested or flat). Labels are integers, or names. Rows are numbered from 0 across all files.
    """

    def __init__(self, place: Path, files: Sequence[Path], column: str | None, label_column: str | None) -> None:
        self._pa = require("pyarrow", "parquet")
        self._parquet = require("pyarrow.parquet", "parquet")
        self.place = str(place)
        self._folder = place if place.is_dir() else place.parent
        self._files = list(files)
        self._rows: list[int] = []
        schemas = []
        for path in files:  # one after the other: there may be more than a process can have open
            with self._opened(path) as file:
                self._rows.append(file.metadata.num_rows)
                schemas.append(file.schema_arrow)
        schema = schemas[0]
        self.count = sum(self._rows)
        if not self.count:
            raise DataError(f"{place} holds no rows")
        self._label_column = self._chosen_labels(schema, label_column)
        self._column = self._chosen(schema, column)
        kind = schema.field(self._column).type
        self._encoded = not _is_list(self._pa, kind)
        for needed in filter(None, (self._column, self._label_column)):
            wanted = schema.field(needed).type
            for path, other in zip(self._files, schemas, strict=True):
                if other.names.count(needed) != 1 or other.field(needed).type != wanted:
                    raise DataError(f"{path}: its column {needed!r} is not the {wanted} that it is in {files[0]}")
        self.scale = 255.0 if self._encoded or _innermost(self._pa, kind) == self._pa.uint8() else 1.0
        self.labelled = self._label_column is not None
        self._names_as_labels = self.labelled and _is_text(self._pa, schema.field(self._label_column).type)
        self.classes = self._classes(schema)
        self._number = {name: number for number, name in enumerate(self.classes)}
        self._stream: Generator[Any, None, None] | None = None
        self._position = -1
        self._rest: Any = None

    def listing(self) -> str:
        """Names, sizes and times of the files."""
        return files_digest(self._folder, [str(file.relative_to(self._folder)) for file in self._files])

    def close(self) -> None:
        """Close the file that is being read."""
        if self._stream is not None:
            self._stream.close()

    def read(self, start: int, stop: int) -> RawBatch:
        """See :class:`bnfold.prediction.samples.Source`."""
        stop = min(stop, self.count)
        pieces = list(self._pieces(start, stop))
        names = tuple(str(row) for row in range(start, stop))
        labels = np.concatenate([self._labels_of(piece) for piece in pieces]) if self.labelled else None
        columns = [piece.column(self._column) for piece in pieces]
        if self._encoded:
            images = tuple(image for column in columns for image in self._images_of(column))
            return RawBatch(names, labels, images)
        arrays = []
        row = start
        for column in columns:
            arrays.append(self._numbers_of(column, row))
            row += len(column)
        if any(array.shape[1:] != arrays[0].shape[1:] for array in arrays):
            raise DataError(f"{self.place}: the lists in {self._column!r} differ in length from row {start} on")
        return RawBatch(names, labels, np.concatenate(arrays))

    def _opened(self, file: Path) -> Any:
        if not file.is_file():
            raise DataError(f"{file} does not exist")
        try:
            return self._parquet.ParquetFile(file)
        except (self._pa.ArrowException, OSError, ValueError) as error:
            raise DataError(f"{file} is not a Parquet file, or is damaged") from error

    def _pieces(self, start: int, stop: int) -> Iterator[Any]:
        """The rows from ``start`` up to ``stop`` as record batches; going on where the last call ended is cheap."""
        if start != self._position:
            self.close()
            self._stream, self._rest = self._from(start), None
        assert self._stream is not None
        missing = stop - start
        self._position = -1  # should reading fail, what is left of the stream is of no use
        while missing:
            batch = next(self._stream, None) if self._rest is None else self._rest
            if batch is None:
                raise DataError(f"{self.place} is damaged: it ends before row {stop}")
            taken = min(missing, len(batch))
            yield batch.slice(0, taken)
            self._rest = batch.slice(taken) if taken < len(batch) else None
            missing -= taken
        self._position = stop

    def _from(self, start: int) -> Generator[Any, None, None]:
        """All rows from ``start`` on, as record batches."""
        columns = [self._column] + ([self._label_column] if self._label_column else [])
        first = 0
        for path, rows in zip(self._files, self._rows, strict=True):
            if first + rows <= start:
                first += rows
                continue
            try:
                with self._opened(path) as file:
                    for group in range(file.num_row_groups):
                        length = file.metadata.row_group(group).num_rows
                        if first + length <= start:
                            first += length
                            continue
                        for batch in file.iter_batches(_READ_ROWS, [group], columns, use_threads=False):
                            skipped = min(max(0, start - first), len(batch))
                            first += len(batch)
                            if skipped < len(batch):
                                yield batch.slice(skipped)
            except (self._pa.ArrowException, OSError, ValueError) as error:
                raise DataError(f"{path} is damaged: rows from {first} on cannot be read") from error

    def _chosen(self, schema: Any, wanted: str | None) -> str:
        """The column that holds the samples."""
        fitting = [
            field.name for field in schema if field.name != self._label_column and _holds_samples(self._pa, field.type)
        ]
        what = "images (binary, or a struct with bytes) or lists of numbers"
        if wanted is not None:
            self._check_there(schema, wanted)
            if wanted not in fitting:
                raise DataError(f"{self.place}: column {wanted!r} is {schema.field(wanted).type}; samples are {what}")
            return wanted
        if len(fitting) != 1:
            found = f"more than one column of samples: {', '.join(fitting)}" if fitting else f"no column of {what}"
            raise DataError(f"{self.place} has {found}; name one with --column")
        return str(fitting[0])

    def _chosen_labels(self, schema: Any, wanted: str | None) -> str | None:
        if wanted is None:
            wanted = _LABEL_COLUMN
            if wanted not in schema.names:
                return None
        self._check_there(schema, wanted)
        kind = schema.field(wanted).type
        if not (self._pa.types.is_integer(kind) or _is_text(self._pa, kind)):
            raise DataError(f"{self.place}: column {wanted!r} is {kind}; labels are integers or names")
        return wanted

    def _check_there(self, schema: Any, column: str) -> None:
        count = schema.names.count(column)
        if count != 1:
            some = "no column" if not count else "more than one column"
            raise DataError(f"{self.place} has {some} {column!r}; it has {', '.join(schema.names)}")

    def _classes(self, schema: Any) -> tuple[str, ...]:
        """The names of the classes: of text labels, all that there are; else what Hugging Face's metadata says."""
        if self._names_as_labels:
            names: set[str] = set()
            for path in self._files:
                try:
                    with self._opened(path) as file:
                        for batch in file.iter_batches(columns=[self._label_column], use_threads=False):
                            names |= {str(name) for name in batch.column(0).unique().to_pylist() if name is not None}
                except (self._pa.ArrowException, OSError, ValueError) as error:
                    raise DataError(f"{path} is damaged: its column {self._label_column!r} cannot be read") from error
            return tuple(sorted(names))
        try:
            features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
            return tuple(str(name) for name in features[self._label_column]["names"])
        except (KeyError, TypeError, ValueError, RecursionError):
            return ()

    def _labels_of(self, piece: Any) -> Labels:
        labels = piece.column(self._label_column).to_pylist()
        if self._names_as_labels:
            labels = [None if name is None else self._number[name] for name in labels]
        return np.array([-1 if label is None else min(label, _LARGEST) for label in labels], np.int64)

    def _images_of(self, column: Any) -> Iterator[Encoded]:
        if not self._pa.types.is_struct(column.type):
            yield from column.to_pylist()
            return
        for value in column.to_pylist():
            content, path = (None, None) if value is None else (value.get("bytes"), value.get("path"))
            yield content if content is not None or not isinstance(path, str) else self._folder / path

    def _numbers_of(self, column: Any, first: int) -> NDArray[Any]:
        shape = [len(column)]
        while _is_list(self._pa, column.type):
            if column.null_count:
                raise DataError(f"{self.place}: {self._column!r} has no value in one of the rows from {first} on")
            flat = column.flatten()
            width = len(flat) // max(1, len(column))
            lengths = np.diff(np.asarray(column.offsets)) if hasattr(column, "offsets") else np.array([width])
            if (lengths != width).any():
                raise DataError(f"{self.place}: the lists in {self._column!r} differ in length from row {first} on")
            shape.append(width)
            column = flat
        if column.null_count:
            raise DataError(f"{self.place}: a number is missing in {self._column!r} in the rows from {first} on")
        return np.asarray(column.to_numpy(zero_copy_only=False)).reshape(shape)


def _is_list(pa: Any, kind: Any) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _is_text(pa: Any, kind: Any) -> bool:
    if pa.types.is_dictionary(kind):  # as pandas writes its categories
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _innermost(pa: Any, kind: Any) -> Any:
    while _is_list(pa, kind):
        kind = kind.value_type
    return kind


def _holds_samples(pa: Any, kind: Any) -> bool:
    types = pa.types
    if _is_list(pa, kind):
        inner = _innermost(pa, kind)
        return bool(types.is_integer(inner) or types.is_floating(inner))
    if types.is_struct(kind):
        names = [kind.field(index).name for index in range(kind.num_fields)]
        return "bytes" in names and bool(
            types.is_binary(kind.field(names.index("bytes")).type)
            or types.is_large_binary(kind.field(names.index("bytes")).type)
        )
    return bool(types.is_binary(kind) or types.is_large_binary(kind))
