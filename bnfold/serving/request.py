"""Requests and answers, whatever the protocol: pure values, and what makes a request a bad one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnfold.deployment.manifest import TensorSpec
from bnfold.deployment.repository import DeployedModel

Array = NDArray[Any]


class RequestError(Exception):
    """A request that cannot be answered through its own fault: HTTP 400, gRPC INVALID_ARGUMENT."""


class UnknownModelError(Exception):
    """No model of that name or version is served: HTTP 404, gRPC NOT_FOUND."""


class UnavailableError(Exception):
    """The server starts, stops or unloads the model: HTTP 503, gRPC UNAVAILABLE."""


class OverloadedError(Exception):
    """More requests at once than the server takes: HTTP 503, gRPC RESOURCE_EXHAUSTED."""


class TooLargeError(Exception):
    """More bytes than the server takes: HTTP 413, gRPC RESOURCE_EXHAUSTED."""


class ClientGoneError(Exception):
    """The client went before it had sent its request; nobody reads the answer."""


class RunError(Exception):
    """The model failed on a request that looked right: HTTP 500, gRPC INTERNAL."""


@dataclass(frozen=True)
class RequestedOutput:
    """An output that a request asks for.

    Attributes:
        name: which one.
        binary: as bytes rather than as a list of numbers; None is no wish.
    """

    name: str
    binary: bool | None = None


@dataclass(frozen=True, eq=False)
class Request:
    """One request for one model, found to be right.

    Attributes:
        id: what the client calls it; the answer repeats it.
        feeds: the inputs by name.
        outputs: what is asked for, in that order.
        rows: the size of the first dimension where the model batches, else 1.
    """

    id: str
    feeds: Mapping[str, Array]
    outputs: tuple[RequestedOutput, ...]
    rows: int


def checked_shape(spec: TensorSpec, datatype: object, shape: object) -> tuple[int, ...]:
    """The declared shape, if type and shape are ones that the model takes; no memory is taken for it yet.

    Raises:
        RequestError: the type is another than the model's, or the shape is none that the model takes.
    """
    if datatype != spec.datatype:
        raise RequestError(f"input {spec.name!r} is given as {_short(datatype)}; the model takes {spec.datatype}")
    if not isinstance(shape, Sequence) or isinstance(shape, str | bytes):
        raise RequestError(f"input {spec.name!r}: the shape must be a list of integers")
    # Zeros would make any other size free of charge, and what a model yields for them is not bounded by the body.
    if not all(isinstance(size, int) and not isinstance(size, bool) and size > 0 for size in shape):
        raise RequestError(f"input {spec.name!r}: the shape must be a list of integers above 0")
    wanted = protocol_shape(spec)
    if len(shape) != len(wanted) or any(want not in (-1, size) for size, want in zip(shape, wanted, strict=True)):
        raise RequestError(f"input {spec.name!r} has the shape {_short(list(shape))}; the model takes {wanted}, "
                           f"where -1 is any size")  # fmt: skip
    return tuple(shape)


def protocol_shape(spec: TensorSpec) -> list[int]:
    """The shape as the protocol writes it: -1 where a request chooses."""
    return [-1 if size is None else size for size in spec.shape]


def from_buffer(spec: TensorSpec, datatype: object, shape: object, data: bytes | memoryview) -> Array:
    """The tensor in ``data``, little-endian and row-major.

    Raises:
        RequestError: type, shape and number of bytes do not agree with each other or with the model.
    """
    sizes = checked_shape(spec, datatype, shape)
    count = math.prod(sizes)
    dtype = np.dtype(spec.dtype)
    if len(data) != count * dtype.itemsize:
        raise RequestError(
            f"input {spec.name!r}: {count} elements of {spec.datatype} are {count * dtype.itemsize} bytes, "
            f"the request holds {len(data)}"
        )
    values = np.frombuffer(data, dtype)
    if spec.datatype == "BOOL" and len(data) and values.view(np.uint8).max() > 1:
        raise RequestError(f"input {spec.name!r}: a byte of BOOL is 0 or 1")
    return np.require(values, requirements="A").reshape(sizes)  # behind JSON, numbers may start at any byte


def from_values(spec: TensorSpec, datatype: object, shape: object, data: object) -> Array:
    """The tensor in a list of numbers or truth values, flat or nested, in row-major order.

    Raises:
        RequestError: type, shape and values do not agree with each other or with the model.
    """
    sizes = checked_shape(spec, datatype, shape)
    count = math.prod(sizes)
    if not isinstance(data, Sequence) or isinstance(data, str | bytes):
        raise RequestError(f"input {spec.name!r}: data must be a list")
    values = _numbers(spec, data)
    if values.size != count or (values.ndim > 1 and values.shape != sizes):
        raise RequestError(
            f"input {spec.name!r}: the shape {list(sizes)} does not fit data of the shape {list(values.shape)}"
        )
    return values.reshape(sizes)


def _numbers(spec: TensorSpec, data: Sequence[object]) -> Array:
    try:
        values: Array = np.array(data)
    except (ValueError, OverflowError, RecursionError) as error:
        raise RequestError(f"input {spec.name!r}: data must be a list of numbers, flat or of equal lists") from error
    dtype = np.dtype(spec.dtype)
    if dtype == np.uint64 and values.dtype.kind == "f":  # numpy makes floats of small integers beside large ones
        listed = np.array(data, np.object_)
        if all(type(value) is int and 0 <= value < 1 << 64 for value in listed.ravel().tolist()):
            return listed.astype(np.uint64)
    wanted = {"b": "b", "u": "iu", "i": "iu", "f": "iuf"}[dtype.kind]
    if values.dtype.kind not in wanted:
        kind = {"b": "true and false", "u": "integers", "i": "integers", "f": "numbers"}[dtype.kind]
        raise RequestError(f"input {spec.name!r}: data of {spec.datatype} must be {kind} in its range")
    with np.errstate(over="ignore"):
        cast = values.astype(dtype)
    exact = np.isfinite(cast).all() if dtype.kind == "f" else np.array_equal(cast, values)
    if not exact:
        raise RequestError(f"input {spec.name!r}: a value is out of the range of {spec.datatype}")
    return cast


def checked(
    model: DeployedModel, request_id: str, feeds: Sequence[tuple[str, Array]], outputs: Sequence[RequestedOutput]
) -> Request:
    """The request, if it names each input of the model once and asks for outputs that there are.

    Raises:
        RequestError: an input is missing, given twice or too long, or an output is unknown or asked for twice.
    """
    given = dict(feeds)
    if len(given) != len(feeds):
        twice = next(name for name, _ in feeds if [n for n, _ in feeds].count(name) > 1)
        raise RequestError(f"input {twice!r} is given twice")
    missing = [repr(tensor.name) for tensor in model.inputs if tensor.name not in given]
    if missing:
        raise RequestError(f"the model {model.name} needs the input {', '.join(missing)} as well")
    names = [output.name for output in outputs]
    for name in names:
        if name not in {output.name for output in model.outputs}:
            known = ", ".join(repr(output.name) for output in model.outputs)
            raise RequestError(f"the model {model.name} has no output {_short(name)}; it has {known}")
        if names.count(name) > 1:
            raise RequestError(f"output {name!r} is asked for twice")
    return Request(
        id=request_id,
        feeds=given,
        outputs=tuple(outputs),
        rows=_rows(model, given),
    )


def known_input(model: DeployedModel, name: object) -> TensorSpec:
    """The model's input of that name.

    Raises:
        RequestError: it has none.
    """
    for tensor in model.inputs:
        if tensor.name == name:
            return tensor
    known = ", ".join(repr(tensor.name) for tensor in model.inputs)
    raise RequestError(f"the model {model.name} has no input {_short(name)}; it takes {known}")


def _rows(model: DeployedModel, feeds: Mapping[str, Array]) -> int:
    if not model.serving.max_batch:
        return 1
    sizes = {len(values) for values in feeds.values()}
    if len(sizes) > 1:
        raise RequestError(f"the inputs have batches of {', '.join(map(str, sorted(sizes)))}; one request is one batch")
    (rows,) = sizes
    if rows > model.serving.max_batch:
        raise RequestError(
            f"a batch of {rows} is more than the {model.serving.max_batch} that the model {model.name} takes"
        )
    return rows


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
