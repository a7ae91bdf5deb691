"""One model over one set of samples, cut into batches that are the same wherever and in whatever order they run.

The unit of work is a batch of sample numbers, ``[k·batch, (k+1)·batch)``. Kernels of other sizes may round otherwise,
so that a sample's scores depend on the batch that it is in; with the cut fixed, a job that was killed and resumed, or
that ran on a cluster, has the scores of one that was not, bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from bnfold.errors import DataError, ModelError, OptionError
from bnfold.files import StrPath
from bnfold.prediction.images import Failure, decode_all
from bnfold.prediction.options import PredictOptions
from bnfold.prediction.preprocessing import read_class_names, write_sidecar
from bnfold.prediction.reader import ModelFacts, Reader, check_is_classifier, label_numbers, renumbered
from bnfold.prediction.rows import RowFormat, Scored
from bnfold.prediction.samples import DataOptions, RawBatch, Samples, Source, open_source
from bnfold.session import SessionOptions, create_session, run_options
from bnfold.training.dataset import Labels

#: Packages that decide about bits.
_PACKAGES = ("bnfold", "onnxruntime", "onnxruntime-gpu", "pillow")


@dataclass(frozen=True, eq=False)
class Decoded:
    """Some samples in a row, as the model takes them.

    Attributes:
        names: of the samples.
        labels: (n,) as the model counts, −1 for a sample without one.
        values: (n, …).
        failures: samples that should be here and are not.
    """

    names: tuple[str, ...]
    labels: Labels | None
    values: NDArray[Any]
    failures: tuple[Failure, ...]


@dataclass(frozen=True, eq=False)
class Job:
    """A model, open, and samples to run it over.

    Attributes:
        source: the samples.
        session: the model's session.
        run_options: of all its runs.
        reader: what the model says of its input.
        facts: what its file says.
        row_format: what a row tells.
        numbers: the model's number for each class of the data; None where they are the data's own.
        batch: samples of a batch.
        options: how it was asked for.
    """

    source: Source
    session: Any
    run_options: Any
    reader: Reader
    facts: ModelFacts
    row_format: RowFormat
    numbers: NDArray[np.int64] | None
    batch: int
    options: PredictOptions

    @staticmethod
    def open(model: StrPath, data: str, options: PredictOptions, provider: str) -> Job:
        """Open the model and the data; no sample is read yet.

        Args:
            model: an ONNX file.
            data: see :func:`bnfold.prediction.samples.open_source`.
            options: see :class:`bnfold.prediction.options.PredictOptions`.
            provider: where the session runs.

        Raises:
            ModelError: the model does not load, or is no classifier.
            DataError: the data, the sidecar or the file of labels is missing, damaged or does not fit.
            ProviderError: the provider does not run here.
            OptionError: a setting cannot be used.
        """
        if not Path(model).is_file():
            raise ModelError(f"{model} does not exist or is not a file")
        session = create_session(str(model), SessionOptions(provider=provider, threads=options.session_threads))
        reader = Reader.of(session, str(model), options.preprocess)
        facts = ModelFacts.of(model)
        names = _class_names(options.labels) or reader.classes
        with ExitStack() as opened:
            source = open_source(data, DataOptions(options.split, options.column, options.label_column))
            opened.callback(source.close)
            check_is_classifier(session, str(model))
            row_format = RowFormat(names or source.classes, options.top_k, options.logits, facts.probabilities)
            declared = session.get_outputs()[0].shape
            if len(declared) > 1 and isinstance(declared[1], int):
                row_format.check(declared[1])
            numbers = label_numbers(source.classes, row_format.classes) if source.labelled else None
            opened.pop_all()
        batch = reader.batch_size(options.batch)
        return Job(source, session, run_options(), reader, facts, row_format, numbers, batch, options)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        """Close the files of the samples."""
        self.source.close()

    @property
    def batches(self) -> int:
        """How many batches there are."""
        return -(-self.source.count // self.batch)

    def done(self, batches: int) -> int:
        """How many samples are in the first ``batches`` batches."""
        return min(batches * self.batch, self.source.count)

    def identity(self) -> Mapping[str, Any]:
        """All that decides about the rows, as plain data; the same rows are promised where this is the same."""
        preprocessing = self.reader.preprocessing
        return {
            "model": {"sha256": self.facts.sha256},
            "data": {"listing": self.source.listing(), "samples": self.source.count},
            "options": {
                "batch": self.batch,
                "threads": self.options.session_threads,
                "provider": self.options.provider,
                "top_k": self.options.top_k,
                "logits": self.options.logits,
                "on_error": self.options.on_error,
                "split": self.options.split,
                "column": self.options.column,
                "label_column": self.options.label_column,
                "labels": list(self.row_format.classes),
                "preprocessing": None if preprocessing is None else preprocessing.to_json(),
            },
            "versions": {name: version for name in _PACKAGES if (version := _version(name)) is not None},
        }

    def save_preprocessing(self) -> Path:
        """Write what the job uses as the sidecar of its model; names of classes that only the data knows are left out.

        Raises:
            OptionError: nothing is known that could be written.
            OutputError: the file cannot be written.
        """
        if self.reader.preprocessing is None:
            raise OptionError("--save-preprocessing has nothing to save; say it with --preprocess")
        labels = _class_names(self.options.labels) or self.reader.classes
        return write_sidecar(self.reader.model, replace(self.reader.preprocessing, labels=labels))

    def read(self, number: int) -> RawBatch:
        """The samples of a batch, as they are stored."""
        return self.source.read(number * self.batch, self.done(number + 1))

    def decode(self, raw: RawBatch) -> Decoded:
        """The samples of a batch, as the model takes them; needs no session, and may run in any thread.

        Raises:
            DataError: a sample cannot be read and ``on_error`` is ``fail``, or the samples do not fit the model.
        """
        names, labels, values = raw.names, raw.labels, raw.values
        failures: list[Failure] = []
        if isinstance(values, tuple):
            form = self.reader.image_form()
            if form is None:
                raise DataError(
                    f"{self.source.place} holds images, and {self.reader.model} does not say how they become its "
                    "input; say it with --preprocess (see docs/predict.md)"
                )
            values, kept, failures = decode_all(values, names, self.source.place, form)
            if failures and self.options.on_error == "fail":
                raise DataError(f"{failures[0].error}, or leave such samples out (--on-error skip)")
            if failures:
                names = tuple(names[position] for position in kept)
                labels = None if labels is None else labels[kept]
        if labels is not None and self.numbers is not None:
            labels = renumbered(labels, self.numbers)
        if not names:
            return Decoded((), labels, np.empty((0,), self.reader.dtype), tuple(failures))
        samples = Samples(names, values, labels, self.source.scale, self.source.classes)
        return Decoded(names, labels, self.reader.prepare(samples), tuple(failures))

    def run(self, decoded: Decoded) -> Scored:
        """The scores of a batch.

        Raises:
            DataError: a label is none of the model's classes.
            ModelError: the model fails, or yields scores that are not finite and ``on_error`` is ``fail``.
        """
        if not decoded.names:
            return Scored((), decoded.labels, np.empty((0, 0), np.float32), decoded.failures)
        scores = self.reader.scores(self.session, decoded.values, self.run_options)
        self._check_labels(decoded, scores.shape[1])
        undecided = ~np.isfinite(scores.max(axis=1))  # a NaN is the largest; −∞ alone is a class that cannot be
        if not undecided.any():
            return Scored(decoded.names, decoded.labels, scores, decoded.failures)
        said = "yields logits that are not finite for sample"
        failures = [
            Failure(name, f"{self.reader.model} {said} {name}")
            for name, wrong in zip(decoded.names, undecided, strict=True)
            if wrong
        ]
        if self.options.on_error == "fail":
            raise ModelError(f"{failures[0].error}; look at that sample, or leave such out (--on-error skip)")
        sound = np.flatnonzero(~undecided)
        return Scored(
            tuple(decoded.names[row] for row in sound),
            None if decoded.labels is None else decoded.labels[sound],
            scores[sound],
            (*decoded.failures, *failures),
        )

    def stop(self) -> None:
        """Make the run that is going on fail, whichever thread it is in; there can be none after it."""
        self.run_options.terminate = True

    def _check_labels(self, decoded: Decoded, classes: int) -> None:
        if decoded.labels is not None and decoded.labels.max() >= classes:
            worst = int(decoded.labels.argmax())
            raise DataError(
                f"sample {decoded.names[worst]} of {self.source.place} has label {decoded.labels[worst]}, and "
                f"{self.reader.model} has the classes 0 to {classes - 1}; give labels as the model counts"
            )


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _class_names(file: StrPath | None) -> tuple[str, ...]:
    if file is None:
        return ()
    names = tuple(name for name in read_class_names(file) if name)
    if not names:
        raise DataError(f"{file} holds no class names; give one a line")
    return names
