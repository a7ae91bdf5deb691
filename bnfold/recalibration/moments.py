"""Mean and variance of a stream, channel by channel, in float64.

Two parts A and B with n elements, mean μ and sum of squared deviations M merge into (Chan, Golub and LeVeque,
*Algorithms for computing the sample variance*, 1983; for a part of one element it is Welford's update)::

    n = n_A + n_B        δ = μ_B − μ_A        μ = μ_A + δ·n_B/n        M = M_A + M_B + δ²·n_A·n_B/n

Nothing large is subtracted from something large, so that an offset of the data costs no digits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnfold.batch_norm import batch_statistics
from bnfold.errors import DataError

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Moments:
    """Count, mean and squared deviations of the elements seen so far.

    Attributes:
        count: elements of one channel.
        mean: of each channel, (C,).
        squares: sum of squared deviations from the mean, (C,).
    """

    count: int
    mean: Floats
    squares: Floats

    @classmethod
    def of(cls, values: NDArray[Any]) -> Moments:
        """The moments of one array (N, C, …), or (N,) of a single channel; of any real type."""
        with np.errstate(invalid="ignore", over="ignore"):  # see `finite`
            statistics = batch_statistics(values if values.ndim > 1 else values[:, None])
        return cls(statistics.count, statistics.mean, statistics.var * statistics.count)

    def finite(self, name: str) -> Moments:
        """These moments, if they are finite.

        Args:
            name: of the batch norm that they are for.

        Raises:
            DataError: they are not.
        """
        if np.isfinite(self.mean).all() and np.isfinite(self.squares).all():
            return self
        raise DataError(f"the input of the batch norm {name} is not finite over the data; nothing was written")

    def merged(self, other: Moments) -> Moments:
        """The moments of both parts together."""
        count = self.count + other.count
        delta = other.mean - self.mean
        return Moments(
            count=count,
            mean=self.mean + delta * (other.count / count),
            squares=self.squares + other.squares + delta**2 * (self.count * (other.count / count)),
        )

    @property
    def var(self) -> Floats:
        """Variance of each channel, divided by the count."""
        return self.squares / self.count
