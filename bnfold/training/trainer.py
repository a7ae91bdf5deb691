"""The training run, from options to weights.

Claim: the default network reaches 97.5 % on the held-out digits with any seed, and about 99 % with most; see
docs/training.md for the runs, the times and the hardware.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from bnfold.files import output_folder, write_bytes, write_text
from bnfold.progress import Progress, silent
from bnfold.training import nobody
from bnfold.training.checkpoint import Place, load_checkpoint, save_checkpoint, save_weights
from bnfold.training.data import load_data
from bnfold.training.distributed import joined_team
from bnfold.training.divergence import not_finite_state
from bnfold.training.evaluation import evaluate
from bnfold.training.folder import claimed_folder, clear_folder
from bnfold.training.interruption import StopRequest, deferred_signals
from bnfold.training.options import TrainOptions
from bnfold.training.preparation import Training, build_network, check_same_run, prepare, previous_run, set_threads
from bnfold.training.result import TrainResult
from bnfold.training.run import CHECKPOINT_FILE, CURVES_FILE, METRICS_FILE, WEIGHTS_FILE, Run, write_run
from bnfold.training.schedule import learning_rate, sample_order
from bnfold.training.step import diverged, take_step

EpochListener = Callable[[Mapping[str, Any]], None]


def run_training(options: TrainOptions, progress: Progress, on_epoch: EpochListener) -> TrainResult:
    """See :func:`bnfold.training.train`."""
    folder = Path(options.output)
    previous = previous_run(folder, options)
    with ExitStack() as stack:
        team = stack.enter_context(joined_team(options.device))
        stack.enter_context(_torch_settings(team.device))
        if not team.leads:
            progress, on_epoch = silent, nobody
        data = load_data(options.data, image_size=options.image_size)
        run, model = build_network(options, data)
        set_threads(options, model, data)
        if previous is not None:
            check_same_run(folder, previous, run)
        training = prepare(options, data, team, model)
        if team.leads:
            stack.enter_context(claimed_folder(stack.enter_context(output_folder(folder))))
        place = Place(0, 0, 0.0, ())
        if previous is not None:
            place = load_checkpoint(folder / CHECKPOINT_FILE, model, training.optimizer, training.average_network)
            place.check(options.epochs, training.steps, folder / CHECKPOINT_FILE)
        elif team.leads:
            _start_folder(folder, run, training, place)
        team.wait()  # until the folder is as it should be: another worker would go on alone otherwise
        resumed_at = None if previous is None else place.epoch
        with deferred_signals() as stop:
            place = _train(training, folder, place, stop, progress, on_epoch)
        result = _result(training, folder, place, resumed_at)
        if team.leads:
            _finish_folder(folder, run, training, result)
        team.wait()
    return result


def _train(
    training: Training,
    folder: Path,
    place: Place,
    stop: StopRequest,
    progress: Progress,
    on_epoch: EpochListener,
) -> Place:
    """All epochs from ``place`` on, a checkpoint after each."""
    options = training.options
    total = options.epochs * training.steps
    if training.team.leads:
        _write_metrics(folder, place)
    while place.epoch < options.epochs:
        began = time.perf_counter()
        order = sample_order(options.seed, place.epoch, len(training.data.train))
        training.network.train()
        for step in range(place.step, training.steps):
            _set_learning_rate(training, place.epoch * training.steps + step)
            loss = take_step(training, place.epoch, step, order)
            place = replace(place, step=step + 1, loss_sum=place.loss_sum + loss)
            progress("training", place.epoch * training.steps + step + 1, total)
            if training.team.sums(float(stop.made))[0]:
                _save(training, folder, place)
                raise KeyboardInterrupt
        test_loss, test_accuracy = _test_figures(training, place.epoch)
        row = {
            "epoch": place.epoch + 1,
            "lr": _learning_rate(training, (place.epoch + 1) * training.steps - 1),
            "train_loss": place.loss_sum / training.steps,
            "test_loss": test_loss,
            "test_accuracy": test_accuracy,
            "seconds": round(time.perf_counter() - began, 3),
        }
        if not math.isfinite(test_loss):
            where = "running statistics or weights have become so large that evaluation overflows"
            raise diverged(training, place.epoch, f"the test loss is {test_loss} after epoch {place.epoch + 1}", where)
        place = Place(place.epoch + 1, 0, 0.0, (*place.history, row))
        _save(training, folder, place)
        on_epoch(row)
    return place


def _test_figures(training: Training, epoch: int) -> tuple[float, float]:
    """Loss and accuracy on the test images of what the run would give now, told to all by the worker that writes."""
    team, data = training.team, training.data
    figures = (0.0, 0.0)
    if team.leads:
        if training.average is not None:
            training.average.estimate_statistics(data, training.options.seed, epoch, team.device)
        figures = evaluate(training.result_network, data, data.test, team.device)
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
    name = not_finite_state(training.model)
    if name is not None:  # on all workers alike
        epoch = place.epoch if place.step else place.epoch - 1  # the last before this one
        raise diverged(training, epoch, f"a weight is not finite in epoch {epoch + 1}", f"{name} is the first")
    if training.team.leads:
        save_checkpoint(folder / CHECKPOINT_FILE, training.model, training.optimizer, place, training.average_network)
        _write_metrics(folder, place)
    training.team.wait()


def _write_metrics(folder: Path, place: Place) -> None:
    lines = [json.dumps(dict(row), allow_nan=False) + "\n" for row in place.history]
    write_text(folder / METRICS_FILE, "".join(lines))


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
    clear_folder(folder)
    save_checkpoint(folder / CHECKPOINT_FILE, training.model, training.optimizer, place, training.average_network)
    write_run(folder, run)


def _finish_folder(folder: Path, run: Run, training: Training, result: TrainResult) -> None:
    """What a finished run leaves besides its checkpoint and metrics."""
    header = {"model": run.model, "model_args": dict(run.model_args)}
    save_weights(folder / WEIGHTS_FILE, training.result_network, header)
    curves = draw_curves(result.history)
    if curves is not None:
        write_bytes(folder / CURVES_FILE, curves)
    figures = {"epochs": result.epochs, "test_accuracy": result.test_accuracy, "test_loss": result.test_loss}
    write_run(folder, replace(run, result=figures))


def draw_curves(history: Sequence[Mapping[str, Any]]) -> bytes | None:
    """A picture of the run, or nothing where matplotlib, which the extra ``plot`` brings, is not installed."""
    if find_spec("matplotlib") is None:
        return None
    from bnfold.reporting.plots import training_curve_png

    return training_curve_png(history)


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
