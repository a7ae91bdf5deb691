"""Train a batch-normalized network on a data set.

Importing this package imports no torch; :func:`train` does when it is called.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from bnfold.extras import require
from bnfold.progress import Progress, silent
from bnfold.training.dataset import DataSet, Normalization, Split, top1_accuracy
from bnfold.training.options import TrainOptions, load_recipe
from bnfold.training.result import TrainResult
from bnfold.training.run import Run, read_run

__all__ = [
    "DataSet",
    "Normalization",
    "Run",
    "Split",
    "TrainOptions",
    "TrainResult",
    "load_recipe",
    "read_run",
    "resume_options",
    "top1_accuracy",
    "train",
]


def nobody(_row: Mapping[str, Any]) -> None:
    """Tell nobody of an epoch."""


def train(
    options: TrainOptions, progress: Progress = silent, on_epoch: Callable[[Mapping[str, Any]], None] = nobody
) -> TrainResult:
    """Train a network and leave the run in ``options.output``.

    The weights depend on the options, the data and the machine's arithmetic alone: a run that was
    interrupted and resumed ends with the same bits as one that was not. SIGINT and SIGTERM let the step in
    hand finish, write a checkpoint, and then raise KeyboardInterrupt. Under ``torchrun``, each worker calls
    this function.

    Args:
        options: see :class:`TrainOptions`.
        progress: called as the run goes on.
        on_epoch: called after each epoch with its figures, a row of :attr:`TrainResult.history`.

    Raises:
        InputError: an option, the network or the data does not fit, or the loss is no longer finite.
        DataError: the data set is missing or not laid out as said.
        CheckpointError: the run to resume is missing, damaged, or was begun otherwise.
        OutputError: the folder holds a run already, another process trains there, or it cannot be written.
        SetupError: torch is not installed, or the device cannot be used or has not enough memory.
        WorkerError: another worker of ``torchrun`` is gone.
        KeyboardInterrupt: after a signal, once the checkpoint is written.
    """
    require("torch", "train")
    require("safetensors", "train")
    from bnfold.training.trainer import run_training

    return run_training(options, progress, on_epoch)


def resume_options(output: str) -> TrainOptions:
    """The options that go on with the run in ``output``, as it was begun.

    Raises:
        CheckpointError: there is no run, or its record is damaged.
    """
    from bnfold.errors import CheckpointError, InputError

    run = read_run(output)
    try:
        return TrainOptions(output=output, resume=True, **run.options)
    except (TypeError, InputError) as error:
        raise CheckpointError(f"the options in {output}/run.json are damaged: {error}") from error
