"""The batch-norm transform and its gradients in plain numpy float64: the definition, as code that runs.

Nothing in bnfold's pipeline computes with it. It is what the tests hold torch, the recalibration and the study
against, and what docs/batch_norm.md evaluates. All arithmetic is float64, whatever comes in.

Notation. ``x`` has channel axes and reduced axes; ``m`` is the number of elements of one channel. Per channel::

    μ = Σ x / m        σ² = Σ (x − μ)² / m        x̂ = (x − μ) / √(σ² + ε)        y = γ·x̂ + β

In training, μ and σ² are those of the batch, and gradients flow through them; in inference they are constants, and
the transform is the affine ``y = s·x + t`` with ``s = γ / √(σ² + ε)`` and ``t = β − s·μ``.

Source: Ioffe and Szegedy, *Batch Normalization*, 2015 (https://arxiv.org/abs/1502.03167), algorithms 1 and 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnfold.errors import InputError

Floats = NDArray[np.float64]

#: torch's and ONNX's default ε.
DEFAULT_EPS = 1e-5


@dataclass(frozen=True, eq=False)
class Statistics:
    """Mean and variance of each channel.

    Attributes:
        mean: μ, of the shape of the channel axes.
        var: σ², divided by ``count``: what normalizes in training.
        count: m, the number of elements of one channel.
    """

    mean: Floats
    var: Floats
    count: int

    @property
    def unbiased_var(self) -> Floats:
        """``σ²·m/(m − 1)``, whose expectation is the population's variance: what running averages collect.

        Raises:
            InputError: a channel has a single element, of which no variance can be estimated.
        """
        if self.count < 2:
            raise InputError("the variance of one element per channel cannot be estimated; give two or more")
        return self.var * (self.count / (self.count - 1))


@dataclass(frozen=True, eq=False)
class RunningStatistics:
    """Exponential moving averages of the batches' statistics, as torch keeps them.

    Attributes:
        mean: running mean of each channel.
        var: running variance of each channel, of unbiased variances.
    """

    mean: Floats
    var: Floats

    def updated(self, batch: Statistics, momentum: float = 0.1) -> RunningStatistics:
        """``r ← (1 − momentum)·r + momentum·batch``; torch's ``momentum`` is the weight of the new batch.

        Raises:
            InputError: the batch has a single element per channel.
        """
        return RunningStatistics(
            mean=(1 - momentum) * self.mean + momentum * batch.mean,
            var=(1 - momentum) * self.var + momentum * batch.unbiased_var,
        )


@dataclass(frozen=True, eq=False)
class Gradients:
    """Gradients of a scalar loss.

    Attributes:
        x: with respect to the input, of its shape.
        gamma: with respect to γ, of the shape of the channel axes.
        beta: with respect to β, likewise.
    """

    x: Floats
    gamma: Floats
    beta: Floats


@dataclass(frozen=True, eq=False)
class Forward:
    """One forward pass, with what its backward pass needs.

    Attributes:
        y: the output, of the shape of the input.
        normalized: x̂, likewise.
        statistics: what it was normalized with.
        inverse_std: 1/√(σ² + ε), of the shape of the channel axes.
        gamma: γ, likewise.
        channel_axes: which axes hold the channels.
        in_training: whether the statistics depend on the input.
    """

    y: Floats
    normalized: Floats
    statistics: Statistics
    inverse_std: Floats
    gamma: Floats
    channel_axes: tuple[int, ...]
    in_training: bool

    def backward(self, dy: NDArray[Any]) -> Gradients:
        """The gradients that follow from ``dy``, the loss's gradient with respect to ``y``.

        With sums and means over the reduced axes::

            dβ = Σ dy        dγ = Σ dy·x̂
            training:   dx = γ/√(σ² + ε) · (dy − mean(dy) − x̂·mean(dy·x̂))
            inference:  dx = γ/√(σ² + ε) · dy

        Args:
            dy: of the shape of ``y``.

        Raises:
            InputError: the shape differs.
        """
        upstream = np.asarray(dy, dtype=np.float64)
        if upstream.shape != self.y.shape:
            raise InputError(f"the gradient has shape {upstream.shape} and the output {self.y.shape}; they must agree")
        axes = _reduced_axes(self.y.ndim, self.channel_axes)
        beta = upstream.sum(axis=axes)
        gamma = (upstream * self.normalized).sum(axis=axes)
        dx = upstream
        if self.in_training:
            m = self.statistics.count
            dx = dx - self._spread(beta / m) - self.normalized * self._spread(gamma / m)
        return Gradients(self._spread(self.gamma * self.inverse_std) * dx, gamma, beta)

    def _spread(self, values: Floats) -> Floats:
        return spread(values, self.y.ndim, self.channel_axes)


def batch_statistics(x: NDArray[Any], channel_axes: int | tuple[int, ...] = 1) -> Statistics:
    """Mean and biased variance of each channel, over all other axes, in two passes.

    Args:
        x: the batch, of any real type.
        channel_axes: the axis, or the axes, that hold the channels.

    Raises:
        InputError: the axes are not axes of ``x``, or a channel has no elements.
    """
    values = np.asarray(x, dtype=np.float64)
    channels = _checked_axes(values.ndim, channel_axes)
    axes = _reduced_axes(values.ndim, channels)
    count = int(np.prod([values.shape[axis] for axis in axes], dtype=np.int64))
    if not count:
        raise InputError(f"a batch of shape {values.shape} has no element in a channel; give at least one")
    mean = values.mean(axis=axes)
    var = np.square(values - spread(mean, values.ndim, channels)).mean(axis=axes)
    return Statistics(mean, var, count)


def forward_training(
    x: NDArray[Any],
    gamma: NDArray[Any],
    beta: NDArray[Any],
    *,
    eps: float = DEFAULT_EPS,
    channel_axes: int | tuple[int, ...] = 1,
) -> Forward:
    """Normalize a batch with its own statistics: ``y = γ·(x − μ)/√(σ² + ε) + β`` with the batch's μ and biased σ².

    Args:
        x: the batch, for example (N, C, H, W).
        gamma: γ, of the shape of the channel axes, for example (C,).
        beta: β, likewise.
        eps: ε, at least 0.
        channel_axes: the axis, or the axes, that hold the channels.

    Raises:
        InputError: shapes or axes do not belong together, or ``eps`` is negative.
    """
    return _forward(x, gamma, beta, batch_statistics(x, channel_axes), eps, channel_axes, in_training=True)


def forward_inference(
    x: NDArray[Any],
    gamma: NDArray[Any],
    beta: NDArray[Any],
    statistics: Statistics | RunningStatistics,
    *,
    eps: float = DEFAULT_EPS,
    channel_axes: int | tuple[int, ...] = 1,
) -> Forward:
    """Normalize with statistics that do not depend on the batch; see :func:`forward_training`.

    Args:
        x: the batch.
        gamma: γ, of the shape of the channel axes.
        beta: β, likewise.
        statistics: running averages, or those of a population.
        eps: ε, at least 0.
        channel_axes: the axis, or the axes, that hold the channels.

    Raises:
        InputError: shapes or axes do not belong together, or ``eps`` is negative.
    """
    count = statistics.count if isinstance(statistics, Statistics) else 0
    fixed = Statistics(statistics.mean, statistics.var, count)
    return _forward(x, gamma, beta, fixed, eps, channel_axes, in_training=False)


def inference_affine(
    gamma: NDArray[Any], beta: NDArray[Any], statistics: Statistics | RunningStatistics, eps: float = DEFAULT_EPS
) -> tuple[Floats, Floats]:
    """The scale ``s = γ/√(σ² + ε)`` and shift ``t = β − s·μ`` that batch norm is in inference."""
    scale = np.asarray(gamma, dtype=np.float64) / np.sqrt(statistics.var + eps)
    return scale, np.asarray(beta, dtype=np.float64) - scale * statistics.mean


def spread(values: Floats, ndim: int, channel_axes: int | tuple[int, ...] = 1) -> Floats:
    """Values of the shape of the channel axes, with length-one axes put in, so that they broadcast against ``x``."""
    reduced = _reduced_axes(ndim, _checked_axes(ndim, channel_axes))
    return np.expand_dims(values, reduced)


def _forward(
    x: NDArray[Any],
    gamma: NDArray[Any],
    beta: NDArray[Any],
    statistics: Statistics,
    eps: float,
    channel_axes: int | tuple[int, ...],
    *,
    in_training: bool,
) -> Forward:
    values = np.asarray(x, dtype=np.float64)
    channels = _checked_axes(values.ndim, channel_axes)
    if not eps >= 0:
        raise InputError(f"eps is {eps}; it must be at least 0")
    shape = tuple(values.shape[axis] for axis in channels)
    scale, shift = np.asarray(gamma, dtype=np.float64), np.asarray(beta, dtype=np.float64)
    for name, array in (("gamma", scale), ("beta", shift), ("mean", statistics.mean), ("var", statistics.var)):
        if array.shape != shape:
            raise InputError(f"{name} has shape {array.shape} and the channels {shape}; they must agree")
    inverse_std = 1 / np.sqrt(statistics.var + eps)
    centred = values - spread(statistics.mean, values.ndim, channels)
    normalized = centred * spread(inverse_std, values.ndim, channels)
    y = spread(scale, values.ndim, channels) * normalized + spread(shift, values.ndim, channels)
    return Forward(y, normalized, statistics, inverse_std, scale, channels, in_training)


def _checked_axes(ndim: int, channel_axes: int | tuple[int, ...]) -> tuple[int, ...]:
    """The channel axes, counted from the front and in order."""
    given = (channel_axes,) if isinstance(channel_axes, int) else tuple(channel_axes)
    axes = tuple(sorted(axis + ndim if axis < 0 else axis for axis in given))
    if len(set(axes)) != len(axes) or any(not 0 <= axis < ndim for axis in axes):
        raise InputError(f"channel axes {given} are not different axes of a batch of rank {ndim}")
    return axes


def _reduced_axes(ndim: int, channel_axes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(axis for axis in range(ndim) if axis not in channel_axes)
