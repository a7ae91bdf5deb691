"""Run a classifier over data in batches, on the provider that was asked for."""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnfold.deployment.samples import Samples, load_samples
from bnfold.errors import DataError, ModelError, OptionError, OutputError
from bnfold.files import StrPath, check_output_file, write_text
from bnfold.progress import Progress, silent
from bnfold.session import SessionOptions, create_session, run_session
from bnfold.training.dataset import Normalization, top1_accuracy

#: What predictions can be written as.
OUTPUT_SUFFIXES = (".csv", ".jsonl")

_ORT_DTYPES: Mapping[str, type[np.floating[Any]]] = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
}


@dataclass(frozen=True)
class PredictOptions:
    """How to predict.

    Attributes:
        provider: where to run, see :class:`bnfold.session.SessionOptions`.
        batch: samples a run; a model with a fixed batch size uses that.
        split: part of a data set, ``test`` or ``train``.
        labels: file with the name of one class a line; the names in the model's metadata otherwise.
        threads: intra-op threads; 0 leaves the choice to ONNX Runtime.

    Raises:
        InputError: a value is out of range.
    """

    provider: str = "cpu"
    batch: int = 64
    split: str = "test"
    labels: StrPath | None = None
    threads: int = 0

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise OptionError(f"batch is {self.batch}; it must be at least 1")
        if self.split not in ("test", "train"):
            raise OptionError(f"split is {self.split!r}; it is test or train")


@dataclass(frozen=True)
class Prediction:
    """One sample's result.

    Attributes:
        sample: name of the sample.
        predicted: index of the largest logit.
        name: name of that class.
        probability: its softmax.
        label: the true class, where known.
        label_name: its name.
    """

    sample: str
    predicted: int
    name: str
    probability: float
    label: int | None
    label_name: str | None

    def to_json(self) -> dict[str, Any]:
        """The prediction as plain data."""
        return {
            "sample": self.sample,
            "predicted": self.predicted,
            "name": self.name,
            "probability": self.probability,
            "label": self.label,
            "label_name": self.label_name,
        }


@dataclass(frozen=True, eq=False)
class PredictResult:
    """The predictions of one model over one set of samples.

    Attributes:
        predictions: one for each sample, in order.
        accuracy: share of samples whose predicted class is their label, where labels are known.
        seconds: wall time of the runs, without loading.
        provider: ONNX Runtime's name of the provider that ran.
        path: the file that was written, if any.
    """

    predictions: tuple[Prediction, ...]
    accuracy: float | None
    seconds: float
    provider: str
    path: Path | None

    @property
    def throughput(self) -> float:
        """Samples a second."""
        return len(self.predictions) / max(self.seconds, 1e-9)

    def to_json(self) -> dict[str, Any]:
        """The result as plain data; the predictions themselves unless they were written to a file."""
        return {
            "samples": len(self.predictions),
            "accuracy": self.accuracy,
            "seconds": self.seconds,
            "throughput": self.throughput,
            "provider": self.provider,
            "output": str(self.path) if self.path else None,
            "predictions": None if self.path else [p.to_json() for p in self.predictions],
        }


def predict(
    model: StrPath,
    data: str,
    output: StrPath | None = None,
    options: PredictOptions | None = None,
    progress: Progress = silent,
) -> PredictResult:
    """Classify every sample of ``data``.

    The model's metadata says how raw pixels become its input and what its classes are called, if bnfold exported
    it. A model without that takes numbers as they are; 8-bit pixels are refused, because how they were normalized
    in training cannot be guessed.

    Args:
        model: an ONNX file with one image-like input and logits ``(N, classes)`` as its first output.
        data: see :func:`bnfold.deployment.samples.load_samples`.
        output: a ``.csv`` or ``.jsonl`` file to write the predictions to.
        options: see :class:`PredictOptions`.
        progress: called after each batch.

    Raises:
        ModelError: the model does not load, is no classifier, or fails while it runs.
        DataError: the data is missing, damaged or does not fit the model.
        ProviderError: the provider does not run here.
        OutputError: the output cannot be written, or has another suffix.
    """
    options = options or PredictOptions()
    target = None
    if output is not None:
        target = check_output_file(output)
        if target.suffix not in OUTPUT_SUFFIXES:
            raise OutputError(f"{target}: predictions are written as {' or '.join(OUTPUT_SUFFIXES)}")
    if not Path(model).is_file():
        raise ModelError(f"{model} does not exist or is not a file")
    session = create_session(str(model), SessionOptions(provider=options.provider, threads=options.threads))
    reader = Reader.of(session, str(model))
    samples = load_samples(data, options.split, reader.image_size)
    classes = _class_names(options.labels) or reader.classes or samples.classes
    samples = with_labels_of(samples, classes)
    logits, seconds = run_classifier(session, reader, samples, options, progress)
    result = PredictResult(
        predictions=tuple(_predictions(samples, logits, classes)),
        accuracy=None if samples.labels is None else top1_accuracy(logits, samples.labels),
        seconds=seconds,
        provider=session.get_providers()[0],
        path=target,
    )
    if target is not None:
        write_text(target, _as_csv(result) if target.suffix == ".csv" else _as_jsonl(result))
    return result


@dataclass(frozen=True, eq=False)
class Reader:
    """What a model's file says of its input."""

    model: str
    name: str
    dtype: type[np.floating[Any]]
    shape: tuple[int | str | None, ...]
    normalization: Normalization | None
    classes: tuple[str, ...]

    @staticmethod
    def of(session: Any, model: str) -> Reader:
        """What a session's model says; ``model`` is what to call it in an error."""
        inputs = session.get_inputs()
        if len(inputs) != 1 or inputs[0].type not in _ORT_DTYPES:
            names = ", ".join(f"{i.name} ({i.type})" for i in inputs)
            raise ModelError(f"{model} has the inputs {names}; predict needs one input of floating point")
        metadata: Mapping[str, str] = session.get_modelmeta().custom_metadata_map
        try:
            classes = tuple(str(name) for name in json.loads(metadata.get("bnfold.classes", "[]")))
            stored = metadata.get("bnfold.normalization")
            normalization = None if stored is None else Normalization.from_json(json.loads(stored))
        except (ValueError, KeyError, TypeError) as error:
            raise ModelError(f"{model}: its bnfold metadata is damaged; export the model again") from error
        return Reader(
            model, inputs[0].name, _ORT_DTYPES[inputs[0].type], tuple(inputs[0].shape), normalization, classes
        )

    @property
    def image_size(self) -> int | None:
        """The side of the images that the model takes, where it takes square images of one size."""
        sides = self.shape[-2:]
        if len(self.shape) == 4 and isinstance(sides[0], int) and sides[0] == sides[1]:
            return sides[0]
        return None

    def batch_size(self, wanted: int) -> int:
        """The model's own batch size where that is fixed, ``wanted`` where it is open."""
        return self.shape[0] if self.shape and isinstance(self.shape[0], int) else wanted

    def _channels_first(self, values: NDArray[Any]) -> NDArray[Any]:
        """Images (N, H, W) and (N, H, W, C) as the (N, C, H, W) that the model takes."""
        if len(self.shape) != 4:
            return values
        if values.ndim == 3:
            return values[:, None]
        channels = self.shape[1]
        if values.ndim == 4 and isinstance(channels, int) and values.shape[3] == channels != values.shape[1]:
            return np.moveaxis(values, 3, 1)
        return values

    def prepare(self, samples: Samples) -> NDArray[Any]:
        """The samples as the model takes them."""
        values = self._channels_first(samples.values)
        if self.normalization is not None and values.ndim == 4:
            if len(self.normalization.mean) != values.shape[1]:
                raise DataError(f"{self.model} was trained on {len(self.normalization.mean)} channels, "
                                f"the data has {values.shape[1]}")  # fmt: skip
            own = Normalization(samples.scale, self.normalization.mean, self.normalization.std)
            values = own.apply(values)
        elif values.dtype.kind in "ui":
            raise DataError(
                f"{self.model} does not say how pixels become its input; give numbers as it takes them in an .npz"
            )
        wanted, got = self.shape[1:], values.shape[1:]
        if len(wanted) != len(got) or any(isinstance(w, int) and w != g for w, g in zip(wanted, got, strict=True)):
            raise DataError(f"{self.model} takes samples of shape {wanted}, the data holds {got}")
        return values.astype(self.dtype, copy=False)


def run_classifier(
    session: Any, reader: Reader, samples: Samples, options: PredictOptions, progress: Progress
) -> tuple[NDArray[Any], float]:
    """The logits (N, classes) of all samples, and the seconds of the runs."""
    values = reader.prepare(samples)
    size = reader.batch_size(options.batch)
    parts: list[NDArray[Any]] = []
    started = time.perf_counter()
    for start in range(0, len(values), size):
        batch = values[start : start + size]
        short = size - len(batch) if isinstance(reader.shape[0], int) else 0
        if short:  # a model of fixed batch size: fill up, and drop what was filled
            batch = np.concatenate([batch, np.repeat(batch[-1:], short, axis=0)])
        logits = next(iter(run_session(session, {reader.name: batch}).values()))
        if logits.ndim != 2 or len(logits) != len(batch):
            raise ModelError(
                f"{reader.model} yields {logits.shape} for {len(batch)} samples; predict needs (N, classes)"
            )
        parts.append(logits[: len(logits) - short])
        progress("predicting", min(start + size, len(values)), len(values))
    logits = np.concatenate(parts)
    seconds = time.perf_counter() - started
    undecided = np.flatnonzero(np.isnan(logits).any(axis=1) | np.isposinf(logits).any(axis=1))
    if len(undecided):
        raise ModelError(f"{reader.model} yields logits that are not finite for sample {samples.names[undecided[0]]}")
    return logits, seconds


def with_labels_of(samples: Samples, classes: Sequence[str]) -> Samples:
    """The samples with their labels counted as the model counts: matched by name where both sides have names.

    Folders are sorted by name, and a model may know its classes in another order. Names of which none agree are
    two vocabularies for the same numbers.

    Raises:
        DataError: some names agree and others do not.
    """
    if samples.labels is None or not samples.classes or tuple(classes) == samples.classes:
        return samples
    known = set(classes) & set(samples.classes)
    if not known:
        return samples
    strange = [name for name in samples.classes if name not in known]
    if strange:
        raise DataError(
            f"the data has a class {strange[0]!r} that the model does not know; it knows {', '.join(classes)}"
        )
    number = np.array([list(classes).index(name) for name in samples.classes], np.int64)
    return replace(samples, labels=number[samples.labels], classes=tuple(classes))


def _class_names(file: StrPath | None) -> tuple[str, ...]:
    if file is None:
        return ()
    try:
        return tuple(line for line in Path(file).read_text(encoding="utf-8").splitlines() if line)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read as a list of class names, one a line") from error


def _predictions(samples: Samples, logits: NDArray[Any], classes: Sequence[str]) -> Iterator[Prediction]:
    if classes and len(classes) != logits.shape[1]:
        raise DataError(f"there are {len(classes)} class names for {logits.shape[1]} logits")

    def named(number: int) -> str:
        return classes[number] if number < len(classes) else str(number)

    wide = logits.astype(np.float64)
    weights = np.exp(wide - wide.max(axis=1, keepdims=True))
    probabilities = weights / weights.sum(axis=1, keepdims=True)
    best = wide.argmax(axis=1)
    for row, name in enumerate(samples.names):
        predicted = int(best[row])
        label = None if samples.labels is None else int(samples.labels[row])
        yield Prediction(
            sample=name,
            predicted=predicted,
            name=named(predicted),
            probability=float(probabilities[row, predicted]),
            label=label,
            label_name=None if label is None else named(label),
        )


def _as_csv(result: PredictResult) -> str:
    stream = io.StringIO()
    writer = csv.DictWriter(
        stream, ["sample", "predicted", "name", "probability", "label", "label_name"], lineterminator="\n"
    )
    writer.writeheader()
    writer.writerows(prediction.to_json() for prediction in result.predictions)
    return stream.getvalue()


def _as_jsonl(result: PredictResult) -> str:
    return "".join(json.dumps(prediction.to_json()) + "\n" for prediction in result.predictions)
