"""Population statistics of a torch network, batch norm by batch norm in the order in which it evaluates them.

What a batch norm takes in can depend on those that were evaluated before it, and on no other. So the sweep sets the
statistics of the first, then runs all samples up to the second, and so on; each pass stops at the batch norm that it
measures.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bnfold.errors import CheckpointError, DataError
from bnfold.progress import Progress, silent
from bnfold.recalibration.moments import Moments
from bnfold.recalibration.result import Drift, Left

#: Makes the samples of one pass, batch by batch, on the network's device.
Batches = Callable[[], Iterator[Tensor]]


class _Reached(Exception):  # noqa: N818 - nothing went wrong
    """The pass has come to the batch norm that it measures; the rest of the network does not matter."""


@dataclass(frozen=True)
class Sweep:
    """What a sweep found.

    Attributes:
        drifts: one for each batch norm whose statistics were set.
        left: those that keep theirs.
    """

    drifts: tuple[Drift, ...]
    left: tuple[Left, ...]


def set_population_statistics(network: nn.Module, batches: Batches, progress: Progress = silent) -> Sweep:
    """Give each batch norm of ``network`` the mean and variance of its input over all samples.

    The network is put into evaluation mode and left there. Nothing but ``running_mean`` and ``running_var`` changes.

    Args:
        network: called with one tensor.
        batches: called once for each pass.
        progress: called after each pass.

    Raises:
        CheckpointError: the network has no batch norm with running statistics, or evaluates none.
        DataError: the input of a batch norm is not finite, or there are no samples.
    """
    network.eval()
    modules = {
        module: name
        for name, module in network.named_modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None and module.running_var is not None
    }
    if not modules:
        raise CheckpointError("the network has no batch norm with running statistics; there is nothing to recalibrate")
    calls = _evaluations(network, list(modules), batches)
    single = [module for module, count in calls.items() if count == 1]
    if not single:
        raise CheckpointError("the network evaluates no batch norm exactly once; there is nothing to recalibrate")
    drifts = []
    for done, module in enumerate(single):
        progress("population statistics", done, len(single))
        moments = _input_moments(network, module, modules[module], batches)
        drifts.append(_set_statistics(module, modules[module], moments))
    progress("population statistics", len(single), len(single))
    return Sweep(tuple(drifts), tuple(_left(name, calls[module]) for module, name in modules.items()
                                      if calls[module] != 1))  # fmt: skip


def _left(name: str, evaluations: int) -> Left:
    if not evaluations:
        return Left(name, "it is not evaluated in inference")
    return Left(name, f"it is evaluated {evaluations} times in one pass, so that its statistics depend on themselves")


def _evaluations(network: nn.Module, modules: list[_BatchNorm], batches: Batches) -> Counter[_BatchNorm]:
    """How often each batch norm is evaluated in one pass; the keys are in the order of evaluation."""
    calls: Counter[_BatchNorm] = Counter()

    def count(module: nn.Module, _inputs: Any) -> None:
        assert isinstance(module, _BatchNorm)
        calls[module] += 1

    handles = [module.register_forward_pre_hook(count) for module in modules]
    try:
        with torch.inference_mode():
            for batch in batches():
                network(batch)
                return calls
    finally:
        for handle in handles:
            handle.remove()
    raise DataError("there are no training samples to recalibrate with")


def _input_moments(network: nn.Module, module: _BatchNorm, name: str, batches: Batches) -> Moments:
    total: Moments | None = None

    def measure(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        nonlocal total
        part = _moments(inputs[0]).finite(name)
        total = part if total is None else total.merged(part)
        raise _Reached

    handle = module.register_forward_pre_hook(measure)
    try:
        with torch.inference_mode():
            for batch in batches():
                try:
                    network(batch)
                except _Reached:
                    continue
    finally:
        handle.remove()
    assert total is not None  # the batch norm was evaluated before
    return total


def _moments(values: Tensor) -> Moments:
    """As :meth:`Moments.of`, where the tensor lies."""
    wide = values.detach().double()
    axes = [axis for axis in range(wide.ndim) if axis != 1]
    count = wide.numel() // wide.shape[1]
    mean = wide.mean(axes)
    shape = [1, -1, *([1] * (wide.ndim - 2))]
    squares = (wide - mean.reshape(shape)).square().sum(axes)
    return Moments(count, mean.cpu().numpy(), squares.cpu().numpy())


def _set_statistics(module: _BatchNorm, name: str, population: Moments) -> Drift:
    mean, var = module.running_mean, module.running_var
    assert mean is not None
    assert var is not None
    drift = Drift.between(name, mean.cpu().numpy(), var.cpu().numpy(), population, module.eps)
    mean.copy_(torch.from_numpy(population.mean))
    var.copy_(torch.from_numpy(population.var))
    return drift
