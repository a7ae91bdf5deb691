"""What a verification feeds to the models: drawn by seed, chosen to provoke, or brought by the user."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Literal
from zipfile import BadZipFile

import numpy as np
import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from bnfold.errors import DataError, InputError, ModelError
from bnfold.files import StrPath

Array = NDArray[Any]
FeedKind = Literal["random", "zeros", "constant", "large", "user"]

#: What stands in for a dimension that is dynamic and that nobody told: axes from 2 on of images and of sequences.
_IMAGE_SIDE = 64
_SEQUENCE = 16
_CHANNELS = 3


@dataclass(frozen=True)
class InputSpec:
    """One input of a graph.

    Attributes:
        name: the graph input's name.
        dtype: its data type.
        shape: each dimension an int, the name of a symbolic one, or None; None as a whole where unknown.
        limit: integers are drawn below this.
    """

    name: str
    dtype: ir.DataType
    shape: tuple[int | str | None, ...] | None
    limit: int = 2


@dataclass(frozen=True)
class Feed:
    """One set of inputs.

    Attributes:
        name: how it is called in reports.
        kind: ``random`` and ``user`` feeds are alike among themselves; their errors may be pooled.
        values: by input name.
    """

    name: str
    kind: FeedKind
    values: Mapping[str, Array]


def input_specs(model: ir.Model) -> list[InputSpec]:
    """The inputs that a caller must feed: an initializer that is an input too has a value already.

    Raises:
        ModelError: an input is not a tensor of numbers.
    """
    specs = []
    for value in model.graph.inputs:
        if value.name in model.graph.initializers:
            continue
        if value.dtype is None or not isinstance(value.type, ir.TensorType):
            raise ModelError(f"input {value.name!r} is not a tensor of a known type; bnfold verifies models on tensors")
        if value.dtype in (ir.DataType.STRING, ir.DataType.COMPLEX64, ir.DataType.COMPLEX128):
            raise ModelError(f"input {value.name!r} has the type {value.dtype.name}, which bnfold cannot draw")
        specs.append(InputSpec(str(value.name), value.dtype, _dimensions(value), _limit(value)))
    return specs


def _dimensions(value: ir.Value) -> tuple[int | str | None, ...] | None:
    if value.shape is None:
        return None
    return tuple(int(d) if isinstance(d, int) else (str(d.value) if d.value is not None else None) for d in value.shape)


def _limit(value: ir.Value) -> int:
    """A bound for random integers: the rows of an embedding, all of an 8-bit type, else zeros and ones."""
    rows = [
        size
        for node, index in value.uses()
        if node.op_type == "Gather" and index == 1 and node.inputs[0] is not None
        for size in [_gathered(node)]
        if size is not None
    ]
    if rows:
        return min(rows)
    return {ir.DataType.UINT8: 256, ir.DataType.INT8: 128}.get(value.dtype or ir.DataType.UNDEFINED, 2)


def _gathered(node: ir.Node) -> int | None:
    data = node.inputs[0]
    if data is None or data.shape is None:
        return None
    axis = node.attributes.get_int("axis", 0)
    size = data.shape[axis if axis is not None else 0]
    return size if isinstance(size, int) else None


def drawn_feeds(
    specs: Sequence[InputSpec],
    *,
    samples: int,
    seed: int,
    batches: Sequence[int] = (1, 3),
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> list[Feed]:
    """Random feeds, and one each of all zeros, all ones and large magnitude.

    Floating-point inputs are standard normal; the large ones are 1000 times that (16 times for float16, whose range
    ends at 65504). Where no input has a dynamic first dimension there is one batch size: the model's own.

    Args:
        specs: the inputs.
        samples: random feeds for each batch size.
        seed: of the random numbers.
        batches: what a dynamic first dimension is set to.
        shapes: full shapes by input name; they win over the model's dynamic dimensions.

    Raises:
        InputError: a shape contradicts the model, or is needed and missing.
    """
    given = shapes or {}
    for name in given:
        if name not in {spec.name for spec in specs}:
            raise InputError(f"there is no input {name!r}; the model has {_listed(specs)}")
    dynamic = any(spec.name not in given and spec.shape and not isinstance(spec.shape[0], int) for spec in specs)
    sizes = tuple(batches) if dynamic else (1,)
    feeds = []
    random = np.random.default_rng(seed)
    for batch in sizes:
        concrete = {spec.name: concrete_shape(spec, batch, given.get(spec.name)) for spec in specs}
        label = f" batch {batch}" if dynamic else ""
        for sample in range(samples):
            values = {spec.name: _normal(spec, concrete[spec.name], random) for spec in specs}
            feeds.append(Feed(f"random {sample + 1}{label}", "random", values))
    concrete = {spec.name: concrete_shape(spec, sizes[0], given.get(spec.name)) for spec in specs}
    kinds: tuple[FeedKind, ...] = ("zeros", "constant", "large")
    for kind in kinds:
        values = {spec.name: _provoking(spec, concrete[spec.name], kind, random) for spec in specs}
        feeds.append(Feed(kind, kind, values))
    return feeds


def concrete_shape(spec: InputSpec, batch: int, given: Sequence[int] | None = None) -> tuple[int, ...]:
    """A shape without unknowns.

    A dynamic first dimension is the batch; a dynamic second one of images counts as three channels; further ones
    are 64 for images (rank 4 and up) and 16 for sequences.

    Raises:
        InputError: the given shape contradicts the model, or the model does not even tell the rank.
    """
    if spec.shape is None:
        if given is None:
            raise InputError(
                f"the model does not declare the shape of input {spec.name!r}; "
                f"give it with --input-shape {spec.name}=1,3,224,224"
            )
        return tuple(given)
    if given is not None:
        fits = len(given) == len(spec.shape) and all(
            not isinstance(d, int) or d == g for d, g in zip(spec.shape, given, strict=True)
        )
        if not fits:
            raise InputError(
                f"the shape {_shown(given)} does not fit input {spec.name!r}, "
                f"which is {_shown(spec.shape)} in the model"
            )
        return tuple(given)
    rank = len(spec.shape)

    def size(axis: int) -> int:
        if axis == 0:
            return batch
        if rank >= 4:
            return _CHANNELS if axis == 1 else _IMAGE_SIDE
        return _SEQUENCE

    return tuple(d if isinstance(d, int) else size(axis) for axis, d in enumerate(spec.shape))


def _normal(spec: InputSpec, shape: tuple[int, ...], random: np.random.Generator) -> Array:
    if spec.dtype.is_floating_point():
        return random.standard_normal(shape).astype(spec.dtype.numpy())
    if spec.dtype == ir.DataType.BOOL:
        return random.integers(0, 2, shape).astype(np.bool_)
    low = -128 if spec.dtype == ir.DataType.INT8 else 0
    return random.integers(low, spec.limit, shape).astype(spec.dtype.numpy())


def _provoking(spec: InputSpec, shape: tuple[int, ...], kind: FeedKind, random: np.random.Generator) -> Array:
    dtype = spec.dtype.numpy()
    if kind == "zeros":
        return np.zeros(shape, dtype=dtype)
    if kind == "constant":
        return np.ones(shape, dtype=dtype) if spec.limit > 1 else np.zeros(shape, dtype=dtype)
    drawn = _normal(spec, shape, random)
    if not spec.dtype.is_floating_point():
        return drawn
    factor = 16.0 if spec.dtype == ir.DataType.FLOAT16 else 1000.0
    return (drawn.astype(np.float64) * factor).astype(dtype)


def user_feeds(path: StrPath, specs: Sequence[InputSpec]) -> list[Feed]:
    """The user's own inputs.

    Args:
        path: an ``.npz`` keyed by input name, a ``.npy`` for a model of one input, or a folder of those, of
            ``input_0.pb`` … as ONNX test data has them, or of folders of such.
        specs: the inputs of the model.

    Raises:
        DataError: the data is missing, damaged, or does not fit the model.
    """
    source = Path(path)
    if not source.exists():
        raise DataError(f"{source} does not exist")
    if not source.is_dir():
        return [_checked(_read_file(source, specs), source, specs)]
    feeds = [_checked(values, origin, specs) for origin, values in _read_folder(source, specs)]
    if not feeds:
        raise DataError(f"{source} holds no inputs; put .npz or .npy files there, or ONNX test data input_0.pb")
    return feeds


def _read_folder(folder: Path, specs: Sequence[InputSpec]) -> Iterator[tuple[Path, dict[str, Array]]]:
    if (folder / "input_0.pb").exists():
        yield folder, _read_protobufs(folder, specs)
    for file in sorted(folder.iterdir()):
        if file.suffix in (".npz", ".npy"):
            yield file, _read_file(file, specs)
        elif (file / "input_0.pb").exists():
            yield file, _read_protobufs(file, specs)


def _read_file(file: Path, specs: Sequence[InputSpec]) -> dict[str, Array]:
    if file.suffix not in (".npz", ".npy"):
        raise DataError(f"{file} is neither .npz nor .npy; save the inputs with numpy.savez(FILE, NAME=array)")
    try:
        # Never pickles: they run code.
        with file.open("rb") as stream:
            content = np.load(stream, allow_pickle=False)
            if not isinstance(content, np.ndarray):
                arrays = {name: content[name] for name in content.files}
                if len(arrays) == 1 and len(specs) == 1 and "arr_0" in arrays:
                    return {specs[0].name: arrays["arr_0"]}
                return arrays
    except (ValueError, EOFError, BadZipFile) as error:
        raise DataError(f"{file} is damaged or holds Python objects; bnfold reads plain arrays only") from error
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror or error}") from error
    if len(specs) != 1:
        raise DataError(
            f"{file} holds one array, and the model has the inputs {_listed(specs)}; "
            "save them with numpy.savez(FILE, NAME=array, …)"
        )
    return {specs[0].name: content}


def _read_protobufs(folder: Path, specs: Sequence[InputSpec]) -> dict[str, Array]:
    values = {}
    for index, spec in enumerate(specs):
        file = folder / f"input_{index}.pb"
        if not file.exists():
            raise DataError(f"{file} is missing: the model has the inputs {_listed(specs)}")
        tensor = onnx.TensorProto()
        try:
            tensor.ParseFromString(file.read_bytes())
            values[spec.name] = np.asarray(ir.serde.deserialize_tensor(tensor).numpy())
        except (DecodeError, ValueError, TypeError) as error:
            raise DataError(f"{file} is not an ONNX tensor, or is damaged") from error
    return values


def _checked(values: Mapping[str, Array], source: Path, specs: Sequence[InputSpec]) -> Feed:
    names = [spec.name for spec in specs]
    if set(values) != set(names):
        raise DataError(f"{source} holds {', '.join(sorted(values)) or 'nothing'}; the model has {_listed(specs)}")
    for spec in specs:
        array = values[spec.name]
        if array.dtype != spec.dtype.numpy():
            raise DataError(
                f"{source}: {spec.name!r} has the type {array.dtype}, and the model wants "
                f"{spec.dtype.numpy()}; convert it with .astype"
            )
        fits = spec.shape is None or (
            array.ndim == len(spec.shape)
            and all(not isinstance(d, int) or d == n for d, n in zip(spec.shape, array.shape, strict=True))
        )
        if not fits:
            raise DataError(
                f"{source}: {spec.name!r} has the shape {_shown(array.shape)}, "
                f"and the model wants {_shown(spec.shape or ())}"
            )
        if prod(array.shape) == 0:
            raise DataError(f"{source}: {spec.name!r} is empty (shape {_shown(array.shape)})")
    return Feed(source.name, "user", {name: values[name] for name in names})


def _listed(specs: Sequence[InputSpec]) -> str:
    return ", ".join(spec.name for spec in specs) or "no inputs"


def _shown(shape: Sequence[int | str | None]) -> str:
    return "(" + ", ".join("?" if d is None else str(d) for d in shape) + ")"
