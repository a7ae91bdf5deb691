"""What each step of a run does, as pure functions of the seed and the step's place.

Nothing here depends on what ran before, so a resumed run repeats the very steps of one that was not
interrupted.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

# What a random stream is for; part of its seed, so that no two streams are the same.
_ORDER, _AUGMENTATION, _NETWORK, _INITIAL = range(4)


def learning_rate(step: int, total: int, warmup: int, peak: float) -> float:
    """The learning rate of a step: ``peak·(k+1)/w`` for ``k < w``, then ``peak·(1 + cos(π·(k−w)/(n−w)))/2``.

    Args:
        step: k, from 0 to below ``total``, counted over all epochs.
        total: n, steps of the whole run.
        warmup: w, steps of warm-up.
        peak: the highest learning rate.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def sample_order(seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    """The order (count,) in which an epoch visits the training images."""
    return np.random.default_rng([seed, _ORDER, epoch]).permutation(count)


def initial_seed(seed: int) -> int:
    """The seed of the initial weights."""
    return _torch_seed(seed, _INITIAL)


def network_seed(seed: int, epoch: int, step: int, rank: int) -> int:
    """The seed of dropout, and of any other chance inside the network, in one step of one worker."""
    return _torch_seed(seed, _NETWORK, epoch, step, rank)


def _torch_seed(*entropy: int) -> int:
    state = np.random.SeedSequence(entropy).generate_state(1, np.uint64)
    return int(state[0] >> np.uint64(1))  # torch takes 64 bits with a sign


def augmented(images: NDArray[Any], *, seed: int, epoch: int, step: int, shift: int, flip: bool) -> NDArray[Any]:
    """A batch of raw images, each shifted by up to ``shift`` pixels and, if ``flip``, mirrored at random.

    What moves in from outside is 0, which is black.

    Args:
        images: raw images (N, C, H, W).
        seed: of the run.
        epoch: from 0.
        step: within the epoch, from 0.
        shift: largest shift, in pixels.
        flip: whether to mirror left and right.
    """
    random = np.random.default_rng([seed, _AUGMENTATION, epoch, step])
    count, _, height, width = images.shape
    if shift:
        padded = np.pad(images, ((0, 0), (0, 0), (shift, shift), (shift, shift)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (height, width), axis=(2, 3))
        down, right = random.integers(0, 2 * shift + 1, size=(2, count))
        images = windows[np.arange(count), :, down, right]
    if flip:
        heads = random.integers(0, 2, size=(count, 1, 1, 1))
        images = np.where(heads == 1, images[..., ::-1], images)
    return images
