"""How far one array is from another: pure functions of arrays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

#: Unit roundoff: the largest relative error of rounding a number to the type, ``2^−p``.
UNIT_ROUNDOFF: dict[str, float] = {
    "float16": 2.0**-11,
    "bfloat16": 2.0**-8,
    "float32": 2.0**-24,
    "float64": 2.0**-53,
}

#: The smallest number above 0.
SMALLEST: dict[str, float] = {"float16": 2.0**-24, "bfloat16": 2.0**-133, "float32": 2.0**-149, "float64": 2.0**-1074}

_FLOATS = frozenset(np.dtype(t) for t in (np.float16, ml_dtypes.bfloat16, np.float32, np.float64))

#: Significand bits without the hidden one, and the exponent of the smallest normal number.
_FORMAT: dict[str, tuple[int, int]] = {
    "float16": (10, -14),
    "bfloat16": (7, -126),
    "float32": (23, -126),
    "float64": (52, -1022),
}


@dataclass(frozen=True)
class Metrics:
    """The difference of one output from what was expected of it.

    Attributes:
        size: number of elements.
        scale: the largest finite magnitude expected; 1 for integers and booleans.
        max_abs: the largest absolute difference; for integers and booleans the fraction of elements that differ.
        mean_abs: the mean absolute difference.
        relative: ``max_abs / scale``; None where the scale is 0.
        cosine: of the angle between both as vectors; None where one of them is 0.
        snr_db: ``10·log10(Σ expected² / Σ difference²)``; None where there is no difference or no signal.
        ulp_max: the largest difference in units of the last place of the expected value in the data's type; None
            where that is too large for a number.
        top1: the fraction of rows with the same largest element, for outputs ``(N, K)``; else None.
        top5: the fraction of rows with the same five largest elements, in any order, for more than five; else None.
        near_ties: rows whose largest element leads the next by no more than twice the row's largest difference, so
            that a difference of this size could make another one the largest; None without rows.
        non_finite: elements that are NaN or infinite in one and not the same in the other.
    """

    size: int
    scale: float
    max_abs: float
    mean_abs: float
    relative: float | None
    cosine: float | None
    snr_db: float | None
    ulp_max: float | None
    top1: float | None
    top5: float | None
    near_ties: int | None
    non_finite: int

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Metrics:
        """Read what :meth:`to_json` wrote; a largest or mean difference that is not there was infinite.

        Raises:
            KeyError, TypeError: the document is not of that form.
        """
        values = {name: document[name] for name in cls.__dataclass_fields__}
        for name in ("max_abs", "mean_abs"):
            values[name] = float("inf") if values[name] is None else float(values[name])
        return cls(**values)

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dict; a number that is not finite is written as None."""
        return finite(asdict(self))


def finite(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values with None for each number that is not finite, which JSON cannot hold."""
    return {name: None if isinstance(value, float) and not isfinite(value) else value for name, value in values.items()}


def is_float(array: Array) -> bool:
    """Whether the array holds floating-point numbers that are judged by their size.

    The values of float8 and smaller are few, and steps of a quantizer: they are the same or not, as integers are.
    """
    return array.dtype in _FLOATS


def scale_of(expected: Array) -> float:
    """The largest finite magnitude; 1 for integers and booleans."""
    if not is_float(expected):
        return 1.0
    wide = np.abs(expected.astype(np.float64))
    finite = wide[np.isfinite(wide)]
    return float(finite.max()) if finite.size else 0.0


def deviation(expected: Array, actual: Array, excused: Array | None = None) -> tuple[Array, int]:
    """Element-wise absolute differences, and the number of NaN and infinities that do not correspond.

    Elements that are not finite in one or the other have the difference 0 and count only in the second number: they
    correspond where both are NaN, or both the same infinity. Integers and booleans differ by 0 or 1.

    Args:
        expected: any numeric array.
        actual: an array of the same shape.
        excused: a boolean array: where a NaN or infinity of ``actual`` need not correspond.
    """
    if not is_float(expected):
        differs = (expected != actual) & ~((expected != expected) & (actual != actual))  # float8 has NaN too
        return differs.astype(np.float64), 0
    wanted, got = expected.astype(np.float64), actual.astype(np.float64)
    finite = np.isfinite(wanted) & np.isfinite(got)
    with np.errstate(invalid="ignore", over="ignore"):
        difference = np.where(finite, np.abs(wanted - got), 0.0)
    if finite.all():
        return difference, 0
    strange = ~finite & ~((wanted == got) | (np.isnan(wanted) & np.isnan(got)))
    if excused is not None:
        strange &= ~excused
    return difference, int(strange.sum())


def compare(expected: Array, actual: Array, dtype: str = "float32", excused: Array | None = None) -> Metrics:
    """All metrics of one output.

    Args:
        expected: the true values, usually float64.
        actual: an array of the same shape.
        dtype: the type whose last place :attr:`Metrics.ulp_max` counts in.
        excused: see :func:`deviation`.
    """
    difference, strange = deviation(expected, actual, excused)
    scale = scale_of(expected)
    largest = float(difference.max()) if difference.size else 0.0
    floating = is_float(expected)
    if floating:
        wanted = np.where(np.isfinite(expected), expected, 0).astype(np.float64)
        got = np.where(np.isfinite(actual), actual, 0).astype(np.float64)
    if not floating:
        mean = float(difference.mean()) if difference.size else 0.0
        return Metrics(expected.size, 1.0, mean, mean, mean, None, None, None, None, None, None, 0)
    return Metrics(
        size=expected.size,
        scale=scale,
        max_abs=largest,
        mean_abs=float(difference.mean()) if difference.size else 0.0,
        relative=largest / scale if scale > 0 else None,
        cosine=_cosine(wanted, got),
        snr_db=_snr(wanted, difference),
        ulp_max=_ulp(wanted, difference, dtype),
        top1=top_agreement(expected, actual, 1),
        top5=top_agreement(expected, actual, 5),
        near_ties=_near_ties(expected, difference),
        non_finite=strange,
    )


def spacing(values: Array, dtype: str) -> Array:
    """The unit in the last place of each value in ``dtype``: ``2^(max(⌊log2|v|⌋, e_min) − p)``."""
    bits, smallest = _FORMAT[dtype]
    _, exponent = np.frexp(values)
    floored = np.where(values == 0, smallest, np.maximum(exponent - 1, smallest))
    return np.asarray(np.ldexp(1.0, floored - bits))


def _ulp(wanted: Array, difference: Array, dtype: str) -> float | None:
    if not difference.size:
        return 0.0
    with np.errstate(over="ignore"):  # where 0 is expected, the last place is the smallest number there is
        largest = float((difference / spacing(wanted, dtype)).max())
    return largest if np.isfinite(largest) else None


def _cosine(wanted: Array, got: Array) -> float | None:
    # Scaled first, so that squares neither overflow nor vanish.
    top, other = float(np.abs(wanted).max(initial=0)), float(np.abs(got).max(initial=0))
    if top == 0 or other == 0:
        return None
    a, b = (wanted / top).ravel(), (got / other).ravel()
    return float(np.clip(a @ b / np.sqrt((a @ a) * (b @ b)), -1.0, 1.0))


def _snr(wanted: Array, difference: Array) -> float | None:
    top = float(np.abs(wanted).max(initial=0))
    if top == 0 or not difference.any():
        return None
    signal, noise = wanted.ravel() / top, difference.ravel() / top
    power = float(noise @ noise)
    return float(10 * np.log10((signal @ signal) / power)) if 0 < power < np.inf else None


def _rows(array: Array) -> Array | None:
    """Scores of classes as ``(N, K)``, trailing axes of one dropped; None where the array is something else."""
    rank = array.ndim
    while rank > 2 and array.shape[rank - 1] == 1:
        rank -= 1
    return array.reshape(array.shape[:2]) if rank == 2 and array.shape[0] and array.shape[1] > 1 else None


def top_agreement(wanted: Array, got: Array, count: int) -> float | None:
    """The fraction of rows in which the ``count`` largest elements are the same ones; None if there are no more.

    Infinities are scores as others are, −∞ that of a class left out; a NaN comes last.
    """
    rows, others = _rows(wanted), _rows(got)
    if rows is None or others is None or rows.shape[1] <= count:
        return None
    scores = (np.where(np.isnan(array), -np.inf, array.astype(np.float64)) for array in (rows, others))
    leaders = (np.sort(np.argsort(-array, axis=1, kind="stable")[:, :count], axis=1) for array in scores)
    return float((next(leaders) == next(leaders)).all(axis=1).mean())


def margins(wanted: Array) -> Array | None:
    """By how much the largest element of each row leads the next; None where there are no rows of scores.

    The lead is NaN, which is no lead to speak of and no tie, in rows that hold a NaN or more than one ∞.
    """
    rows = _rows(wanted) if is_float(wanted) else None
    if rows is None:
        return None
    best = np.partition(rows, rows.shape[1] - 2, axis=1)
    with np.errstate(invalid="ignore"):
        return np.asarray(best[:, -1] - best[:, -2])


def _near_ties(wanted: Array, difference: Array) -> int | None:
    leads, rows = margins(wanted), _rows(difference)
    if leads is None or rows is None:
        return None
    largest = rows.max(axis=1)
    return int(((largest > 0) & (leads <= 2 * largest)).sum())
