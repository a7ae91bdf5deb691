"""The value that the whole engine moves about: a scale and a shift for each channel of one axis.

An affine is ``y = scale ⊙ x + shift``, where ``scale`` and ``shift`` vary along one axis of ``x`` only. It always
carries that axis, because a scale that is right for one axis is silently wrong for another of the same length.
All numbers are float64: affines are composed exactly once each, and rounded only where they reach a weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Float64Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class ChannelAffine:
    """``y = scale ⊙ x + shift`` along one axis.

    Attributes:
        axis: the axis of ``x``, counted from the front; None where one scale and one shift serve the whole tensor.
        scale: shape ``(C,)``, float64; ``C`` is 1 where ``axis`` is None.
        shift: shape ``(C,)``, float64.
    """

    axis: int | None
    scale: Float64Array
    shift: Float64Array

    def __post_init__(self) -> None:
        if self.scale.shape != self.shift.shape or self.scale.ndim != 1:
            raise ValueError(f"scale {self.scale.shape} and shift {self.shift.shape} must be equal vectors")
        if self.axis is None and self.scale.size != 1:
            raise ValueError("a uniform affine has one scale and one shift")
        if self.axis is not None and self.axis < 0:
            raise ValueError("the axis is counted from the front")

    @staticmethod
    def along(axis: int | None, scale: ArrayLike, shift: ArrayLike) -> ChannelAffine:
        """An affine from anything that broadcasts to one vector; uniform where its channels do not differ.

        An affine that treats all channels alike has no axis, and so may go where one along an axis may not.
        """
        scale, shift = np.broadcast_arrays(
            np.atleast_1d(np.asarray(scale, np.float64)), np.atleast_1d(np.asarray(shift, np.float64))
        )
        if not scale.size:
            return ChannelAffine.identity()  # of no channels at all
        if np.all(scale == scale[:1]) and np.all(shift == shift[:1]):
            return ChannelAffine(None, scale[:1], shift[:1])
        return ChannelAffine(axis, scale, shift)

    @staticmethod
    def identity() -> ChannelAffine:
        """``y = x``."""
        return ChannelAffine.along(None, 1.0, 0.0)

    @property
    def size(self) -> int:
        """The number of channels; 1 where the affine is uniform."""
        return int(self.scale.size)

    @property
    def has_scale(self) -> bool:
        """Whether any channel is multiplied by something other than 1."""
        return bool(np.any(self.scale != 1.0))

    @property
    def has_shift(self) -> bool:
        """Whether anything other than 0 is added to any channel."""
        return bool(np.any(self.shift != 0.0))

    @property
    def is_identity(self) -> bool:
        """Whether ``y = x`` exactly."""
        return not self.has_scale and not self.has_shift

    @property
    def is_finite(self) -> bool:
        """Whether every scale and shift is a finite number."""
        return bool(np.all(np.isfinite(self.scale)) and np.all(np.isfinite(self.shift)))

    def then(self, outer: ChannelAffine) -> ChannelAffine | None:
        """``outer ∘ self``: ``y = outer.scale ⊙ (scale ⊙ x + shift) + outer.shift``; None on different axes."""
        if self.axis is not None and outer.axis is not None and self.axis != outer.axis:
            return None
        axis = outer.axis if self.axis is None else self.axis
        return ChannelAffine.along(axis, outer.scale * self.scale, outer.scale * self.shift + outer.shift)

    def equals(self, other: ChannelAffine) -> bool:
        """Whether both are the same numbers on the same axis."""
        return (
            self.axis == other.axis
            and np.array_equal(self.scale, other.scale)
            and np.array_equal(self.shift, other.shift)
        )

    def fits(self, axis: int, size: int) -> bool:
        """Whether the affine can be read as one along ``axis`` with ``size`` channels."""
        return self.axis is None or (self.axis == axis and self.size == size)

    def spread(self, axis: int, size: int) -> ChannelAffine:
        """The same affine with one entry a channel, given that it :meth:`fits`."""
        if not self.fits(axis, size):
            raise ValueError(f"an affine along axis {self.axis} of {self.size} does not fit axis {axis} of {size}")
        return ChannelAffine(axis, np.broadcast_to(self.scale, size), np.broadcast_to(self.shift, size))

    def moved_to(self, axis: int | None) -> ChannelAffine:
        """The same channels, found along another axis."""
        return ChannelAffine(axis if self.axis is not None else None, self.scale, self.shift)

    def scale_only(self) -> ChannelAffine:
        """``y = scale ⊙ x``."""
        return ChannelAffine.along(self.axis, self.scale, 0.0)

    def shift_only(self) -> ChannelAffine:
        """``y = x + shift``."""
        return ChannelAffine.along(self.axis, 1.0, self.shift)

    def inverse(self) -> ChannelAffine:
        """``x = (y − shift) / scale``, given that no scale is 0."""
        if not np.all(self.scale):
            raise ValueError("a channel that is multiplied by 0 cannot be had back")
        return ChannelAffine.along(self.axis, 1.0 / self.scale, -self.shift / self.scale)

    def take(self, channels: Sequence[int] | NDArray[np.int64] | slice) -> ChannelAffine:
        """The affine of some of the channels, in the order given; a uniform one serves any."""
        if self.axis is None:
            return self
        return ChannelAffine(self.axis, self.scale[channels], self.shift[channels])

    def repeated(self, times: int) -> ChannelAffine:
        """Each channel's scale and shift ``times`` times in a row, as when a channel's pixels are flattened."""
        if self.axis is None:
            return self
        return ChannelAffine(self.axis, np.repeat(self.scale, times), np.repeat(self.shift, times))

    def apply(self, x: NDArray[np.floating]) -> Float64Array:
        """The affine of an array, in float64."""
        wide: Float64Array = x.astype(np.float64)
        if self.axis is None:
            return np.asarray(wide * self.scale[0] + self.shift[0])
        column = (-1, *([1] * (x.ndim - self.axis - 1)))
        return wide * self.scale.reshape(column) + self.shift.reshape(column)


def joined(axis: int, parts: Sequence[tuple[ChannelAffine, int]]) -> ChannelAffine:
    """The affine of tensors concatenated along ``axis``; each part comes with its length on that axis."""
    spread = [affine.spread(axis, size) for affine, size in parts]
    scale, shift = np.concatenate([a.scale for a in spread]), np.concatenate([a.shift for a in spread])
    return ChannelAffine.along(axis, scale, shift)
