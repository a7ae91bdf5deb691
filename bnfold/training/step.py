"""One step of gradient descent, in parts where the options say so."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from bnfold.errors import BnfoldError, InputError, SetupError, WorkerError, one_line
from bnfold.training.divergence import first_layer_not_finite
from bnfold.training.evaluation import first_output
from bnfold.training.preparation import Training
from bnfold.training.schedule import augmented, network_seed

#: What a network's own code may raise on a batch.
_NETWORK_ERRORS = (RuntimeError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, AssertionError)


def take_step(training: Training, epoch: int, step: int, order: NDArray[np.int64]) -> float:
    """Change the weights once, and return the mean loss of the batch over all workers.

    Args:
        training: the run.
        epoch: from 0.
        step: within the epoch, from 0.
        order: in which the epoch visits the training images.

    Raises:
        InputError: the network cannot take the batch, or the loss is not finite.
        SetupError: there is not enough memory.
        WorkerError: another worker is gone.
    """
    options, team = training.options, training.team
    _seed(network_seed(options.seed, epoch, step, team.rank), team.device)
    training.optimizer.zero_grad(set_to_none=True)
    total = 0.0
    parts = _parts(training, epoch, step, order)
    for number, (images, labels) in enumerate(parts):
        last = number == len(parts) - 1
        with _explained(training, epoch, step), _gradients_kept_back(training, keep=not last):
            with autocast(training):
                logits = first_output(training.network(images))
                loss = F.cross_entropy(logits.float(), labels, label_smoothing=options.label_smoothing)
            mean = team.sums(loss.item() / team.size)[0]
            if not math.isfinite(mean):
                with autocast(training):
                    where = first_layer_not_finite(training.network, images)
                raise diverged(training, epoch, f"the loss is {mean} at step {step + 1} of epoch {epoch + 1}", where)
            (loss / len(parts)).backward()  # type: ignore[no-untyped-call]
        total += mean / len(parts)
    training.optimizer.step()
    if training.average is not None:
        training.average.update(training.model, epoch * training.steps + step)
    return total


def _seed(seed: int, device: torch.device) -> None:
    """Seed what draws in a step; torch.manual_seed takes longer than a small step, as it asks every kind of device."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


def diverged(training: Training, epoch: int, what: str, where: str) -> InputError:
    """The error of a run whose numbers are no longer finite, after ``epoch`` whole epochs."""
    kept = f"the checkpoint after epoch {epoch} is kept" if epoch else "the checkpoint of the initial weights is kept"
    return InputError(f"{what}: {where}; lower lr ({training.options.peak_lr:g}) and start anew (--overwrite); {kept}")


def autocast(training: Training) -> torch.autocast:
    """Mixed precision where the options ask for it; weights stay float32, and so does what batch norm computes."""
    return torch.autocast(training.team.device.type, torch.bfloat16, enabled=training.options.precision == "bfloat16")


def _parts(training: Training, epoch: int, step: int, order: NDArray[np.int64]) -> list[tuple[Tensor, Tensor]]:
    """This worker's images and labels of a step, in the parts in which it takes them."""
    options, data, team = training.options, training.data, training.team
    chosen = data.train.take(order[step * training.batch_size : (step + 1) * training.batch_size])
    raw = augmented(chosen.images, seed=options.seed, epoch=epoch, step=step, shift=training.shift, flip=training.flip)
    stride = team.size * options.accumulate
    parts = []
    for first in range(team.rank, stride, team.size):
        images = torch.from_numpy(data.normalization.apply(raw[first::stride])).to(team.device)
        parts.append((images, torch.from_numpy(chosen.labels[first::stride]).to(team.device)))
    return parts


@contextmanager
def _gradients_kept_back(training: Training, *, keep: bool) -> Iterator[None]:
    """Let workers exchange gradients once a step, with the last part."""
    network = training.network
    with network.no_sync() if keep and isinstance(network, DistributedDataParallel) else nullcontext():
        yield


@contextmanager
def _explained(training: Training, epoch: int, step: int) -> Iterator[None]:
    """What may go wrong inside a step, as one sentence."""
    try:
        yield
    except BnfoldError:
        raise
    except torch.OutOfMemoryError as error:
        raise SetupError(
            f"{training.team.device} has not enough memory for a batch of {training.batch_size}; choose a smaller "
            "batch size, or take it in parts (accumulate)"
        ) from error
    except _NETWORK_ERRORS as error:
        message = one_line(error)
        if training.team.size > 1:
            raise WorkerError(
                f"step {step + 1} of epoch {epoch + 1} failed; if another worker failed or was killed, go on from the "
                f"last checkpoint (--resume): {message}"
            ) from error
        raise InputError(
            f"the network {training.options.model} failed at step {step + 1} of epoch {epoch + 1}: {message}"
        ) from error
