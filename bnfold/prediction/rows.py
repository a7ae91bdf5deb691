"""From scores to the rows of the output, and how these are written as CSV, JSON lines or Parquet.

While rows are made they are appended to a partial file; :mod:`bnfold.prediction.partial_output` keeps that. CSV and
JSON lines need nothing more. A Parquet file cannot be appended to, so its rows are kept as a stream of Arrow record
batches, from which the file is made at the end, a row group at a time.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from bnfold.errors import DataError, OutputError
from bnfold.extras import require
from bnfold.prediction.images import Failure
from bnfold.training.dataset import Labels

#: What predictions can be written as.
OUTPUT_SUFFIXES = (".csv", ".jsonl", ".parquet")

#: Rows of one row group of a Parquet output.
_ROW_GROUP = 65_536


@dataclass(frozen=True, eq=False)
class Scored:
    """The scores of some samples in a row.

    Attributes:
        names: of the samples.
        labels: (n,) their true classes, as the model counts, −1 for one without; None where there are none.
        scores: (n, classes), as the model yields them.
        failures: samples that should be here and are not.
    """

    names: tuple[str, ...]
    labels: Labels | None
    scores: NDArray[Any]
    failures: tuple[Failure, ...]


@dataclass(frozen=True)
class Ranked:
    """A class in the order of its score.

    Attributes:
        predicted: its number.
        name: its name.
        probability: its softmax.
    """

    predicted: int
    name: str
    probability: float

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return {"predicted": self.predicted, "name": self.name, "probability": self.probability}


@dataclass(frozen=True)
class Prediction:
    """One sample's result.

    Attributes:
        sample: name of the sample.
        predicted: index of the largest score.
        name: name of that class.
        probability: its softmax.
        label: the true class, where known.
        label_name: its name.
        top: the best classes, best first, where more than one was asked for.
        logits: all scores, where they were asked for.
    """

    sample: str
    predicted: int
    name: str
    probability: float
    label: int | None
    label_name: str | None
    top: tuple[Ranked, ...] = ()
    logits: tuple[float, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The prediction as plain data."""
        document = {
            "sample": self.sample,
            "predicted": self.predicted,
            "name": self.name,
            "probability": self.probability,
            "label": self.label,
            "label_name": self.label_name,
        }
        if self.top:
            document["top"] = [ranked.to_json() for ranked in self.top]
        if self.logits:  # JSON has no infinities
            document["logits"] = [score if math.isfinite(score) else None for score in self.logits]
        return document


@dataclass(frozen=True)
class RowFormat:
    """What a row tells.

    Attributes:
        classes: names of the classes; may be empty.
        top_k: how many of the best classes.
        logits: whether all scores as well.
        probabilities: whether the scores are probabilities already.
    """

    classes: tuple[str, ...]
    top_k: int
    logits: bool
    probabilities: bool

    def named(self, number: int) -> str:
        """The name of a class."""
        return self.classes[number] if 0 <= number < len(self.classes) else str(number)

    def check(self, count: int) -> None:
        """Hold it against the number of scores.

        Raises:
            DataError: there are too few scores or names.
        """
        if self.classes and len(self.classes) != count:
            raise DataError(f"there are {len(self.classes)} class names for {count} logits")
        if self.top_k > count:
            raise DataError(f"the best {self.top_k} classes were asked for, and the model has {count}")

    def predictions(self, scored: Scored) -> Iterator[Prediction]:
        """One row for each sample."""
        wide = scored.scores.astype(np.float64)
        best = np.argsort(-wide, axis=1, kind="stable")[:, : self.top_k]  # of equals, the first, as argmax has it
        shares = np.take_along_axis(wide if self.probabilities else _softmax(wide), best, axis=1)
        labels = [None] * len(wide) if scored.labels is None else [int(n) if n >= 0 else None for n in scored.labels]
        rows = zip(scored.names, best.tolist(), shares.tolist(), labels, strict=True)
        for row, (sample, numbers, probabilities, label) in enumerate(rows):
            ranked = tuple(
                Ranked(number, self.named(number), share) for number, share in zip(numbers, probabilities, strict=True)
            )
            yield Prediction(
                sample=sample,
                predicted=numbers[0],
                name=ranked[0].name,
                probability=probabilities[0],
                label=label,
                label_name=None if label is None else self.named(label),
                top=ranked if self.top_k > 1 else (),
                logits=tuple(wide[row].tolist()) if self.logits else (),
            )


def _softmax(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    shares: NDArray[np.float64] = weights / weights.sum(axis=1, keepdims=True)
    return shares


class Encoder(Protocol):
    """How rows are kept while they are made, and what becomes of them at the end."""

    def header(self) -> bytes:
        """What the partial file begins with."""
        ...

    def rows(self, predictions: Sequence[Prediction]) -> bytes:
        """What is appended for some rows."""
        ...


def check_output_format(output: Path) -> None:
    """Refuse, before work begins, a file that no encoder writes.

    Raises:
        OutputError: its suffix names no format.
        MissingExtraError: pyarrow is not installed.
    """
    if output.suffix not in OUTPUT_SUFFIXES:
        known = f"{', '.join(OUTPUT_SUFFIXES[:-1])} or {OUTPUT_SUFFIXES[-1]}"
        raise OutputError(f"{output}: predictions are written as {known}")
    if output.suffix == ".parquet":
        require("pyarrow", "parquet")


def encoder_for(suffix: str, row_format: RowFormat, scores: NDArray[Any]) -> Encoder:
    """The encoder of a file that ends in ``suffix``, one of :data:`OUTPUT_SUFFIXES`, for scores like these."""
    if suffix == ".csv":
        return _Csv(row_format, scores.shape[1])
    return _JsonLines() if suffix == ".jsonl" else _Parquet(row_format, scores)


_COLUMNS = ("sample", "predicted", "name", "probability", "label", "label_name")


class _Csv:
    """One line a row; further ranks and logits in columns of their own."""

    def __init__(self, row_format: RowFormat, classes: int) -> None:
        self._format = row_format
        self._classes = classes

    def header(self) -> bytes:
        ranks = range(2, self._format.top_k + 1)
        columns = [*_COLUMNS, *(f"{what}_{rank}" for rank in ranks for what in ("predicted", "name", "probability"))]
        if self._format.logits:
            columns += [f"logit_{number}" for number in range(self._classes)]
        return _csv_lines([columns])

    def rows(self, predictions: Sequence[Prediction]) -> bytes:
        return _csv_lines(
            [
                *(getattr(row, column) for column in _COLUMNS),
                *(value for rank in row.top[1:] for value in (rank.predicted, rank.name, rank.probability)),
                *row.logits,
            ]
            for row in predictions
        )


def _csv_lines(rows: Any) -> bytes:
    lines = _Lines()
    # What a line ends with is what gets quoted in a value, and either half of it would end a line for a reader.
    csv.writer(lines, lineterminator="\r\n").writerows(rows)
    return "".join(lines).encode("utf-8", "surrogateescape")


class _Lines(list[str]):
    """A file of which each line is written at once, as csv does, with a line feed at its end."""

    def write(self, line: str) -> None:
        self.append(line.removesuffix("\r\n") + "\n")


class _JsonLines:
    """One object a line."""

    def header(self) -> bytes:
        return b""

    def rows(self, predictions: Sequence[Prediction]) -> bytes:
        return "".join(json.dumps(row.to_json()) + "\n" for row in predictions).encode()


class _Parquet:
    """Arrow record batches one after the other, then one Parquet file with row groups of equal length."""

    def __init__(self, row_format: RowFormat, scores: NDArray[Any]) -> None:
        pa = self._pa = require("pyarrow", "parquet")
        ranked = [("predicted", pa.int64()), ("name", pa.string()), ("probability", pa.float64())]
        columns = [("sample", pa.string()), *ranked, ("label", pa.int64()), ("label_name", pa.string())]
        if row_format.top_k > 1:
            columns.append(("top", pa.list_(pa.struct(ranked))))
        if row_format.logits:
            number = pa.float64() if scores.dtype == np.float64 else pa.float32()
            columns.append(("logits", pa.list_(number, scores.shape[1])))
        self._schema = pa.schema(columns)

    def header(self) -> bytes:
        return bytes(self._schema.serialize())

    def rows(self, predictions: Sequence[Prediction]) -> bytes:
        rows = [_unicode(row.to_json() | {"logits": row.logits}) for row in predictions]
        return bytes(self._pa.RecordBatch.from_pylist(rows, schema=self._schema).serialize())


def _unicode(value: Any) -> Any:
    """The names of files and folders in a row may be no Unicode, and a string of Arrow is nothing else."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {key: _unicode(held) for key, held in value.items()}
    return [_unicode(held) for held in value] if isinstance(value, list) else value


def finished_file(suffix: str, partial: Path) -> Path:
    """What is to appear under the output's name, from the whole partial file; beside that, if it is another one."""
    if suffix != ".parquet":
        return partial
    pa, parquet = require("pyarrow", "parquet"), require("pyarrow.parquet", "parquet")
    finished = partial.with_name("finished")  # nothing that looks like data, should it lie among data
    with (
        pa.OSFile(str(partial)) as stream,
        pa.ipc.open_stream(stream) as reader,
        parquet.ParquetWriter(finished, reader.schema, compression="zstd") as writer,
    ):
        for table in _row_groups(pa, reader):
            writer.write_table(table, row_group_size=_ROW_GROUP)
    return finished


def _row_groups(pa: Any, reader: Any) -> Iterator[Any]:
    """The rows in pieces of one length, however many each record batch holds."""
    waiting: list[Any] = []
    count = 0
    for batch in reader:
        rest = batch
        while count + len(rest) >= _ROW_GROUP:
            taken = _ROW_GROUP - count
            yield pa.Table.from_batches([*waiting, rest.slice(0, taken)]).combine_chunks()
            waiting, count, rest = [], 0, rest.slice(taken)
        if len(rest):
            waiting.append(rest)
            count += len(rest)
    if waiting:
        yield pa.Table.from_batches(waiting).combine_chunks()
