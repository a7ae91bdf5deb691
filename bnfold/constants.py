"""Which values of a model cannot change, and what they are.

A constant is an initializer that no caller can override, a Constant node's output, or anything computed from
constants alone: exporters write biases as ``Expand(CastLike(0, x), Shape(weight))`` and decomposed batch norms as
``Sqrt(Add(var, eps))``, and a tool that sees initializers only is blind to both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from bnfold.constant_ops import evaluate
from bnfold.protos import DEFAULT_DOMAINS
from bnfold.shapes import Dim, ShapeTable

Array = NDArray[Any]

#: Ops whose result follows from their constant inputs alone, the same on every run.
_PURE_OPS = frozenset(
    [
        "Abs",
        "Add",
        "Cast",
        "Ceil",
        "Concat",
        "ConstantOfShape",
        "DequantizeLinear",
        "Div",
        "Equal",
        "Exp",
        "Expand",
        "Flatten",
        "Floor",
        "Gather",
        "GatherND",
        "Greater",
        "Identity",
        "Less",
        "Log",
        "Max",
        "Min",
        "Mod",
        "Mul",
        "Neg",
        "Not",
        "Pow",
        "QuantizeLinear",
        "Range",
        "Reciprocal",
        "ReduceMax",
        "ReduceMean",
        "ReduceMin",
        "ReduceProd",
        "ReduceSum",
        "Reshape",
        "Round",
        "Slice",
        "Split",
        "Sqrt",
        "Squeeze",
        "Sub",
        "Sum",
        "Tile",
        "Transpose",
        "Unsqueeze",
        "Where",
    ]
)

#: Ops whose operands broadcast as numpy's do, and the operator set from which they do.
_BINARY = frozenset({"Add", "Sub", "Mul", "Div", "Pow", "Equal", "Greater", "Less"})
_BROADCASTING = 7

#: Stands for a size that is not known, among those that are.
_OPEN = np.iinfo(np.int64).min

#: Types to which a CastLike is computed here, and whether from floating-point numbers too.
_CAST = {
    ir.DataType.DOUBLE: True,
    ir.DataType.FLOAT: True,
    ir.DataType.FLOAT16: True,
    ir.DataType.BFLOAT16: True,
    ir.DataType.INT64: False,
    ir.DataType.INT32: False,
}

#: Computed constants may always have this many elements, and four times what the file itself stores. A corrupt or
#: hostile shape asks for more: a kilobyte of Expand or Concat can name a terabyte.
_MIN_LIMIT = 1 << 24


class Constants:
    """Evaluates constant values of one model, each at most once."""

    def __init__(self, model: ir.Model, shapes: ShapeTable, opset: int) -> None:
        self._ir_version = model.ir_version
        self._opset = opset
        self._model = model
        self._shapes = shapes
        self._evaluated: dict[ir.Value, Array | None] = {}

    @cached_property
    def _limit(self) -> int:
        """How many elements a computed constant may have."""
        graphs = self._model.graphs()
        stored = sum(v.const_value.size for g in graphs for v in g.initializers.values() if v.const_value)
        return max(_MIN_LIMIT, 4 * stored)

    def reconsider(self) -> None:
        """Look anew at what was no constant: once an op between constants has folded away, what follows it is one."""
        self._evaluated = {value: array for value, array in self._evaluated.items() if array is not None}

    def overridable(self, value: ir.Value) -> bool:
        """Whether ``value`` is an initializer that the caller may feed instead.

        Until IR version 3 every initializer had to be listed among the inputs; from 4 on, listing one says
        that it is a default for an input.
        """
        return self._ir_version >= 4 and value.is_initializer() and value.is_graph_input()

    def quantized(self, value: ir.Value) -> bool:
        """Whether ``value`` comes out of a DequantizeLinear."""
        producer = value.producer()
        return producer is not None and producer.op_type == "DequantizeLinear" and producer.domain in DEFAULT_DOMAINS

    def tensor(self, value: ir.Value) -> ir.TensorProtocol | None:
        """The stored tensor of an initializer or a Constant node, unread; None for everything else."""
        if value.is_initializer():
            return None if self.overridable(value) else value.const_value
        producer = value.producer()
        if producer is None or producer.op_type != "Constant" or producer.domain not in DEFAULT_DOMAINS:
            return None
        if len(producer.attributes) != 1:  # which is its value
            return None
        return ir.convenience.get_const_tensor(value)

    def array(self, value: ir.Value) -> Array | None:
        """The value as an array of its own dtype, or None where it is not constant."""
        if value not in self._evaluated:
            self._evaluate_with_ancestors(value)
        return self._evaluated[value]

    def floats(self, value: ir.Value) -> Array | None:
        """The same, or None where it is not of a real floating-point type."""
        array = self.array(value)
        return array if array is not None and is_float(array) else None

    def _evaluate_with_ancestors(self, value: ir.Value) -> None:
        """Evaluate ``value`` after all that it depends on, with a stack: chains may be deeper than Python's."""
        stack = [value]
        while stack:
            current = stack[-1]
            if current in self._evaluated:
                stack.pop()
                continue
            tensor = self.tensor(current)
            if tensor is not None:
                self._evaluated[current] = tensor.numpy()
                continue
            producer = current.producer()
            needed = self._operands(producer) if producer is not None else None
            if producer is None or needed is None:
                self._evaluated[current] = None
                continue
            missing = [operand for operand in needed if operand not in self._evaluated]
            if missing:
                stack.extend(missing)
                continue
            self._evaluated[current] = self._compute(producer, current)

    def _operands(self, node: ir.Node) -> list[ir.Value] | None:
        """The inputs whose values decide the node's output; None where the node can never be constant."""
        if node.domain not in DEFAULT_DOMAINS or (node.op_type in _BINARY and self._opset < _BROADCASTING):
            return None
        if node.op_type in ("Shape", "Size"):
            return []
        if node.op_type == "CastLike":
            return [value for value in node.inputs[:1] if value is not None]
        if node.op_type in _PURE_OPS:
            return [value for value in node.inputs if value is not None]
        return None

    def _compute(self, node: ir.Node, output: ir.Value) -> Array | None:
        operands = {v: self._evaluated.get(v) for v in node.inputs if v is not None}
        match node.op_type:
            case "Shape":
                return self._shape(node)
            case "Size":
                dims = self._shapes.shape(node.inputs[0]) if node.inputs[0] is not None else None
                static = _static(dims)
                return None if static is None else np.array(math.prod(static), np.int64)
            case "CastLike":
                return self._cast_like(node)
        data = node.inputs[0] if node.op_type in ("Gather", "Slice") else None
        if data is not None and operands[data] is None:
            operands[data] = self._open_shape(node, data)
        arrays: dict[str, Array] = {}
        for value, array in operands.items():
            if array is None or value.name is None:
                return None
            arrays[value.name] = array
        result = self._run(node, arrays, output)
        return None if result is None or (result.dtype == np.int64 and np.any(result == _OPEN)) else result

    def _run(self, node: ir.Node, arrays: dict[str, Array], output: ir.Value) -> Array | None:
        """One output of a node, given its inputs by name."""
        if self._result_elements(node, arrays) > self._limit:
            return None
        if node.op_type.startswith("Reduce") and not all(array.size for array in arrays.values()):
            return None  # of nothing, each runtime makes a number of its own
        if all(value is not None for value in node.inputs) and not any(a.is_ref() for a in node.attributes.values()):
            inputs = [arrays[str(value.name)] for value in node.inputs if value is not None]
            attributes = {name: attribute.value for name, attribute in node.attributes.items()}
            result = evaluate(node.op_type, inputs, attributes, self._opset)
            if result is not None:
                return result
        return _run_node(node, arrays, self._opset)[output.index() or 0]

    def _result_elements(self, node: ir.Node, arrays: Mapping[str, Array]) -> float:
        """How many elements the node will make at most, as far as can be told before it runs."""
        operands = [arrays[value.name] for value in node.inputs if value is not None and value.name is not None]
        try:
            match node.op_type:
                case "ConstantOfShape":
                    return math.prod(int(n) for n in operands[0].ravel())
                case "Expand":
                    return math.prod(max(int(n), 1) for n in operands[1].ravel()) * operands[0].size
                case "Tile":
                    return math.prod(int(n) for n in operands[1].ravel()) * operands[0].size
                case "Range":
                    start, limit, step = (float(operand.item()) for operand in operands)
                    return abs((limit - start) / step)
                case "Gather" | "GatherND":
                    return operands[1].size * operands[0].size
                case "Add" | "Sub" | "Mul" | "Div" | "Pow" | "Where" | "Min" | "Max" | "Sum":
                    return math.prod(np.broadcast_shapes(*(operand.shape for operand in operands)))
        except (ValueError, ArithmeticError, TypeError):
            return math.inf  # malformed, so that it would not run either
        return sum(operand.size for operand in operands)

    def _shape(self, node: ir.Node) -> Array | None:
        static = _static(self._dims(node))
        return None if static is None else np.array(static, np.int64)

    def _dims(self, node: ir.Node) -> tuple[Dim, ...] | None:
        """What a Shape yields, as far as it is known."""
        source = node.inputs[0]
        dims = self._shapes.shape(source) if source is not None else None
        if dims is None:
            return None
        return dims[slice(node.attributes.get_int("start", 0), node.attributes.get_int("end", len(dims)))]

    def _open_shape(self, node: ir.Node, value: ir.Value) -> Array | None:
        """The input of a node where it is a shape of which a part is known: what is not is :data:`_OPEN`."""
        producer = value.producer()
        if producer is None or producer.op_type != "Shape" or producer.domain not in DEFAULT_DOMAINS:
            return None
        dims = self._dims(producer) if node.inputs.count(value) == 1 else None
        return None if dims is None else np.array([d if isinstance(d, int) else _OPEN for d in dims], np.int64)

    def _cast_like(self, node: ir.Node) -> Array | None:
        source, like = node.inputs
        array = self._evaluated.get(source) if source is not None else None
        dtype = self._shapes.dtype(like) if like is not None else None
        if array is None or dtype not in _CAST or (array.dtype.kind not in "iub" and not is_float(array)):
            return None
        if is_float(array) and not _CAST[dtype]:
            return None  # what becomes of a number that does not fit is the runtime's own
        with np.errstate(over="ignore", invalid="ignore"):
            return array.astype(dtype.numpy())


def is_float(array: Array) -> bool:
    """Whether the elements are real floating-point numbers, bfloat16 included."""
    return array.dtype.kind == "f" or array.dtype == ml_dtypes.bfloat16


def _static(dims: tuple[Any, ...] | None) -> tuple[int, ...] | None:
    if dims is None or not all(isinstance(dim, int) for dim in dims):
        return None
    return dims


def _run_node(node: ir.Node, arrays: dict[str, Array], opset: int) -> list[Array | None]:
    """Run one node with ONNX's reference implementation."""
    from onnx.reference import ReferenceEvaluator  # takes a fifth of a second: only models that need it pay

    proto = ir.serde.serialize_node(node)
    inputs = [onnx.ValueInfoProto(name=name) for name in arrays]
    outputs = [onnx.ValueInfoProto(name=name) for name in proto.output if name]
    graph = onnx.helper.make_graph([proto], "constant", inputs, outputs)
    if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
        opset = max(opset, 19)  # what they do with integers never changed, and older ones are not implemented there
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)])
    try:
        with np.errstate(all="ignore"):
            results = ReferenceEvaluator(model).run(None, arrays)
    # The reference implementation has no exception class of its own: a malformed constant shows as any of these.
    except (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError, ArithmeticError, MemoryError):
        return [None] * len(proto.output)
    found = iter(results)
    return [np.asarray(next(found)) if name else None for name in proto.output]
