"""Intervals over seeds: Student's t, on differences of runs that share a seed, or on the logarithms of their ratios."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnfold.benchmarking.statistics import Interval, student_t
from bnfold.studies.result import Series

Values = NDArray[Any] | Sequence[float]


def mean_interval(values: Values) -> Interval:
    """The mean with its 95 % interval.

    Args:
        values: one for each seed, at least two.
    """
    array = np.asarray(values, dtype=np.float64)
    mean = float(array.mean())
    half = student_t(len(array) - 1) * float(array.std(ddof=1)) / math.sqrt(len(array))
    return Interval(mean, mean - half, mean + half)


def difference(one: Values, other: Values) -> Interval:
    """The mean of ``one − other``, seed by seed."""
    return mean_interval(np.asarray(one, dtype=np.float64) - np.asarray(other, dtype=np.float64))


def ratio(one: Values, other: Values) -> Interval:
    """The geometric mean of ``one / other``, seed by seed; all values are positive."""
    logs = difference(np.log(np.asarray(one, dtype=np.float64)), np.log(np.asarray(other, dtype=np.float64)))
    return Interval(math.exp(logs.estimate), math.exp(logs.low), math.exp(logs.high))


def extremes(values: Values) -> Interval:
    """The median with the smallest and the largest value: for identities, of which every case must hold."""
    array = np.asarray(values, dtype=np.float64)
    return Interval(float(np.median(array)), float(array.min()), float(array.max()))


def series(label: str, x: Values, values: NDArray[Any]) -> Series:
    """A line of means with their intervals.

    Args:
        label: for the legend.
        x: (K,) positions.
        values: (K, seeds).
    """
    intervals = [mean_interval(row) for row in values]
    return Series(
        label,
        [float(value) for value in x],
        [interval.estimate for interval in intervals],
        [interval.low for interval in intervals],
        [interval.high for interval in intervals],
    )
