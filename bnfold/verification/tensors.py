"""All tensors of a model side by side with what they should be, and the first that departs from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bnfold.verification.inputs import Feed
from bnfold.verification.metrics import deviation, is_float, scale_of
from bnfold.verification.oracle import Oracle
from bnfold.verification.subject import Subject

Array = NDArray[Any]

#: Operators by the beginning of their names whose results may be sequences, or nothing.
_NOT_TENSORS = ("Optional", "Sequence", "SplitToSequence", "ZipMap")


def all_in_float64(oracle: Oracle, feed: Feed) -> dict[str, Array]:
    """Every tensor of a model's main graph in float64.

    Raises:
        NotInFloat64Error: the model does not run in float64.
    """
    seen: dict[str, Array] = {}

    def see(name: str, value: Any) -> None:
        if isinstance(value, np.ndarray | np.generic):
            seen[name] = np.asarray(value)

    oracle.watch(feed.values, see)
    return seen


def all_in_runtime(subject: Subject, feed: Feed) -> dict[str, Array]:
    """Every tensor of a model's main graph in ONNX Runtime with optimizations off.

    Raises:
        ModelError: ONNX Runtime does not run the model that way.
    """
    model = subject.model.clone()
    outputs = set(model.graph.outputs)
    nodes = (node for node in model.graph if not node.op_type.startswith(_NOT_TENSORS))
    model.graph.outputs.extend(v for node in nodes for v in node.outputs if v.name and v not in outputs)
    exposed = Subject(subject.role, model)
    return exposed.run(exposed.plain_session()[0], feed.values)


def first_departure(
    model: ir.Model, expected: Mapping[str, Array], found: Mapping[str, Array], tolerance: float
) -> tuple[ir.Value, float] | None:
    """The first tensor that departs, with its error relative to scale; None where none does.

    A tensor of which another is made that agrees does not count: a fold may have changed it, and made up for it.

    Args:
        model: whose tensors they are.
        expected: tensors by name.
        found: the same.
        tolerance: how much they may differ, relative to scale.
    """
    values = [value for node in model.graph for value in node.outputs if value.name]
    errors = {
        value: _error(expected[name], found[name])
        for value in values
        if (name := str(value.name)) in expected and name in found
    }
    healed: set[ir.Value] = set()
    work = [value for value, error in errors.items() if error <= tolerance]
    while work:
        value = work.pop()
        if value not in healed:
            healed.add(value)
            producer = value.producer()
            work += [v for v in producer.inputs if v is not None] if producer is not None else []
    return next(((value, error) for value, error in errors.items() if error > tolerance and value not in healed), None)


def _error(expected: Array, found: Array) -> float:
    if expected.shape != found.shape:
        return np.inf
    difference, strange = deviation(expected, found)
    scale = scale_of(expected) if is_float(expected) else 1.0
    largest = float(difference.max(initial=0.0))
    if strange:
        return np.inf
    return largest / scale if scale > 0 else (np.inf if largest > 0 else 0.0)
