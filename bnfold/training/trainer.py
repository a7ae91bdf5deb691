"""The training run, from options to weights.

Claim: the default network reaches 97.5 % on the held-out digits with any seed, and about 99 % with most; see
docs/training.md for the runs, the times and the hardware.
"""

from __future__ import annotations

import json
import math
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from bnfold.errors import CheckpointError, InputError, OutputError
from bnfold.files import make_output_folder, write_text
from bnfold.models import build, fitting_arguments
from bnfold.progress import Progress, silent
from bnfold.training.checkpoint import Place, load_checkpoint, save_checkpoint, save_weights
from bnfold.training.data import load_data, resolved_spec
from bnfold.training.dataset import DataSet, Split, top1_accuracy
from bnfold.training.distributed import Team, joined_team
from bnfold.training.interruption import StopRequest, deferred_signals
from bnfold.training.options import TrainOptions
from bnfold.training.result import TrainResult
from bnfold.training.run import (
    CHECKPOINT_FILE,
    METRICS_FILE,
    RUN_FILE,
    WEIGHTS_FILE,
    Run,
    read_run,
    write_run,
)
from bnfold.training.schedule import augmented, initial_seed, learning_rate, network_seed, sample_order

#: Options that may differ when a run is resumed. Another device or thread count rounds otherwise, so only
#: with the same ones are the bits the same too.
_FREE_OPTIONS = frozenset(("device", "threads"))

_EVALUATION_BATCH = 256


@dataclass(frozen=True)
class _Training:
    """What stays the same throughout a run."""

    options: TrainOptions
    data: DataSet
    team: Team
    model: nn.Module
    optimizer: torch.optim.Optimizer
    batch_size: int
    steps: int  # in one epoch
    shift: int
    flip: bool
    started: float


def run_training(options: TrainOptions, progress: Progress) -> TrainResult:
    """See :func:`bnfold.training.train`."""
    started = time.perf_counter()
    folder = Path(options.output)
    previous = _previous_run(folder, options)
    with joined_team(options.device) as team, _torch_settings(options.threads, team.device):
        if not team.leads:
            progress = silent
        data = load_data(options.data, image_size=options.image_size)
        run, model = _build(options, data)
        if previous is not None:
            _check_same_run(folder, previous, run)
        training = _prepare(options, data, team, model, started)
        if team.leads:
            make_output_folder(folder)
        place = Place(0, 0, 0.0, ())
        if previous is not None:
            place = load_checkpoint(folder / CHECKPOINT_FILE, model, training.optimizer)
        elif team.leads:
            _start_folder(folder, run, training, place)
        resumed_at = None if previous is None else place.epoch
        with deferred_signals() as stop:
            place = _train(training, folder, place, stop, progress)
        result = _result(training, folder, place, resumed_at)
        if team.leads:
            header = {"model": run.model, "model_args": dict(run.model_args)}
            save_weights(folder / WEIGHTS_FILE, model, header)
            finished = {
                "epochs": result.epochs,
                "test_accuracy": result.test_accuracy,
                "test_loss": result.test_loss,
            }
            write_run(folder, replace(run, result=finished))
        team.wait()
    return result


# ------------------------------------------------------------------------------------------------ preparation


def _previous_run(folder: Path, options: TrainOptions) -> Run | None:
    """The run to resume, if one is to be resumed; a run that would be lost without asking is an error."""
    if options.resume:
        return read_run(folder)
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} is a file; give the folder of a run")
    if (folder / RUN_FILE).exists() and not options.overwrite:
        raise OutputError(f"{folder} holds a run already; resume it, overwrite it, or choose another folder")
    return None


def _build(options: TrainOptions, data: DataSet) -> tuple[Run, nn.Module]:
    """The record of the run, and its network with its initial weights."""
    classes = len(data.classes)
    arguments = fitting_arguments(options.model, data.input_shape, classes) | dict(options.model_args)
    torch.manual_seed(initial_seed(options.seed))
    model = build(options.model, **arguments)
    _check_fit(options.model, model, data)
    run = Run(
        model=options.model,
        model_args=_plain(arguments),
        data=data.spec,
        data_fingerprint=data.fingerprint(),
        input_shape=data.input_shape,
        classes=data.classes,
        normalization=data.normalization,
        options=_plain(replace(options, data=resolved_spec(options.data)).to_recipe()),
        versions={
            "bnfold": metadata.version("bnfold"),
            "numpy": np.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
        },
    )
    return run, model


def _plain(document: dict[str, Any]) -> dict[str, Any]:
    """``document`` as it comes back from JSON (tuples as lists), or an error if JSON cannot hold it."""
    try:
        plain: dict[str, Any] = json.loads(json.dumps(document, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise InputError(f"model_args can only hold numbers, texts, lists and tables: {error}") from error
    return plain


def _check_fit(name: str, model: nn.Module, data: DataSet) -> None:
    """Run two images through the network before anything is written."""
    images = torch.from_numpy(data.normalization.apply(data.test.images[:2]))
    try:
        with torch.inference_mode():
            logits = _logits(model.eval()(images))
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError) as error:
        message = " ".join(str(error).split())
        raise InputError(f"the network {name} does not take images of shape {data.input_shape}: {message}") from error
    wanted = (len(images), len(data.classes))
    if not isinstance(logits, Tensor) or tuple(logits.shape) != wanted:
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise InputError(f"the network {name} returns {got} for 2 images; logits of shape {wanted} are needed")


def _check_same_run(folder: Path, previous: Run, now: Run) -> None:
    """A run is resumed with the options and the data that it began with, or not at all."""
    for name, value in now.options.items():
        if name not in _FREE_OPTIONS and name in previous.options and previous.options[name] != value:
            raise CheckpointError(
                f"the run in {folder} was begun with {name} {previous.options[name]!r} and not {value!r}; "
                "resume it with its own options, or start another run"
            )
    if previous.data_fingerprint != now.data_fingerprint:
        raise CheckpointError(f"the data in {now.data} has changed since the run in {folder} was begun; start anew")


def _prepare(options: TrainOptions, data: DataSet, team: Team, model: nn.Module, started: float) -> _Training:
    batch_size = min(options.batch_size, len(data.train) // team.size * team.size)
    if batch_size % team.size or batch_size < 2 * team.size:
        raise InputError(
            f"a batch of {batch_size} does not give each of {team.size} worker(s) the same number of images, "
            f"at least 2; choose a batch size that is a multiple of {team.size}, or get more data"
        )
    model.to(team.device)
    shorter_side = min(data.input_shape[1:])
    return _Training(
        options=options,
        data=data,
        team=team,
        model=model,
        optimizer=_optimizer(model, options),
        batch_size=batch_size,
        # The last images of an epoch that do not fill a batch wait for another epoch, which has another
        # order: batch statistics over one or two images would be noise.
        steps=len(data.train) // batch_size,
        shift=shorter_side // 8 if options.shift is None else options.shift,
        flip=data.mirrored if options.flip is None else options.flip,
        started=started,
    )


def _optimizer(model: nn.Module, options: TrainOptions) -> torch.optim.Optimizer:
    """Weight decay acts on matrices and kernels; not on biases, nor on the weights of normalizations."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": options.decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if options.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=options.peak_lr)
    return torch.optim.SGD(groups, lr=options.peak_lr, momentum=options.momentum, nesterov=True)


def _start_folder(folder: Path, run: Run, training: _Training, place: Place) -> None:
    """The first state of a run's folder; what an earlier run left there goes."""
    for name in (WEIGHTS_FILE, METRICS_FILE, CHECKPOINT_FILE):
        (folder / name).unlink(missing_ok=True)
    save_checkpoint(folder / CHECKPOINT_FILE, training.model, training.optimizer, place)
    write_run(folder, run)


@contextmanager
def _torch_settings(threads: int, device: torch.device) -> Iterator[None]:
    """Reproducible arithmetic and the run's own random state; the caller's settings come back afterwards."""
    before = torch.get_num_threads()
    devices = [device] if device.type == "cuda" else []
    with (
        torch.random.fork_rng(devices=devices),
        torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True),
    ):
        if threads:
            torch.set_num_threads(threads)
        try:
            yield
        finally:
            torch.set_num_threads(before)


# ------------------------------------------------------------------------------------------------- the loop


def _train(training: _Training, folder: Path, place: Place, stop: StopRequest, progress: Progress) -> Place:
    """All epochs from ``place`` on, a checkpoint after each."""
    options = training.options
    network = _network(training)
    total = options.epochs * training.steps
    if training.team.leads:
        _write_metrics(folder, place)
    while place.epoch < options.epochs:
        began = time.perf_counter()
        order = sample_order(options.seed, place.epoch, len(training.data.train))
        network.train()
        for step in range(place.step, training.steps):
            rate = _set_learning_rate(training, place.epoch * training.steps + step, total)
            loss = _step(training, network, place, step, order)
            place = replace(place, step=step + 1, loss_sum=place.loss_sum + loss)
            progress("training", place.epoch * training.steps + step + 1, total)
            if training.team.sums(float(stop.made))[0]:
                _save(training, folder, place)
                raise KeyboardInterrupt
        test_loss, test_accuracy = _test_figures(training)
        row = {
            "epoch": place.epoch + 1,
            "lr": rate,
            "train_loss": place.loss_sum / training.steps,
            "test_loss": test_loss,
            "test_accuracy": test_accuracy,
            "seconds": round(time.perf_counter() - began, 3),
        }
        if not math.isfinite(test_loss):
            raise _diverged(training, f"the test loss is {test_loss} after epoch {place.epoch + 1}")
        place = Place(place.epoch + 1, 0, 0.0, (*place.history, row))
        _save(training, folder, place)
    return place


def _step(training: _Training, network: nn.Module, place: Place, step: int, order: NDArray[np.int64]) -> float:
    """One step of gradient descent; returns the mean loss of the batch over all workers."""
    options, data, team = training.options, training.data, training.team
    chosen = data.train.take(order[step * training.batch_size : (step + 1) * training.batch_size])
    raw = augmented(
        chosen.images,
        seed=options.seed,
        epoch=place.epoch,
        step=step,
        shift=training.shift,
        flip=training.flip,
    )
    mine = slice(team.rank, None, team.size)
    images = torch.from_numpy(data.normalization.apply(raw[mine])).to(team.device)
    labels = torch.from_numpy(chosen.labels[mine]).to(team.device)
    torch.manual_seed(network_seed(options.seed, place.epoch, step, team.rank))
    logits = _logits(network(images))
    loss = F.cross_entropy(logits, labels, label_smoothing=options.label_smoothing)
    mean = team.sums(loss.item() / team.size)[0]
    if not math.isfinite(mean):
        raise _diverged(training, f"the loss is {mean} at step {step + 1} of epoch {place.epoch + 1}")
    training.optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    training.optimizer.step()
    return mean


def _network(training: _Training) -> nn.Module:
    """The network as its workers run it together."""
    team = training.team
    if team.size == 1:
        return training.model
    if team.device.type == "cuda":
        # In place of each batch norm, one whose statistics are over all workers; its weights are the same
        # tensors.
        synchronized = nn.SyncBatchNorm.convert_sync_batchnorm(training.model)  # type: ignore[no-untyped-call]
        return DistributedDataParallel(synchronized, device_ids=[team.device.index])
    return DistributedDataParallel(training.model)


def _test_figures(training: _Training) -> tuple[float, float]:
    """Loss and accuracy on the test images, from the worker that writes, told to all."""
    team = training.team
    figures = evaluate(training.model, training.data, training.data.test, team.device) if team.leads else (0.0, 0.0)
    loss, accuracy = team.sums(*figures)
    return loss, accuracy


def _set_learning_rate(training: _Training, step: int, total: int) -> float:
    warmup = min(round(training.options.warmup_epochs * training.steps), total - 1)
    rate = learning_rate(step, total, warmup, training.options.peak_lr)
    for group in training.optimizer.param_groups:
        group["lr"] = rate
    return rate


def _save(training: _Training, folder: Path, place: Place) -> None:
    """Checkpoint and metrics of the place reached, by the worker that writes."""
    if training.team.leads:
        if not all(bool(value.isfinite().all()) for value in training.model.parameters()):
            raise _diverged(training, f"a weight is not finite in epoch {place.epoch + (place.step > 0)}")
        save_checkpoint(folder / CHECKPOINT_FILE, training.model, training.optimizer, place)
        _write_metrics(folder, place)
    training.team.wait()


def _write_metrics(folder: Path, place: Place) -> None:
    lines = [json.dumps(dict(row), allow_nan=False) + "\n" for row in place.history]
    write_text(folder / METRICS_FILE, "".join(lines))


def _diverged(training: _Training, what: str) -> InputError:
    return InputError(
        f"{what}; lower lr ({training.options.peak_lr:g}) and start anew; the last good checkpoint was kept"
    )


# ------------------------------------------------------------------------------------------------ evaluation


def predict_logits(model: nn.Module, data: DataSet, split: Split, device: torch.device) -> NDArray[np.float32]:
    """The network's logits (N, classes) for each image of ``split``, in evaluation mode."""
    model.eval()
    parts = []
    with torch.inference_mode():
        for start in range(0, len(split), _EVALUATION_BATCH):
            raw = split.images[start : start + _EVALUATION_BATCH]
            images = torch.from_numpy(data.normalization.apply(raw)).to(device)
            parts.append(_logits(model(images)).float().cpu().numpy())
    return np.concatenate(parts)


def evaluate(model: nn.Module, data: DataSet, split: Split, device: torch.device) -> tuple[float, float]:
    """Mean cross-entropy (in nats) and top-1 accuracy (0 to 1) on ``split``, in evaluation mode."""
    logits = predict_logits(model, data, split, device)
    loss = F.cross_entropy(torch.from_numpy(logits).double(), torch.from_numpy(split.labels))
    return float(loss), top1_accuracy(logits, split.labels)


def _logits(output: Any) -> Any:
    """The logits among a network's outputs, the first where there are several (auxiliary heads)."""
    return output[0] if isinstance(output, tuple | list) and output else output


def _result(training: _Training, folder: Path, place: Place, resumed_at: int | None) -> TrainResult:
    last = place.history[-1]
    return TrainResult(
        folder=folder,
        model=training.options.model,
        parameters=sum(parameter.numel() for parameter in training.model.parameters()),
        device=training.team.device.type,
        workers=training.team.size,
        epochs=place.epoch,
        test_accuracy=float(last["test_accuracy"]),
        test_loss=float(last["test_loss"]),
        test_images=len(training.data.test),
        seconds=sum(float(row["seconds"]) for row in place.history),
        resumed_at=resumed_at,
        history=place.history,
        leads=training.team.leads,
    )
