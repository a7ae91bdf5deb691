"""Sizes for the dimensions that a model leaves open.

Open dimensions of the same name are one, in whatever inputs they stand. The first dimension of an input is the batch;
the second of images (rank 4 and up) are channels, further ones sides; all others are lengths of sequences.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal

from bnfold.draws import fits
from bnfold.errors import InputError
from bnfold.verification.specs import InputSpec, listed, shown

Role = Literal["batch", "channels", "side", "length"]

#: Batch sizes of a model that leaves the batch open.
BATCHES = (1, 3)

#: What sides and lengths are set to; a later pair is for models that do not run at an earlier one.
USUAL = ((64, 16), (224, 128), (32, 1))

_CHANNELS = 3
_LARGE_BATCH = 16

#: Sizes that differ from each other, so that no two axes can be taken for one another.
_ODD = {"side": range(33, 1000, 2), "length": range(7, 1000, 2)}
_LARGE = {"side": (128, 96, *range(160, 1000, 32)), "length": (40, 56, *range(72, 1000, 16))}

#: A set of inputs of other sizes than the usual ones holds no more numbers than this, or it would take too long.
_MOST_NUMBERS = 1 << 18

#: No set of inputs holds more: twice as many take 16 GiB of memory in float64.
_LIMIT = 1 << 30


@dataclass(frozen=True)
class Dimension:
    """A dimension that a model leaves open.

    Attributes:
        name: its symbolic name, or ``input[axis]`` where it has none.
        role: what it counts.
    """

    name: str
    role: Role


@dataclass(frozen=True)
class Shapes:
    """A concrete shape for every input.

    Attributes:
        label: what is special about them; empty where nothing is open.
        shapes: by input name.
    """

    label: str
    shapes: Mapping[str, tuple[int, ...]]


def open_dimensions(specs: Iterable[InputSpec]) -> list[Dimension]:
    """The open dimensions in the order of the inputs; one that is a batch anywhere is the batch everywhere."""
    found: dict[str, Dimension] = {}
    for spec in specs:
        for axis, size in enumerate(spec.shape or ()):
            if isinstance(size, int):
                continue
            name, role = _name(spec, axis), _role(spec, axis)
            if name not in found or role == "batch":
                found[name] = Dimension(name, role)
    return list(found.values())


def _name(spec: InputSpec, axis: int) -> str:
    size = spec.shape[axis] if spec.shape is not None else None
    return size if isinstance(size, str) else f"{spec.name}[{axis}]"


def _role(spec: InputSpec, axis: int) -> Role:
    if axis == 0:
        return "batch"
    if spec.shape is None or len(spec.shape) < 4:
        return "length"
    return "channels" if axis == 1 else "side"


class Sizes:
    """What open dimensions may be set to.

    Args:
        specs: the inputs.
        given: full shapes by input name; what they say of an open dimension holds for the other inputs too.
        usual: side and length of an ordinary set of inputs.

    Raises:
        InputError: a shape contradicts the model, or is needed and missing.
    """

    def __init__(
        self,
        specs: Sequence[InputSpec],
        given: Mapping[str, Sequence[int]] | None = None,
        usual: tuple[int, int] = USUAL[0],
    ) -> None:
        self._specs = specs
        self._given = {name: tuple(shape) for name, shape in (given or {}).items()}
        for name in self._given:
            if name not in {spec.name for spec in specs}:
                raise InputError(f"there is no input {name!r}; the model has {listed(specs)}")
        for spec in specs:
            _check(spec, self._given.get(spec.name))
        pinned = {
            _name(spec, axis): self._given[spec.name][axis]
            for spec in specs
            if spec.name in self._given
            for axis, size in enumerate(spec.shape or ())
            if not isinstance(size, int)
        }
        self._open = [dimension for dimension in open_dimensions(specs) if dimension.name not in pinned]
        defaults = {"batch": 1, "channels": _CHANNELS, "side": usual[0], "length": usual[1]}
        self._usual = {dimension.name: defaults[dimension.role] for dimension in self._open} | pinned

    @property
    def has_batch(self) -> bool:
        """Whether a batch size is open."""
        return any(dimension.role == "batch" for dimension in self._open)

    @property
    def has_others(self) -> bool:
        """Whether a side or a length is open."""
        return any(dimension.role in ("side", "length") for dimension in self._open)

    def usual(self, batches: Sequence[int] = BATCHES) -> Iterator[Shapes]:
        """Ordinary sizes, at each batch size; once where the batch is not open."""
        for batch in batches if self.has_batch else (1,):
            yield self._at({}, batch, f"batch {batch}" if self.has_batch else "")

    def others(self, *, batch: bool = True) -> Iterator[Shapes]:
        """Further sizes: a large batch (unless told otherwise), and sides and lengths that are 1, odd and large."""
        if self.has_batch and batch:
            size = min(_LARGE_BATCH, _MOST_NUMBERS // max(_numbers(self._at({}, 1, "")), 1))
            if size > max(BATCHES):
                yield self._at({}, size, f"batch {size}")
        if not self.has_others:
            return
        varied = [dimension for dimension in self._open if dimension.role in ("side", "length")]
        ones = {dimension.name: 1 for dimension in varied}
        for sizes, count in ((ones, 1), (_picked(varied, _ODD), max(BATCHES)), (_picked(varied, _LARGE), 1)):
            if sizes == {name: self._usual[name] for name in sizes}:
                continue
            label = " ".join(f"{name}={size}" for name, size in sizes.items())
            shapes = self._at(sizes, count, f"{label} batch {count}" if self.has_batch and count > 1 else label)
            if _numbers(shapes) <= _MOST_NUMBERS or sizes is ones:
                yield shapes

    def _at(self, sizes: Mapping[str, int], batch: int, label: str) -> Shapes:
        counts = {dimension.name: batch for dimension in self._open if dimension.role == "batch"}
        settled = {**self._usual, **counts, **sizes}
        shapes = Shapes(label, {spec.name: self._concrete(spec, settled) for spec in self._specs})
        if _numbers(shapes) > _LIMIT:
            name, shape = max(shapes.shapes.items(), key=lambda item: prod(item[1]))
            raise InputError(
                f"input {name!r} of shape {shown(shape)} is more than bnfold makes up at once (2^30 numbers); "
                "give a smaller shape with --input-shape, or your own data with --inputs"
            )
        return shapes

    def _concrete(self, spec: InputSpec, settled: Mapping[str, int]) -> tuple[int, ...]:
        if spec.name in self._given:
            return self._given[spec.name]
        return tuple(
            size if isinstance(size, int) else settled[_name(spec, axis)] for axis, size in enumerate(spec.shape or ())
        )


def _picked(varied: Sequence[Dimension], choices: Mapping[str, Sequence[int]]) -> dict[str, int]:
    streams = {role: iter(sizes) for role, sizes in choices.items()}
    return {dimension.name: next(streams[dimension.role]) for dimension in varied}


def _numbers(shapes: Shapes) -> int:
    return sum(prod(shape) for shape in shapes.shapes.values())


def _check(spec: InputSpec, given: tuple[int, ...] | None) -> None:
    if given is None and spec.shape is None:
        raise InputError(
            f"the model does not declare the shape of input {spec.name!r}; "
            f"give it with --input-shape {spec.name}=1,3,224,224"
        )
    if given is not None and spec.shape is not None and not fits(spec.shape, given):
        raise InputError(
            f"the shape {shown(given)} does not fit input {spec.name!r}, which is {shown(spec.shape)} in the model"
        )
