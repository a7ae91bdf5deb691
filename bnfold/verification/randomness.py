"""Models of which no two runs agree: they compute no function, and cannot be verified."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bnfold.graph import in_default_domain
from bnfold.verification.metrics import deviation, scale_of

_RANDOM = frozenset(
    {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
)

#: Two runs of one session differ by no more than the order of their sums, if by anything.
_TOLERANCE = 1e-3


def random_operator(model: ir.Model) -> str | None:
    """The first operator that draws random numbers, in subgraphs and local functions too; None if there is none."""
    inner = (node for function in model.functions.values() for node in function.all_nodes())
    return next((node.op_type for node in chain(model.graph.all_nodes(), inner) if _is_random(node)), None)


def _is_random(node: ir.Node) -> bool:
    if not in_default_domain(node):
        return False
    if node.op_type == "Dropout" and len(node.inputs) > 2 and node.inputs[2] is not None:
        training = node.inputs[2].const_value  # ratio 0 keeps everything
        return training is not None and bool(training.numpy().any()) and not _is_zero(node.inputs[1])
    return node.op_type in _RANDOM


def _is_zero(value: ir.Value | None) -> bool:
    return value is not None and value.const_value is not None and not value.const_value.numpy().any()


def undecided_output(
    one: Mapping[str, NDArray[Any]], other: Mapping[str, NDArray[Any]], names: Sequence[str]
) -> str | None:
    """The first output on which two runs on the same inputs differ by more than rounding; None if there is none."""
    for name in names:
        expected, actual = one[name], other[name]
        if expected.shape != actual.shape:
            return name
        difference, strange = deviation(expected, actual)
        if strange or float(np.max(difference, initial=0.0)) > _TOLERANCE * scale_of(expected):
            return name
    return None
