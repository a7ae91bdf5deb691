"""Many small multilayer perceptrons side by side: one tensor holds the same layer of all of them.

A study trains hundreds of networks that differ in a seed, a learning rate or a gain. Their layers are batched matrix
products, and the loss is the sum of their losses, so that gradients stay apart: a member that diverges disturbs no
other.

A hidden layer computes ``φ(norm(h W + b))``, with ``h`` added to it where there are skip connections.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

EPS = 1e-5
MOMENTUM = 0.1  # of the running statistics

#: Mean and variance of each hidden layer's input to its norm, each (S, 1, width).
Statistics = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Architecture:
    """The kind of network.

    Attributes:
        depth: hidden layers.
        width: units of each.
        activation: φ.
        norm: none; batch norm; or batch norm whose output is disturbed (see :func:`_disturbed`).
        skip: whether hidden layers after the first add their input to their output.
    """

    depth: int = 4
    width: int = 64
    activation: Literal["relu", "sigmoid"] = "relu"
    norm: Literal["none", "batch", "noisy"] = "none"
    skip: bool = False


class Ensemble:
    """S networks of one architecture.

    Attributes:
        weights: (S, in, out) of each layer, the output layer last.
        biases: (S, 1, out) likewise.
        gammas: (S, 1, width) of each hidden layer; empty without norm.
        betas: likewise.
        running: moving averages of the batches' statistics; empty without norm.
    """

    def __init__(
        self,
        architecture: Architecture,
        seeds: Sequence[int],
        *,
        features: int,
        classes: int,
        gains: Sequence[float] | None = None,
    ) -> None:
        """Draw the weights: normal, of variance 2/fan-in (ReLU) or 1/fan-in; hidden ones times the gain."""
        self.architecture = architecture
        factors = [1.0] * len(seeds) if gains is None else list(gains)
        sizes = [features, *[architecture.width] * architecture.depth, classes]
        layers: list[list[Tensor]] = [[] for _ in sizes[1:]]
        for seed, gain in zip(seeds, factors, strict=True):
            random = np.random.default_rng([seed, 1])
            for layer, (inputs, outputs) in enumerate(pairwise(sizes)):
                hidden = layer < architecture.depth
                spread = (2.0 if hidden and architecture.activation == "relu" else 1.0) / inputs
                values = random.standard_normal((inputs, outputs)) * np.sqrt(spread) * (gain if hidden else 1.0)
                layers[layer].append(torch.from_numpy(values.astype(np.float32)))
        count, width = len(seeds), architecture.width
        normed = architecture.depth if architecture.norm != "none" else 0
        self.weights = [torch.stack(members).requires_grad_() for members in layers]
        self.biases = [torch.zeros(count, 1, size).requires_grad_() for size in sizes[1:]]
        self.gammas = [torch.ones(count, 1, width).requires_grad_() for _ in range(normed)]
        self.betas = [torch.zeros(count, 1, width).requires_grad_() for _ in range(normed)]
        self.running: Statistics = [(torch.zeros(count, 1, width), torch.ones(count, 1, width)) for _ in range(normed)]

    def __len__(self) -> int:
        return len(self.weights[0])

    def parameters(self) -> list[Tensor]:
        """Every trained tensor; the first axis is the member."""
        return [*self.weights, *self.biases, *self.gammas, *self.betas]

    def layers(self) -> list[int]:
        """The layer that each of :meth:`parameters` belongs to, from 0."""
        return [layer for kind in (self.weights, self.biases, self.gammas, self.betas) for layer in range(len(kind))]

    def forward(
        self,
        x: Tensor,
        statistics: Statistics | None = None,
        *,
        collect: Statistics | None = None,
        disturbance: torch.Generator | None = None,
        watch: list[Tensor] | None = None,
    ) -> Tensor:
        """The logits (S, B, classes).

        Args:
            x: (B, features), the same for all members, or (S, B, features).
            statistics: what norms use; None for those of the batch.
            collect: a list to which the batch's mean and biased variance are added, layer by layer.
            disturbance: where the noise of a ``noisy`` norm comes from; None for none.
            watch: a list to which the input of each hidden layer's φ is added.
        """
        architecture = self.architecture
        h = x.expand(len(self), *x.shape) if x.ndim == 2 else x
        for layer in range(architecture.depth):
            z = torch.baddbmm(self.biases[layer], h, self.weights[layer])
            if architecture.norm != "none":
                if statistics is None:
                    var, mean = torch.var_mean(z, 1, keepdim=True, correction=0)
                    if collect is not None:
                        collect.append((mean.detach(), var.detach()))
                else:
                    mean, var = statistics[layer]
                z = (z - mean) * torch.rsqrt(var + EPS) * self.gammas[layer] + self.betas[layer]
                if architecture.norm == "noisy" and disturbance is not None:
                    z = _disturbed(z, disturbance)
            if watch is not None:
                watch.append(z)
            out = torch.relu(z) if architecture.activation == "relu" else torch.sigmoid(z)
            h = h + out if architecture.skip and layer else out
        return torch.baddbmm(self.biases[-1], h, self.weights[-1])

    def update_running(self, batch: Statistics, count: int) -> None:
        """Move the running statistics towards those of a batch of ``count`` samples, variances unbiased."""
        for (mean, var), (batch_mean, batch_var) in zip(self.running, batch, strict=True):
            mean.lerp_(batch_mean, MOMENTUM)
            var.lerp_(batch_var * (count / (count - 1)), MOMENTUM)

    def population(self, x: Tensor) -> Statistics:
        """The statistics of all of ``x`` as one batch: those that make inference and training mode the same."""
        statistics: Statistics = []
        with torch.no_grad():
            self.forward(x, collect=statistics)
        return statistics


def losses(logits: Tensor, y: Tensor) -> Tensor:
    """The mean cross-entropy (S,) of each member.

    Args:
        logits: (S, B, classes).
        y: (B,) or (S, B).
    """
    targets = y.expand(len(logits), -1) if y.ndim == 1 else y
    flat = F.cross_entropy(logits.flatten(0, 1), targets.reshape(-1), reduction="none")
    return flat.view(len(logits), -1).mean(1)


def accuracies(logits: Tensor, y: Tensor) -> Tensor:
    """The share of samples (S,) that each member classifies right; what is not finite is wrong."""
    right = (logits.argmax(2) == y) & logits.isfinite().all(2)
    return right.float().mean(1)


def _disturbed(z: Tensor, random: torch.Generator) -> Tensor:
    """``z·s + m`` with noise whose distribution is another in each step and for each unit.

    After Santurkar et al. 2018, appendix A: each unit draws a mean from ±0.5 and a scale from 1 to 1.25, and each
    sample its own around them, ±0.1.
    """
    units, samples = (len(z), 1, z.shape[2]), z.shape

    def uniform(shape: Sequence[int], low: float, high: float) -> Tensor:
        return torch.rand(tuple(shape), generator=random) * (high - low) + low

    mean = uniform(units, -0.5, 0.5) + uniform(samples, -0.1, 0.1)
    scale = uniform(units, 1.0, 1.25) + uniform(samples, -0.1, 0.1)
    return z * scale + mean
