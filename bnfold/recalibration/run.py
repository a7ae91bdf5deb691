"""Recalibrate a training run into a run of its own: the same weights, other statistics."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from bnfold.errors import CheckpointError, DataError, OutputError, SetupError
from bnfold.exporting import ExportOptions
from bnfold.exporting.source import load_source
from bnfold.files import cannot_be_written, output_folder
from bnfold.progress import Progress
from bnfold.recalibration.network import set_population_statistics
from bnfold.recalibration.options import RecalibrateOptions
from bnfold.recalibration.result import Accuracy, RecalibrateResult, recalibration_record
from bnfold.training.checkpoint import save_weights
from bnfold.training.data import load_data, resolved_spec
from bnfold.training.dataset import DataSet, Normalization
from bnfold.training.evaluation import evaluate
from bnfold.training.run import WEIGHTS_FILE, Run, read_run, write_run


def recalibrate_run(source: Path, output: Path, options: RecalibrateOptions, progress: Progress) -> RecalibrateResult:
    """See :func:`bnfold.recalibration.recalibrate`."""
    folder = source if source.is_dir() else source.parent
    if not source.exists():
        raise CheckpointError(f"{source} does not exist; give a run's folder, a file of weights in it, or an ONNX file")
    run = read_run(folder)
    with _new_folder(output) as staged, _threads(options.threads):
        network = load_source(source, ExportOptions()).module
        data = _training_data(run, folder, options)
        device = _device(options.device)
        network.to(device)

        def batches() -> Iterator[Tensor]:
            for start in range(0, len(data.train), options.batch):
                raw = data.train.images[start : start + options.batch]
                yield torch.from_numpy(data.normalization.apply(raw)).to(device)

        comparable = data.classes == run.classes
        before = evaluate(network, data, data.test, device) if comparable else None
        try:
            sweep = set_population_statistics(network, batches, progress)
        except CheckpointError as error:
            raise CheckpointError(f"{source}: {error}") from error
        accuracy = None
        record: dict[str, object] = {
            "recalibrated": recalibration_record(data.spec, len(data.train), len(sweep.drifts))
        }
        if before is not None:
            after = evaluate(network, data, data.test, device)
            accuracy = Accuracy(len(data.test), before[1], after[1], before[0], after[0], held_out=True)
            record |= {"test_accuracy": accuracy.after, "test_loss": accuracy.loss_after}
        save_weights(staged / WEIGHTS_FILE, network, {"model": run.model, "model_args": dict(run.model_args)})
        write_run(staged, replace(run, result={**(run.result or {}), **record}))
    return RecalibrateResult(
        path=output,
        data=data.spec,
        samples=len(data.train),
        skipped=0,
        passes=len(sweep.drifts),
        drifts=sweep.drifts,
        left=sweep.left,
        accuracy=accuracy,
    )


def _training_data(run: Run, folder: Path, options: RecalibrateOptions) -> DataSet:
    """The data, with the normalization that the network was trained with."""
    spec = run.data if options.data is None else options.data
    size = run.options.get("image_size") if spec.startswith("imagefolder:") else None
    data = load_data(spec, image_size=size)
    if resolved_spec(spec) == run.data and data.fingerprint() != run.data_fingerprint:
        raise DataError(
            f"the data in {run.data} has changed since the run in {folder} was trained; "
            "copy it elsewhere and name that place with --data, if the change is meant"
        )
    if data.input_shape != run.input_shape:
        raise DataError(
            f"{spec} holds images of shape {data.input_shape}, and the network was trained on {run.input_shape}"
        )
    return replace(
        data, normalization=Normalization(data.normalization.scale, run.normalization.mean, run.normalization.std)
    )


def _device(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise SetupError("torch sees no CUDA device here; use --device cpu, or run `bnfold doctor`")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


@contextmanager
def _threads(wanted: int) -> Iterator[None]:
    """As many CPU threads as were asked for; the caller's number comes back afterwards."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(wanted or before)
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _new_folder(target: Path) -> Iterator[Path]:
    """A hidden folder beside ``target`` that takes its place once the block is done, and is gone if it failed."""
    if os.path.lexists(target) and (not target.is_dir() or target.is_symlink() or any(target.iterdir())):
        raise OutputError(f"{target} exists already; give the path of a new folder, which will be a run of its own")
    try:
        with (
            output_folder(target.parent) as place,
            tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=place) as hidden,
        ):
            staged = Path(hidden) / target.name
            staged.mkdir()
            yield staged
            staged.replace(target)  # takes the place of an empty folder, and of nothing else
    except OSError as error:
        raise cannot_be_written(target, error) from error
    except OutputError as error:  # who writes a file knows of the hidden folder only
        if isinstance(error.__cause__, OSError):
            raise cannot_be_written(target, error.__cause__) from error
        raise
