"""Run a classifier over data in batches, here or on a Ray cluster, and write what it says as it says it."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bnfold.errors import DataError, OutputError
from bnfold.extras import require
from bnfold.files import StrPath, check_output_file
from bnfold.prediction.images import Failure
from bnfold.prediction.job import Job
from bnfold.prediction.options import PredictOptions
from bnfold.prediction.partial_output import PartialOutput, Tally, skipped_file
from bnfold.prediction.pipeline import pipelined
from bnfold.prediction.rows import Encoder, Prediction, Scored, check_output_format, encoder_for
from bnfold.progress import Progress, silent
from bnfold.session import provider_name


@dataclass(frozen=True, eq=False)
class PredictResult:
    """The predictions of one model over one set of samples.

    Attributes:
        predictions: one for each sample, in order; empty where they were written to a file.
        failures: the samples without one, where ``on_error`` is ``skip``; empty where they were written to a file.
        tally: how many rows there are, and how many of them are right.
        resumed: how many of the rows were there already.
        seconds: wall time of reading, running and writing, without opening.
        provider: ONNX Runtime's name of the provider that ran.
        path: the file that was written, if any.
        skipped_path: the file that lists the samples without a prediction, if there are any and a file was written.
    """

    predictions: tuple[Prediction, ...]
    failures: tuple[Failure, ...]
    tally: Tally
    resumed: int
    seconds: float
    provider: str
    path: Path | None
    skipped_path: Path | None

    @property
    def accuracy(self) -> float | None:
        """Share of samples whose best class is their label, where labels are known."""
        return self.tally.correct / self.tally.labelled if self.tally.labelled else None

    @property
    def top_accuracy(self) -> float | None:
        """Share of samples whose label is among the best classes that were asked for."""
        return self.tally.correct_top / self.tally.labelled if self.tally.labelled else None

    @property
    def throughput(self) -> float:
        """Samples a second, of this run alone."""
        return (self.tally.rows - self.resumed) / max(self.seconds, 1e-9)

    def to_json(self) -> dict[str, Any]:
        """The result as plain data; the predictions themselves unless they were written to a file."""
        return {
            "samples": self.tally.rows,
            "skipped": self.tally.skipped,
            "resumed": self.resumed,
            "labelled": self.tally.labelled,
            "accuracy": self.accuracy,
            "top_accuracy": self.top_accuracy,
            "seconds": self.seconds,
            "throughput": self.throughput,
            "provider": self.provider,
            "output": str(self.path) if self.path else None,
            "skipped_output": str(self.skipped_path) if self.skipped_path else None,
            "predictions": None if self.path else [row.to_json() for row in self.predictions],
            "failures": None
            if self.path
            else [{"sample": failure.sample, "error": failure.error} for failure in self.failures],
        }


def predict(
    model: StrPath,
    data: str,
    output: StrPath | None = None,
    options: PredictOptions | None = None,
    progress: Progress = silent,
) -> PredictResult:
    """Classify every sample of ``data``.

    How raw pixels become the model's input and what its classes are called is taken from ``options``, else from the
    file ``MODEL.preprocessing.json``, else from the metadata that bnfold's export left in the model. A model without
    any of these takes numbers as they are; 8-bit pixels are refused, because how they were normalized in training
    cannot be guessed.

    Where there is an output, memory does not grow with the data: rows are appended to ``OUTPUT.partial`` while they
    are made, and the output appears under its name when it is whole. An interrupted job goes on with
    ``options.resume``, and the output is byte for byte the one of a job that was not interrupted.

    Args:
        model: an ONNX file with one image-like input and scores ``(N, classes)`` as its first output.
        data: see :func:`bnfold.prediction.samples.open_source`.
        output: a ``.csv``, ``.jsonl`` or ``.parquet`` file to write the predictions to.
        options: see :class:`PredictOptions`.
        progress: called after each batch with the number of samples done.

    Raises:
        ModelError: the model does not load, is no classifier, or fails while it runs.
        DataError: the data is missing, damaged or does not fit the model, or no sample of it can be read.
        InputError: the partial output to resume is of another job.
        ProviderError: the provider does not run here.
        OptionError: a setting cannot be used.
        OutputError: the output cannot be written, has another suffix, or a partial one is in the way.
        MissingExtraError: pyarrow, Pillow or Ray is needed and not installed.
        WorkerError: the Ray cluster failed.
    """
    options = options or PredictOptions()
    target = None
    if output is not None:
        target = check_output_file(output)
        check_output_format(target)
        _check_is_no_input(target, Path(model), Path(data).expanduser())
    if options.engine == "ray":
        require("ray", "ray")
    # With Ray the session here only tells of the model, on a machine that may lack what the actors have.
    with Job.open(model, data, options, "cpu" if options.engine == "ray" else options.provider) as job:
        if options.save_preprocessing:
            job.save_preprocessing()
        sink = _InMemory() if target is None else PartialOutput(
            target, job.identity(), resume=options.resume, overwrite=options.overwrite
        )  # fmt: skip
        with sink:
            before, seconds = sink.tally, 0.0
            if not sink.complete:
                started = time.perf_counter()
                _write_all(model, data, job, sink, progress)
                seconds = time.perf_counter() - started
            tally = sink.tally
            path = sink.finish()
    return PredictResult(
        predictions=tuple(sink.predictions) if isinstance(sink, _InMemory) else (),
        failures=tuple(sink.failures) if isinstance(sink, _InMemory) else (),
        tally=tally,
        resumed=before.rows,
        seconds=seconds,
        provider=provider_name(options.provider),
        path=path,
        skipped_path=skipped_file(path) if path is not None and tally.skipped else None,
    )


def _check_is_no_input(output: Path, model: Path, data: Path) -> None:
    """Refuse to replace what is read, and a table among the data: a folder with one is one table to the next run."""
    for file, what in ((model, "the model"), (data, "the data")):
        if output.exists() and file.exists() and output.samefile(file):
            raise OutputError(f"{output} is {what} itself; write elsewhere")
    if output.suffix == ".parquet" and data.is_dir() and output.resolve().is_relative_to(data.resolve()):
        raise OutputError(f"{output} lies in the folder of the data, and would be taken for it; write elsewhere")


def _write_all(model: StrPath, data: str, job: Job, sink: PartialOutput | _InMemory, progress: Progress) -> None:
    """Score all batches that the sink does not have yet, and give it their rows in order."""
    first = sink.tally.batches
    progress("predicting", job.done(first), job.source.count)
    suffix = ".csv" if sink.output is None else sink.output.suffix
    encoder: Encoder | None = None
    first_failure = ""
    with closing(_scored(model, data, job, first)) as batches:
        for number, scored in enumerate(batches, first + 1):
            if scored.failures:
                first_failure = first_failure or scored.failures[0].error
            if encoder is None and scored.names:
                job.row_format.check(scored.scores.shape[1])
                encoder = encoder_for(suffix, job.row_format, scored.scores)
            rows = list(job.row_format.predictions(scored)) if scored.names else []
            sink.write(encoder if rows else None, rows, scored.failures)
            progress("predicting", job.done(number), job.source.count)
    if not sink.tally.rows:
        raise DataError(f"none of the {job.source.count} samples of {data} can be used; the first: {first_failure}")


def _scored(model: StrPath, data: str, job: Job, first: int) -> Generator[Scored, None, None]:
    """The scores of all batches from ``first`` on, in order."""
    if job.options.engine == "ray" and first < job.batches:  # a cluster for nothing takes seconds
        from bnfold.prediction.ray_engine import scored_by_actors

        return scored_by_actors(model, data, job, first)
    return pipelined(map(job.read, range(first, job.batches)), job.decode, job.run, job.options.workers, job.stop)


class _InMemory:
    """Rows that are kept rather than written; the same interface as a partial output."""

    output = None
    complete = False

    def __init__(self) -> None:
        self.tally = Tally()
        self.predictions: list[Prediction] = []
        self.failures: list[Failure] = []

    def write(self, encoder: Encoder | None, predictions: list[Prediction], failures: tuple[Failure, ...]) -> None:
        """Keep the rows of one batch."""
        self.predictions += predictions
        self.failures += failures
        self.tally = self.tally.after(predictions, len(failures))

    def finish(self) -> None:
        """Nothing is left to do."""

    def __enter__(self) -> _InMemory:
        return self

    def __exit__(self, *_error: object) -> None:
        """Nothing is left to do."""
