"""What a run needs before its first step: the network, the optimizer, and proof that they fit the data."""

from __future__ import annotations

import json
import platform
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from bnfold.errors import CheckpointError, DataError, InputError, OutputError, one_line
from bnfold.models import build, fitting_arguments
from bnfold.training.averaging import WeightAverage
from bnfold.training.data import resolved_spec
from bnfold.training.dataset import DataSet
from bnfold.training.distributed import Team
from bnfold.training.evaluation import first_output
from bnfold.training.options import TrainOptions
from bnfold.training.run import RUN_FILE, Run, read_run
from bnfold.training.schedule import initial_seed
from bnfold.training.synchronization import shared_network

#: Options that may differ when a run is resumed. Another device or thread count rounds otherwise, so only
#: with the same ones are the bits the same too.
_FREE_OPTIONS = frozenset(("device", "threads"))

#: Floating-point operations of one forward pass below which a single thread trains as fast as several, which
#: wait for each other at each layer; and far faster on a machine that is doing something else as well.
_SMALL_STEP = 2e9


@dataclass(frozen=True)
class Training:
    """What stays the same throughout a run."""

    options: TrainOptions
    data: DataSet
    team: Team
    model: nn.Module
    average: WeightAverage | None
    network: nn.Module  # the model as its workers run it together
    optimizer: torch.optim.Optimizer
    batch_size: int
    steps: int  # in one epoch
    shift: int
    flip: bool

    @property
    def average_network(self) -> nn.Module | None:
        """The network with averaged weights, in the worker that writes and where there is one."""
        return None if self.average is None else self.average.network

    @property
    def result_network(self) -> nn.Module:
        """The network that the run gives in the end."""
        return self.model if self.average is None else self.average.network


def previous_run(folder: Path, options: TrainOptions) -> Run | None:
    """The run to resume, if one is to be resumed.

    Raises:
        CheckpointError: there is none to resume.
        OutputError: the folder holds a run that would be lost.
    """
    if options.resume:
        return read_run(folder)
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} is a file; give the folder of a run")
    if (folder / RUN_FILE).exists() and not options.overwrite:
        raise OutputError(
            f"{folder} holds a run already; go on (--resume), start anew (--overwrite), or choose another folder"
        )
    return None


def build_network(options: TrainOptions, data: DataSet) -> tuple[Run, nn.Module]:
    """The record of the run, and its network with its initial weights.

    Raises:
        InputError: the network cannot be built, or does not fit the data.
        DataError: the data has one class alone.
    """
    classes = len(data.classes)
    if classes < 2:
        raise DataError(f"{data.spec} has one class, {data.classes[0]!r}; there is nothing to tell apart")
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
            logits = first_output(model.eval()(images))
    except Exception as error:  # a network's own code may raise anything
        raise InputError(
            f"the network {name} does not take images of shape {data.input_shape}: {one_line(error)}"
        ) from error
    wanted = (len(images), len(data.classes))
    if not isinstance(logits, Tensor) or tuple(logits.shape) != wanted:
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise InputError(f"the network {name} returns {got} for 2 images; logits of shape {wanted} are needed")


def set_threads(options: TrainOptions, model: nn.Module, data: DataSet) -> None:
    """The thread count asked for, or one that suits the network; the same on every machine with two or more."""
    if options.threads:
        torch.set_num_threads(options.threads)
        return
    image = torch.from_numpy(data.normalization.apply(data.test.images[:1]))
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model.eval()(image)
    if counter.get_total_flops() * options.batch_size < _SMALL_STEP:
        torch.set_num_threads(1)


def check_same_run(folder: Path, previous: Run, now: Run) -> None:
    """A run is resumed with the options and the data that it began with, or not at all.

    Raises:
        CheckpointError: an option or the data differs.
    """
    for name, value in now.options.items():
        if name not in _FREE_OPTIONS and name in previous.options and previous.options[name] != value:
            raise CheckpointError(
                f"the run in {folder} was begun with {name} {_shown(previous.options[name])}, not {_shown(value)}; "
                "resume it with its own options, or start another run"
            )
    if previous.data_fingerprint != now.data_fingerprint:
        raise CheckpointError(f"the data in {now.data} has changed since the run in {folder} was begun; start anew")


def _shown(value: Any) -> str:
    return "at its default" if value is None else repr(value)


def prepare(options: TrainOptions, data: DataSet, team: Team, model: nn.Module) -> Training:
    """The network on its device, with an optimizer, and the sizes that the loop needs.

    Raises:
        InputError: the workers cannot share a batch evenly, or a part of it would be less than two images.
    """
    parts = team.size * options.accumulate
    batch_size = min(options.batch_size, len(data.train) // parts * parts)
    if batch_size % parts or batch_size < 2 * parts:
        workers = f" of each of {team.size} workers" if team.size > 1 else ""
        raise InputError(
            f"a batch of {batch_size} does not give each of {options.accumulate} part(s){workers} the same number of "
            f"images, at least 2, which batch norm needs; choose a batch size that is a multiple of {parts}, or get "
            "more data"
        )
    model.to(team.device)
    average = WeightAverage(model, options.ema) if options.ema and team.leads else None
    shorter_side = min(data.input_shape[1:])
    return Training(
        options=options,
        data=data,
        team=team,
        model=model,
        average=average,
        network=shared_network(model, team),
        optimizer=_optimizer(model, options),
        batch_size=batch_size,
        # The last images of an epoch that do not fill a batch wait for another epoch, which has another
        # order: batch statistics over one or two images would be noise.
        steps=len(data.train) // batch_size,
        shift=shorter_side // 8 if options.shift is None else options.shift,
        flip=data.mirrored if options.flip is None else options.flip,
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
