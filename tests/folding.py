"""Shared by the tests of the engine: graphs as ONNX text in double, and the check that every fold must pass."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from bnfold.fold import fold
from bnfold.fold.report import FoldReport, Kept, Kind
from bnfold.verification.oracle import Oracle

Array = NDArray[Any]


def constants(seed: int = 0, **shapes: tuple[int, ...] | Array) -> dict[str, Array]:
    """Random float64 arrays by name; a name that begins with ``var`` or ``pos`` is drawn positive."""
    random = np.random.default_rng(seed)
    made: dict[str, Array] = {}
    for name, shape in shapes.items():
        if isinstance(shape, np.ndarray):
            made[name] = shape
            continue
        array = random.normal(size=shape)
        made[name] = np.abs(array) + 0.1 if name.startswith(("var", "pos")) else array
    return made


def norm(channels: int, suffix: str = "", seed: int = 7) -> dict[str, Array]:
    """The four parameters of a batch norm, named scale, bias, mean and var with a suffix."""
    names = {f"{name}{suffix}": (channels,) for name in ("scale", "bias", "mean", "var")}
    return constants(seed + len(suffix), **names)


def used(text: str, arrays: Mapping[str, Array]) -> dict[str, Array]:
    """Those of the arrays that the text of a graph names as an input of some op."""
    return {name: array for name, array in arrays.items() if re.search(rf"[(,] *{name} *[,)]", text)}


def model_of(
    text: str, arrays: Mapping[str, Array], *, opset: int = 17, ir_version: int = 8, functions: str = ""
) -> ir.Model:
    """A model from the text of its graph, with arrays as initializers."""
    head = f'<ir_version: {ir_version}, opset_import: ["": {opset}{", " + chr(34) + "local" + chr(34) + ": 1" if functions else ""}]>'
    proto = onnx.parser.parse_model(f"{head} {text} {functions}")
    known = {value.name for value in proto.graph.initializer}
    for name, array in arrays.items():
        assert name not in known
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
        if ir_version < 4:
            proto.graph.input.append(
                onnx.helper.make_tensor_value_info(
                    name, onnx.helper.np_dtype_to_tensor_dtype(np.asarray(array).dtype), np.asarray(array).shape
                )
            )
    onnx.checker.check_model(proto)
    return ir.from_proto(proto)


def ops(model: ir.Model) -> dict[str, int]:
    """How many nodes of each op type the model's graphs have, constants left out."""
    counts = Counter(node.op_type for graph in model.graphs() for node in graph if node.op_type != "Constant")
    return dict(counts)


def listing(model: ir.Model) -> str:
    """The nodes of a model, one a line, for the message of a failed test."""
    return "\n".join(
        f"{', '.join(str(v.name) for v in node.outputs)} = {node.op_type}"
        f"({', '.join(f'{v.name}{list(v.shape) if v.shape else str()}' if v else '-' for v in node.inputs)})"
        for graph in model.graphs()
        for node in graph
    )


def feeds_of(model: ir.Model, seed: int = 1, batch: int = 2) -> dict[str, Array]:
    """Random inputs of a model; symbolic dimensions get the length ``batch``."""
    random = np.random.default_rng(seed)
    feeds: dict[str, Array] = {}
    for value in model.graph.inputs:
        if value.is_initializer():
            continue
        assert value.shape is not None
        shape = [dim if isinstance(dim, int) else batch for dim in value.shape]
        array = random.normal(size=shape)
        assert value.dtype is not None
        # Integers are indices: 0 and 1 are in range of most things.
        array = array > 0 if value.dtype in (ir.DataType.BOOL, ir.DataType.INT64) else array
        feeds[str(value.name)] = array.astype(value.dtype.numpy())
    return feeds


def folded(
    model: ir.Model, tolerance: float = 1e-10, smallest: float = 1e-300, **choices: Any
) -> tuple[ir.Model, FoldReport]:
    """Fold a copy of ``model`` and prove the result; the copy and its report.

    The result computes the same in float64 to ``tolerance`` relative to the output's scale, or to the ``smallest``
    where what cancels out leaves less than that. It has the same inputs and outputs, passes ONNX's checker with full shape inference, and does not fold any further.
    """
    copy = model.clone()
    report = fold(copy, **choices)
    proto = ir.to_proto(copy)
    onnx.checker.check_model(proto, full_check=True)
    _check_interface(model, copy)
    feeds = feeds_of(model)
    wanted, got = Oracle(model).run(feeds), Oracle(copy).run(feeds)
    for name, expected in wanted.items():
        assert got[name].shape == expected.shape
        if expected.dtype.kind == "f":
            scale = np.max(np.abs(expected), initial=smallest)
            assert np.max(np.abs(got[name] - expected), initial=0) <= tolerance * scale, name
    norms = sum(node.op_type == "BatchNormalization" for graph in model.graphs() for node in graph)
    assert sum(record.kind is Kind.BATCH_NORM for record in report.records) == norms
    again = copy.clone()
    fold(again, **choices)
    assert ops(again) == ops(copy), f"folding twice changed something more in\n{listing(copy)}"
    return copy, report


def _check_interface(before: ir.Model, after: ir.Model) -> None:
    def described(values: Any) -> list[tuple[Any, ...]]:
        return [(v.name, v.dtype, v.shape) for v in values]

    def callers(model: ir.Model) -> list[ir.Value]:
        return [v for v in model.graph.inputs if model.ir_version >= 4 or not v.is_initializer()]

    assert described(callers(before)) == described(callers(after))
    assert described(before.graph.outputs) == described(after.graph.outputs)
    assert before.opset_imports == after.opset_imports
    assert before.metadata_props == after.metadata_props


def reason_of(report: FoldReport) -> str:
    """The reason of the one batch norm or affine that was kept."""
    kept = [record for record in report.records if isinstance(record.outcome, Kept)]
    assert len(kept) == 1, report.to_json()
    assert isinstance(kept[0].outcome, Kept)
    return str(kept[0].outcome.decisive.reason)
