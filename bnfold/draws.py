"""Random tensors for the inputs of a model; numpy alone, so that a process that is timed can use it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def stream(seed: int, *names: str) -> np.random.Generator:
    """Random numbers that belong to ``names``: what else is drawn, and in which order, does not change them."""
    letters = "\0".join(names).encode()
    return np.random.default_rng([seed, *letters])


def draw(random: np.random.Generator, dtype: np.dtype[Any], shape: Sequence[int], limits: tuple[int, int]) -> Array:
    """Floating-point numbers are standard normal, booleans fair, integers even over ``limits``.

    Args:
        random: where the numbers come from.
        dtype: numpy's or ml_dtypes'.
        shape: without unknowns.
        limits: the lowest integer, and the first that is too high.
    """
    if dtype.kind == "b":
        return np.asarray(random.integers(0, 2, shape), dtype=np.bool_)
    if _is_integer(dtype):
        return np.asarray(random.integers(*limits, shape)).astype(dtype)
    return np.asarray(random.standard_normal(shape)).astype(dtype)


def integer_limits(dtype: np.dtype[Any]) -> tuple[int, int]:
    """What integers of nothing but a type are drawn between: all of 8 bits, which are pixels, and else 0 and 1.

    Wider integers are mostly indices, of which only the first are sure to exist.
    """
    if dtype.kind in "iu" and dtype.itemsize == 1:
        return int(np.iinfo(dtype).min), int(np.iinfo(dtype).max) + 1
    return 0, 2


def _is_integer(dtype: np.dtype[Any]) -> bool:
    return dtype.name.startswith(("int", "uint"))  # the kind of ml_dtypes' int4 is that of its bfloat16


def fits(declared: Sequence[int | str | None], sizes: Sequence[int]) -> bool:
    """Whether a shape without unknowns is one of those that a model declares."""
    return len(declared) == len(sizes) and all(
        not isinstance(wanted, int) or wanted == size for wanted, size in zip(declared, sizes, strict=True)
    )
