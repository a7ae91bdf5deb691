"""An exponential moving average of a network's weights, and the batch norms that fit it.

Averaged weights are another network: the running statistics that training left belong to the weights of the last
steps. So the batch norms of the average are estimated anew whenever it is evaluated or written.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from copy import deepcopy

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bnfold.training.dataset import DataSet
from bnfold.training.schedule import sample_order

#: Images that the batch norms of an average are estimated on at most. Wu and Johnson, *Rethinking "Batch" in
#: BatchNorm*, 2021 (https://arxiv.org/abs/2105.07576), section 3, find that 1,000 to 10,000 do.
_ESTIMATION_IMAGES = 10_000
_ESTIMATION_BATCH = 256


class WeightAverage:
    """``a ← d·a + (1 − d)·w`` after each step, with ``d = min(decay, (1 + k)/(10 + k))`` after k steps.

    The decay grows at first so that the initial weights are soon forgotten.

    Attributes:
        network: a copy of the network with the averaged weights; its other buffers are those of the network.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network = deepcopy(network).requires_grad_(False)
        self._decay = decay

    def update(self, network: nn.Module, step: int) -> None:
        """Take in the weights after a step.

        Args:
            network: the network that is trained.
            step: k, counted over all epochs, from 0.
        """
        decay = min(self._decay, (1 + step) / (10 + step))
        with torch.no_grad():
            averages: list[Tensor] = list(self.network.parameters())
            weights: list[Tensor] = list(network.parameters())
            torch._foreach_lerp_(averages, weights, 1 - decay)
            for average, buffer in zip(self.network.buffers(), network.buffers(), strict=True):
                average.copy_(buffer)

    def estimate_statistics(self, data: DataSet, seed: int, epoch: int, device: torch.device) -> None:
        """Set the batch norms' statistics from training images, without augmentation; see :func:`estimate_statistics`.

        The images are the first of an epoch's order, at most 10,000.
        """
        order = sample_order(seed, epoch, len(data.train))[:_ESTIMATION_IMAGES]
        size = min(_ESTIMATION_BATCH, len(order))
        starts = range(0, len(order) - size + 1, size)  # whole batches, which count alike
        raw = (data.train.images[np.sort(order[start : start + size])] for start in starts)
        batches = (torch.from_numpy(data.normalization.apply(images)).to(device) for images in raw)
        estimate_statistics(self.network, batches)


def estimate_statistics(network: nn.Module, batches: Iterable[Tensor]) -> None:
    """Give each batch norm the mean of the batches' means and (unbiased) variances, in one pass.

    Batch norms run in training mode and all else, dropout among it, in evaluation mode. This is torch's ``update_bn``
    but for that; :mod:`bnfold.recalibration` computes exact statistics of the whole training set, in more passes.

    Args:
        network: left in evaluation mode.
        batches: inputs on the network's device.
    """
    network.eval()
    norms = [
        module for module in network.modules() if isinstance(module, _BatchNorm) and module.running_mean is not None
    ]
    with _cumulative(norms), torch.no_grad():
        for batch in batches:
            network(batch)


@contextmanager
def _cumulative(norms: list[_BatchNorm]) -> Iterator[None]:
    """Batch norms in training mode whose running statistics are plain means from now on."""
    momenta = [module.momentum for module in norms]
    tracked = [None if module.num_batches_tracked is None else module.num_batches_tracked.clone() for module in norms]
    for module in norms:
        module.reset_running_stats()
        module.momentum = None
        module.train()
    try:
        yield
    finally:
        for module, momentum, count in zip(norms, momenta, tracked, strict=True):
            module.momentum = momentum
            module.eval()
            if count is not None and module.num_batches_tracked is not None:
                module.num_batches_tracked.copy_(count)
