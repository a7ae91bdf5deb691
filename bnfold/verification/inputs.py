"""What a verification feeds to the models, drawn by seed or chosen to provoke."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from bnfold.draws import draw, stream
from bnfold.verification.sizes import BATCHES, USUAL, Sizes
from bnfold.verification.specs import InputSpec

Array = NDArray[Any]
FeedKind = Literal["random", "zeros", "constant", "large", "tiny", "denormal", "user"]

#: Sets of inputs that provoke, in the order in which they are run.
PROVOKING: tuple[FeedKind, ...] = ("zeros", "constant", "large", "tiny", "denormal")

#: What random numbers are multiplied by; float16 ends at 65504, and at 6e-5 its numbers begin to lose digits.
_LARGE, _LARGE_IN_FLOAT16 = 1000.0, 16.0
_TINY, _TINY_IN_FLOAT16 = 2.0**-20, 2.0**-8


@dataclass(frozen=True)
class Feed:
    """One set of inputs.

    Attributes:
        name: how it is called in reports.
        kind: ``random`` and ``user`` feeds are alike among themselves; their errors may be pooled.
        values: by input name.
        optional: whether it may be left out where the reference itself does not run on it.
    """

    name: str
    kind: FeedKind
    values: Mapping[str, Array]
    optional: bool = False


def drawn_feeds(
    specs: Sequence[InputSpec],
    *,
    samples: int,
    seed: int,
    batches: Sequence[int] | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    usual: tuple[int, int] = USUAL[0],
) -> list[Feed]:
    """Random inputs of ordinary sizes, those that provoke, and random ones of other sizes.

    Floating-point inputs are standard normal; the large ones are 1000 times that (16 times in float16, whose range
    ends at 65504), the tiny ones ``2^−20`` (``2^−8``) and the denormal ones below the smallest normal number. Each set
    of inputs has random numbers of its own, so that leaving one out does not change the others.

    Args:
        specs: the inputs.
        samples: random feeds for each ordinary batch size.
        seed: of the random numbers.
        batches: what an open first dimension is set to; None for 1, 3 and a larger one.
        shapes: full shapes by input name; they win over the model's open dimensions.
        usual: see :class:`~bnfold.verification.sizes.Sizes`.

    Raises:
        InputError: a shape contradicts the model, or is needed and missing.
    """
    if not specs:
        return [Feed("no inputs", "random", {})]
    sizes = Sizes(specs, shapes, usual)
    ordinary = list(sizes.usual(BATCHES if batches is None else batches))
    feeds = [
        _feed(_named("random", str(sample + 1), place.label), "random", specs, place.shapes, seed)
        for place in ordinary
        for sample in range(samples)
    ]
    kinds = PROVOKING if any(spec.dtype.is_floating_point() for spec in specs) else PROVOKING[:3]
    feeds += [_feed(kind, kind, specs, ordinary[0].shapes, seed, optional=True) for kind in kinds]
    feeds += [
        _feed(_named("random", place.label), "random", specs, place.shapes, seed, optional=True)
        for place in sizes.others(batch=batches is None)
    ]
    return list(_unlike(feeds))


def _named(*parts: str) -> str:
    return " ".join(part for part in parts if part)


def _feed(
    name: str,
    kind: FeedKind,
    specs: Sequence[InputSpec],
    shapes: Mapping[str, tuple[int, ...]],
    seed: int,
    *,
    optional: bool = False,
) -> Feed:
    values = {spec.name: _values(spec, shapes[spec.name], kind, stream(seed, name, spec.name)) for spec in specs}
    return Feed(name, kind, values, optional)


def _values(spec: InputSpec, shape: tuple[int, ...], kind: FeedKind, random: np.random.Generator) -> Array:
    dtype = spec.dtype.numpy()
    floating = spec.dtype.is_floating_point()
    lowest, beyond = spec.limits
    if kind == "zeros":
        return np.zeros(shape, dtype=dtype)
    if kind == "constant":
        return np.full(shape, 1 if floating or lowest <= 1 < beyond else lowest, dtype=dtype)
    if kind == "large" and spec.dtype.is_integer():
        return np.asarray(random.choice((lowest, beyond - 1), shape)).astype(dtype)
    drawn = draw(random, dtype, shape, spec.limits)
    if kind == "random" or not floating:
        return drawn
    return np.asarray(drawn.astype(np.float64) * _factor(kind, dtype)).astype(dtype)


def _factor(kind: FeedKind, dtype: np.dtype[Any]) -> float:
    half = dtype.itemsize < 4 and dtype != ml_dtypes.bfloat16
    if kind == "large":
        return _LARGE_IN_FLOAT16 if half else _LARGE
    if kind == "tiny":
        return _TINY_IN_FLOAT16 if half else _TINY
    smallest = ml_dtypes.finfo(dtype).smallest_normal  # type: ignore[no-untyped-call]
    return float(smallest) / 8  # standard normal numbers rarely reach 8


def _unlike(feeds: Sequence[Feed]) -> Iterator[Feed]:
    """The sets of inputs without those that repeat an earlier one: provoking ones are alike for booleans, say."""
    seen: list[Feed] = []
    for feed in feeds:
        if feed.kind == "random" or not any(_equal(feed, other) for other in seen if other.kind != "random"):
            seen.append(feed)
            yield feed


def _equal(one: Feed, other: Feed) -> bool:
    return all(np.array_equal(value, other.values[name]) for name, value in one.values.items())
