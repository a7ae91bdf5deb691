"""Has a warm-up settled? A test for a slope in the log latency."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

#: Fewer samples than this say nothing about a trend.
MINIMUM_SAMPLES = 6

#: The log latency is reduced to the medians of at most so many consecutive bins: single outliers drop out.
_BINS = 20

#: A change over the window that is not worth waiting for.
_NEGLIGIBLE = 0.02

#: A slope within so many standard errors of zero is no slope.
_STANDARD_ERRORS = 2.5


@dataclass(frozen=True)
class Trend:
    """A straight line through the log latency of consecutive samples.

    Attributes:
        change: by how much it moves from the first sample to the last, in log units (0.01 is about 1 %).
        standard_error: of that change.
    """

    change: float
    standard_error: float

    @property
    def steady(self) -> bool:
        """Whether there is no change, or none that can be told from noise."""
        return abs(self.change) <= max(_NEGLIGIBLE, _STANDARD_ERRORS * self.standard_error)


def trend(latencies: Sequence[float] | NDArray[np.float64]) -> Trend | None:
    """The trend over consecutive samples, or None if they are fewer than :data:`MINIMUM_SAMPLES`.

    ``log latency = a + b·i`` by least squares over the medians of consecutive bins.
    """
    if len(latencies) < MINIMUM_SAMPLES:
        return None
    logs = np.log(np.maximum(np.asarray(latencies, dtype=np.float64), 1.0))
    medians = np.array([np.median(part) for part in np.array_split(logs, min(_BINS, len(logs)))])
    position = np.linspace(-0.5, 0.5, len(medians))
    spread = float(position @ position)
    change = float(position @ medians) / spread
    residual = medians - medians.mean() - change * position
    variance = float(residual @ residual) / (len(medians) - 2)
    return Trend(change, float(np.sqrt(variance / spread)))
