"""One set of inputs that every candidate takes: the same names, types, shapes and numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnfold.draws import draw, fits, integer_limits, stream
from bnfold.errors import InputError, ModelError

#: numpy dtypes that ONNX Runtime's ``run`` takes and for which random numbers make sense.
SUPPORTED = frozenset(
    ["float16", "float32", "float64", "bool"]
    + [f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)]
)

#: No input holds more: they are drawn in float64, where so many take 8 GiB.
_MOST_NUMBERS = 1 << 30


@dataclass(frozen=True)
class InputSpec:
    """An input as a model declares it.

    Attributes:
        name: the input's name.
        dtype: its numpy dtype, for example ``float32``.
        shape: its sizes, None where the model leaves one open.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...]

    def __str__(self) -> str:
        sizes = ", ".join("?" if size is None else str(size) for size in self.shape)
        return f"{self.name} {self.dtype}[{sizes}]"


@dataclass(frozen=True)
class Feed:
    """An input with every size settled."""

    name: str
    dtype: str
    shape: tuple[int, ...]


def merge_specs(declared: Mapping[str, Sequence[InputSpec]]) -> tuple[InputSpec, ...]:
    """The inputs that every candidate takes.

    A size that one model leaves open and another fixes is fixed.

    Args:
        declared: the inputs of each candidate, by its label; the first is what the others are held against.

    Raises:
        ModelError: two candidates differ in an input's name, dtype, rank or a size that both fix.
    """
    (first, specs), *others = declared.items()
    merged = {spec.name: spec for spec in specs}
    for label, theirs in others:
        names = {spec.name for spec in theirs}
        if names != set(merged):
            raise ModelError(
                f"{label} takes the inputs {_listed(names)} and {first} takes {_listed(merged)}; "
                "only models with the same inputs can be compared"
            )
        for spec in theirs:
            merged[spec.name] = _merge(first, merged[spec.name], label, spec)
    return tuple(merged.values())


def _merge(first: str, ours: InputSpec, label: str, theirs: InputSpec) -> InputSpec:
    compatible = (
        ours.dtype == theirs.dtype
        and len(ours.shape) == len(theirs.shape)
        and all(None in (a, b) or a == b for a, b in zip(ours.shape, theirs.shape, strict=True))
    )
    if not compatible:
        raise ModelError(
            f"{label} takes the input {theirs} and {first} takes {ours}; "
            "only models with the same inputs can be compared"
        )
    shape = tuple(b if a is None else a for a, b in zip(ours.shape, theirs.shape, strict=True))
    return InputSpec(ours.name, ours.dtype, shape)


def _listed(names: Sequence[str] | set[str] | Mapping[str, object]) -> str:
    return ", ".join(sorted(names)) or "(none)"


def settle_shapes(
    specs: Sequence[InputSpec], batch: int | None, given: Mapping[str, tuple[int, ...]]
) -> tuple[Feed, ...]:
    """Every size settled: what the model fixes, then ``batch``, then ``given``, then a batch of 1.

    Args:
        specs: the inputs.
        batch: size of each open first dimension, or None if the user left it to the model.
        given: shapes that the user gave, by input name.

    Raises:
        InputError: a shape was given for an input that does not exist, or contradicts what the model fixes; a
            batch was given for models that fix theirs; a size is still open; or an input is larger than
            :data:`_MOST_NUMBERS`.
    """
    unknown = set(given) - {spec.name for spec in specs}
    if unknown:
        raise InputError(
            f"a shape was given for {_listed(unknown)}, which is not an input; "
            f"the inputs are {_listed({spec.name for spec in specs})}"
        )
    feeds = tuple(_settle(spec, batch, given.get(spec.name)) for spec in specs)
    if batch is not None and not any(feed.shape[:1] == (batch,) for feed in feeds):
        raise InputError(
            f"no input takes a batch of {batch}: the models fix their sizes to "
            f"{', '.join(str(spec) for spec in specs) or '(none)'}; leave the batch out, or use models with "
            "a dynamic first dimension"
        )
    largest = max(feeds, key=lambda feed: math.prod(feed.shape), default=None)
    if largest is not None and math.prod(largest.shape) > _MOST_NUMBERS:
        raise InputError(
            f"the input {largest.name} of shape {_sizes(largest.shape)} is too large; choose a smaller batch, or a "
            "smaller --input-shape"
        )
    return feeds


def _settle(spec: InputSpec, batch: int | None, given: tuple[int, ...] | None) -> Feed:
    if given is not None and not fits(spec.shape, given):
        raise InputError(f"the shape {_sizes(given)} does not fit the input {spec}")
    shape = list(spec.shape if given is None else given)
    if shape and spec.shape[0] is None and (batch is not None or given is None):
        shape[0] = 1 if batch is None else batch
    settled = tuple(size for size in shape if size is not None)
    if len(settled) != len(shape):
        example = ",".join("SIZE" if size is None else str(size) for size in shape)
        raise InputError(
            f"the input {spec} leaves a size open; give its shape with --input-shape {spec.name}={example}"
        )
    return Feed(spec.name, spec.dtype, settled)


def _sizes(shape: Sequence[int]) -> str:
    return ",".join(str(size) for size in shape)


def random_inputs(feeds: Sequence[Feed], seed: int) -> dict[str, NDArray[Any]]:
    """Random numbers for every input, the same in every process for the same seed.

    Floats are standard normal, ``uint8`` and ``int8`` use their whole range, booleans are fair, and wider
    integers are 0 or 1: they are mostly indices, of which only the first are sure to exist. Each input has a
    stream of its own, drawn from the seed and its name, so the order of the inputs does not matter.
    """
    return {feed.name: _random(feed, seed) for feed in feeds}


def _random(feed: Feed, seed: int) -> NDArray[Any]:
    dtype = np.dtype(feed.dtype)
    return draw(stream(seed, feed.name), dtype, feed.shape, integer_limits(dtype))
