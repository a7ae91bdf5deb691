"""What numpy makes of a constant is what ONNX's reference makes of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from folding import Array
from onnx.reference import ReferenceEvaluator

from bnfold.constant_ops import evaluate

#: Arrays with what arithmetic stumbles over.
FLOATS = [np.array([[0.0, -0.0, 1.5, -2.5], [6e4, 1e-7, np.inf, np.nan]]), np.float64(0.1), np.ones((2, 1)) / 3]
INTEGERS = [np.array([[0, 1, -7, 9]]), np.array(3), np.empty((0, 4), np.int64)]


def ints(*values: int) -> Array:
    return np.array(values, np.int64)


def value(array: Array) -> Mapping[str, Any]:
    return {"value": ir.tensor(array)}


#: Inputs, attributes and operator set of what the table takes.
TAKEN: list[tuple[str, list[Array], Mapping[str, Any], int]] = [
    *((op, [a.astype(t), b.astype(t)], {}, 17) for op in ("Add", "Sub", "Mul", "Div")
      for t in (np.float16, np.float32, np.float64) for a in FLOATS for b in FLOATS),
    *((op, [a, b], {}, 17) for op in ("Add", "Sub", "Mul") for a in INTEGERS for b in INTEGERS),
    *((op, [a.astype(t)], {}, 17) for op in ("Sqrt", "Neg", "Reciprocal", "Identity")
      for t in (np.float16, np.float32, np.float64) for a in FLOATS),
    *(("Cast", [a], {"to": t}, 17) for t in (1, 10, 11) for a in (*FLOATS, *INTEGERS)),
    *(("Reshape", [np.arange(12.0), ints(*shape)], {}, 17) for shape in ((3, 4), (-1, 6), (2, 3, 2), (12, -1))),
    ("Reshape", [np.ones((2, 3, 4)), ints(0, -1)], {}, 17),
    ("Reshape", [np.ones((2, 0, 4)), ints(0, 4, 2)], {"allowzero": 1}, 17),
    ("Transpose", [np.arange(24.0).reshape(2, 3, 4)], {"perm": [2, 0, 1]}, 17),
    ("Transpose", [np.arange(24.0).reshape(2, 3, 4)], {}, 17),
    ("Unsqueeze", [np.arange(3.0), ints(0, 2)], {}, 17),
    ("Unsqueeze", [np.arange(3.0), ints(-1)], {}, 17),
    ("Unsqueeze", [np.arange(3.0)], {"axes": [1, 2]}, 11),
    ("Squeeze", [np.ones((1, 3, 1)), ints(0)], {}, 17),
    ("Squeeze", [np.ones((1, 3, 1))], {}, 17),
    ("Squeeze", [np.ones((1, 3, 1))], {"axes": [2]}, 11),
    ("Expand", [np.ones((3, 1)), ints(2, 1, 4)], {}, 17),
    ("Expand", [np.ones((3, 4)), ints(1)], {}, 17),
    ("Expand", [np.float32(0).reshape(()), ints(4)], {}, 17),
    ("Concat", [ints(1), ints(2, 3), ints()], {"axis": 0}, 17),
    ("Concat", [np.ones((2, 1)), np.zeros((2, 3))], {"axis": -1}, 17),
    ("ConstantOfShape", [ints(2, 3)], value(np.array([0.5], np.float32)), 17),
    ("ConstantOfShape", [ints(2, 3)], {}, 17),
    ("ConstantOfShape", [ints()], value(np.array([7])), 17),
]  # fmt: skip

#: What the table leaves to the reference.
LEFT: list[tuple[str, list[Array], Mapping[str, Any], int]] = [
    ("Add", [np.ones(3), np.ones(3)], {"axis": 0, "broadcast": 1}, 6),
    ("Div", [ints(7), ints(-2)], {}, 17),
    ("Sqrt", [np.ones(3, ml_dtypes.bfloat16)], {}, 17),
    ("Cast", [np.array([1.5, -1.5, np.nan])], {"to": 7}, 17),
    ("Add", [np.ones(3), np.ones(3, np.float32)], {}, 17),
    ("Add", [np.ones(3), np.ones(4)], {}, 17),
    ("Add", [np.ones(3)], {}, 17),
    ("Reshape", [np.ones(3), ints(2, 2)], {}, 17),
    ("Reshape", [np.ones(3), ints(3, 0)], {}, 17),
    ("Reshape", [np.ones(3), np.array([3.0])], {}, 17),
    ("Concat", [np.ones(3)], {}, 17),
    ("Expand", [np.ones(3), ints(4)], {}, 17),
    ("ConstantOfShape", [ints(-1)], {}, 17),
    ("ConstantOfShape", [ints(2)], value(np.array([True])), 17),
    ("Erf", [np.ones(3)], {}, 17),
]


@pytest.mark.parametrize(("op_type", "inputs", "attributes", "opset"), TAKEN)
def test_table_computes_what_the_reference_computes(
    op_type: str, inputs: list[Array], attributes: Mapping[str, Any], opset: int
) -> None:
    got = evaluate(op_type, inputs, attributes, opset)
    assert got is not None
    wanted = referred(op_type, inputs, attributes, opset)
    assert (got.dtype, got.shape) == (wanted.dtype, wanted.shape)
    assert np.array_equal(got, wanted, equal_nan=True)


@pytest.mark.parametrize(("op_type", "inputs", "attributes", "opset"), LEFT)
def test_table_leaves_the_rest(op_type: str, inputs: list[Array], attributes: Mapping[str, Any], opset: int) -> None:
    assert evaluate(op_type, inputs, attributes, opset) is None


def referred(op_type: str, inputs: list[Array], attributes: Mapping[str, Any], opset: int) -> Array:
    values = [ir.Value(name=f"x{index}") for index in range(len(inputs))]
    node = ir.node(op_type, values, attributes=dict(attributes))
    node.outputs[0].name = "y"
    proto = ir.to_proto(node)
    names = [onnx.ValueInfoProto(name=value.name) for value in values]
    graph = onnx.helper.make_graph([proto], "g", names, [onnx.ValueInfoProto(name="y")])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)])
    feeds = {name.name: np.asarray(array) for name, array in zip(names, inputs, strict=True)}
    with np.errstate(all="ignore"):
        return np.asarray(ReferenceEvaluator(model).run(None, feeds)[0])
