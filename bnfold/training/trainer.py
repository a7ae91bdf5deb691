"""The training run, from options to weights.

Claim: the default network reaches 97.5 % on the held-out digits with any seed, and about 99 % with most; see
docs/training.md for the runs, the times and the hardware.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from bnfold.errors import InputError
from bnfold.files import make_output_folder, write_text
from bnfold.progress import Progress, silent
from bnfold.training.checkpoint import Place, load_checkpoint, save_checkpoint, save_weights
from bnfold.training.data import load_data
from bnfold.training.distributed import joined_team
from bnfold.training.evaluation import evaluate, first_output
from bnfold.training.interruption import StopRequest, deferred_signals
from bnfold.training.options import TrainOptions
from bnfold.training.preparation import Training, build_network, check_same_run, prepare, previous_run, set_threads
from bnfold.training.result import TrainResult
from bnfold.training.run import CHECKPOINT_FILE, METRICS_FILE, WEIGHTS_FILE, Run, write_run
from bnfold.training.schedule import augmented, learning_rate, network_seed, sample_order


def run_training(options: TrainOptions, progress: Progress) -> TrainResult:
    """See :func:`bnfold.training.train`."""
    folder = Path(options.output)
    previous = previous_run(folder, options)
    with joined_team(options.device) as team, _torch_settings(team.device):
        if not team.leads:
            progress = silent
        data = load_data(options.data, image_size=options.image_size)
        run, model = build_network(options, data)
        set_threads(options, model, data)
        if previous is not None:
            check_same_run(folder, previous, run)
        training = prepare(options, data, team, model)
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


def _train(training: Training, folder: Path, place: Place, stop: StopRequest, progress: Progress) -> Place:
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
            _set_learning_rate(training, place.epoch * training.steps + step)
            loss = _step(training, network, place, step, order)
            place = replace(place, step=step + 1, loss_sum=place.loss_sum + loss)
            progress("training", place.epoch * training.steps + step + 1, total)
            if training.team.sums(float(stop.made))[0]:
                _save(training, folder, place)
                raise KeyboardInterrupt
        test_loss, test_accuracy = _test_figures(training)
        row = {
            "epoch": place.epoch + 1,
            "lr": _learning_rate(training, (place.epoch + 1) * training.steps - 1),
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


def _step(training: Training, network: nn.Module, place: Place, step: int, order: NDArray[np.int64]) -> float:
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
    logits = first_output(network(images))
    loss = F.cross_entropy(logits, labels, label_smoothing=options.label_smoothing)
    mean = team.sums(loss.item() / team.size)[0]
    if not math.isfinite(mean):
        raise _diverged(training, f"the loss is {mean} at step {step + 1} of epoch {place.epoch + 1}")
    training.optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    training.optimizer.step()
    return mean


def _network(training: Training) -> nn.Module:
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


def _test_figures(training: Training) -> tuple[float, float]:
    """Loss and accuracy on the test images, from the worker that writes, told to all."""
    team = training.team
    figures = evaluate(training.model, training.data, training.data.test, team.device) if team.leads else (0.0, 0.0)
    loss, accuracy = team.sums(*figures)
    return loss, accuracy


def _learning_rate(training: Training, step: int) -> float:
    """The learning rate of a step, counted over all epochs."""
    total = training.options.epochs * training.steps
    warmup = min(round(training.options.warmup_epochs * training.steps), total - 1)
    return learning_rate(step, total, warmup, training.options.peak_lr)


def _set_learning_rate(training: Training, step: int) -> None:
    rate = _learning_rate(training, step)
    for group in training.optimizer.param_groups:
        group["lr"] = rate


def _save(training: Training, folder: Path, place: Place) -> None:
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


def _diverged(training: Training, what: str) -> InputError:
    return InputError(
        f"{what}; lower lr ({training.options.peak_lr:g}) and start anew; the last good checkpoint was kept"
    )


def _result(training: Training, folder: Path, place: Place, resumed_at: int | None) -> TrainResult:
    last = place.history[-1]
    return TrainResult(
        folder=folder,
        model=training.options.model,
        parameters=sum(parameter.numel() for parameter in training.model.parameters()),
        device=training.team.device.type,
        workers=training.team.size,
        threads=torch.get_num_threads(),
        epochs=place.epoch,
        test_accuracy=float(last["test_accuracy"]),
        test_loss=float(last["test_loss"]),
        test_images=len(training.data.test),
        seconds=sum(float(row["seconds"]) for row in place.history),
        resumed_at=resumed_at,
        history=place.history,
        leads=training.team.leads,
    )


def _start_folder(folder: Path, run: Run, training: Training, place: Place) -> None:
    """The first state of a run's folder; what an earlier run left there goes."""
    for name in (WEIGHTS_FILE, METRICS_FILE, CHECKPOINT_FILE):
        (folder / name).unlink(missing_ok=True)
    save_checkpoint(folder / CHECKPOINT_FILE, training.model, training.optimizer, place)
    write_run(folder, run)


@contextmanager
def _torch_settings(device: torch.device) -> Iterator[None]:
    """Reproducible arithmetic and the run's own random state; the caller's settings come back afterwards."""
    before = torch.get_num_threads()
    devices = [device] if device.type == "cuda" else []
    with (
        torch.random.fork_rng(devices=devices),
        torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True),
    ):
        try:
            yield
        finally:
            torch.set_num_threads(before)
