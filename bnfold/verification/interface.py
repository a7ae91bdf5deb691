"""What a model takes and gives, and whether two models take and give the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from bnfold.errors import ModelError

Dimensions = tuple[int | str | None, ...]


@dataclass(frozen=True)
class Port:
    """An input or output.

    Attributes:
        name: its name.
        dtype: its data type as ONNX spells it; None where the model does not tell.
        shape: each dimension an int, a symbolic name, or None; None as a whole where unknown.
    """

    name: str
    dtype: str | None
    shape: Dimensions | None

    @classmethod
    def of(cls, value: ir.Value) -> Port:
        """What the model says of a value."""
        shape = None if value.shape is None else tuple(_dimension(size) for size in value.shape)
        return cls(str(value.name), None if value.dtype is None else value.dtype.name, shape)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Port:
        """Read what :meth:`to_json` wrote.

        Raises:
            KeyError, TypeError: the document is not of that form.
        """
        shape = document["shape"]
        return cls(document["name"], document["dtype"], None if shape is None else tuple(shape))

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dict."""
        return {"name": self.name, "dtype": self.dtype, "shape": None if self.shape is None else list(self.shape)}


def _dimension(size: int | ir.SymbolicDim) -> int | str | None:
    if isinstance(size, int):
        return int(size)
    return None if size.value is None else str(size.value)


@dataclass(frozen=True)
class Interface:
    """What a caller must feed, and what comes out.

    Attributes:
        inputs: those without a default value.
        outputs: all of them.
    """

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]

    @classmethod
    def of(cls, model: ir.Model) -> Interface:
        """The interface of a model.

        Raises:
            ModelError: an output is not a tensor.
        """
        graph = model.graph
        for value in graph.outputs:
            if value.type is not None and not isinstance(value.type, ir.TensorType):
                raise ModelError(
                    f"output {value.name!r} is not a tensor but {_kind(value.type)}; bnfold verifies models on tensors"
                )
        required = (value for value in graph.inputs if value.name not in graph.initializers)
        return cls(tuple(map(Port.of, required)), tuple(map(Port.of, graph.outputs)))


def _kind(declared: ir.TypeProtocol) -> str:
    names = {ir.SequenceType: "a sequence", ir.OptionalType: "an optional value", ir.SparseTensorType: "a sparse one"}
    return names.get(type(declared), "of another type")


def check_interfaces(reference: Interface, candidate: Interface) -> None:
    """Require both models to take and give the same.

    Symbolic dimensions may have other names, an output's declared shape may be more or less precise, and an input
    that has a default value may be missing.

    Raises:
        ModelError: names, types or shapes differ.
    """
    _check("input", reference.inputs, candidate.inputs, strict=True)
    _check("output", reference.outputs, candidate.outputs, strict=False)


def _check(what: str, ours: Sequence[Port], theirs: Sequence[Port], *, strict: bool) -> None:
    names, others = [port.name for port in ours], {port.name: port for port in theirs}
    if set(names) != set(others):
        raise ModelError(
            f"the models have different {what}s: {', '.join(names) or 'none'} in the reference, "
            f"{', '.join(others) or 'none'} in the candidate"
        )
    for port in ours:
        other = others[port.name]
        if None not in (port.dtype, other.dtype) and port.dtype != other.dtype:
            raise ModelError(
                f"{what} {port.name!r} has the type {port.dtype} in the reference and {other.dtype} in the candidate"
            )
        if not _fits(port.shape, other.shape, strict=strict):
            raise ModelError(
                f"{what} {port.name!r} has the shape {_shown(port.shape)} in the reference "
                f"and {_shown(other.shape)} in the candidate"
            )


def _shown(shape: Dimensions | None) -> str:
    return "of unknown rank" if shape is None else "[" + ",".join("?" if d is None else str(d) for d in shape) + "]"


def _fits(one: Dimensions | None, other: Dimensions | None, *, strict: bool) -> bool:
    if one is None or other is None:
        return not strict or one is other
    if len(one) != len(other):
        return False
    for a, b in zip(one, other, strict=True):
        fixed = isinstance(a, int), isinstance(b, int)
        if all(fixed) and a != b:
            return False
        if strict and fixed[0] != fixed[1]:
            return False
    return True
