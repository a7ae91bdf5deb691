"""What is asked of a model before anything believes it: the ONNX specification, and what its checker lets pass."""

from __future__ import annotations

import math
import re
from pathlib import Path

import onnx
import onnx_ir as ir

from bnfold.errors import ModelError
from bnfold.protos import DEFAULT_DOMAINS, nodes_of, tensors_of

#: Width of one element of each data type that has one.
_BITS = {d.value: d.bitwidth for d in ir.DataType if d not in (ir.DataType.UNDEFINED, ir.DataType.STRING)}

#: No tensor is as long as this along any axis.
_ABSURD = 1 << 40

#: The numbers of all data types, one of which stands for none.
_TYPES = frozenset(d.value for d in ir.DataType)

#: How onnx's checker speaks of a value that is read before it exists.
_UNSORTED = re.compile(r"sorted, however input '(.*?)' of node: *\nname: *(.*?) *OpType: *(\S+)", re.DOTALL)


def check_model(model: onnx.ModelProto | Path, label: str) -> None:
    """Hold a model against the ONNX specification.

    Args:
        model: a model in memory, or the path of one, whose external data is then looked for beside it.
        label: what to call the model in an error.

    Raises:
        ModelError: the model breaks the specification.
    """
    try:
        onnx.checker.check_model(model)
    except (onnx.checker.ValidationError, ValueError, RuntimeError) as error:  # the last of files that cannot be
        raise ModelError(f"{label} is not a valid ONNX model: {_in_one_line(str(error))}") from error


def _in_one_line(said: str) -> str:
    """What the checker says, without its list of nodes; of a value that comes from nowhere, where it is read."""
    unsorted = _UNSORTED.search(said)
    if unsorted is None:
        return said.strip().partition("\n")[0][:300]
    value, name, op_type = unsorted.groups()
    node = f"the {op_type} {name!r}" if name else f"a node of type {op_type}"
    return (
        f"{node} reads {value!r}, which is neither an input nor computed by a node before it; "
        "put the nodes in order, or export it again"
    )


def check_readable(proto: onnx.ModelProto, label: str) -> None:
    """Refuse what bnfold does not read, or what would end it or ONNX Runtime; forget sizes that are none.

    Args:
        proto: a model, which may lack its weights.
        label: what to call it in an error.

    Raises:
        ModelError: the model holds such a thing.
    """
    _check_operators(proto, label)
    for tensor in tensors_of(proto):
        _check_tensor(tensor, label)
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        _check_sizes(value, label)


def _check_operators(proto: onnx.ModelProto, label: str) -> None:
    known = onnx.defs.onnx_opset_version()
    for version in [entry.version for entry in proto.opset_import if entry.domain in DEFAULT_DOMAINS]:
        if not 1 <= version <= known:
            raise ModelError(
                f"{label} uses version {version} of the ONNX operators, and the installed onnx knows up to {known}; "
                "upgrade onnx, or export with a lower opset"
            )
        for node in nodes_of(proto):
            if "" in node.input and _skips_an_operand(node, version):
                raise ModelError(
                    f"{label} is not a valid ONNX model: the {node.op_type} {node.name!r} skips an operand"
                )


def _skips_an_operand(node: onnx.NodeProto, opset: int) -> bool:
    """Whether an op of any number of operands is not given one of them: ONNX Runtime is killed by it."""
    is_text = isinstance(node.op_type, str)  # protobuf reads other bytes too, as such
    if not is_text or node.domain not in DEFAULT_DOMAINS or not onnx.defs.has(node.op_type, opset):
        return False
    slots = onnx.defs.get_schema(node.op_type, opset).inputs
    variadic = onnx.defs.OpSchema.FormalParameterOption.Variadic
    last = slots[-1] if slots else None
    return last is not None and last.option == variadic and last.is_homogeneous and "" in node.input[len(slots) - 1 :]


def _check_tensor(tensor: onnx.TensorProto | onnx.SparseTensorProto, label: str) -> None:
    if isinstance(tensor, onnx.SparseTensorProto):
        raise ModelError(f"{label} holds sparse tensors, which bnfold does not read; store them as dense ones")
    if tensor.data_type not in _TYPES:
        raise ModelError(f"{label} is not a valid ONNX model: the tensor {tensor.name!r} is of no type that there is")
    _check_size(tensor, label)


def _check_size(tensor: onnx.TensorProto, label: str) -> None:
    """Refuse a tensor that holds more or less than its shape and type need; ONNX's checker lets more pass."""
    if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.data_type not in _BITS:
        return
    bits, elements = _BITS[tensor.data_type], math.prod(tensor.dims)
    if tensor.HasField("raw_data"):
        held, needed, unit = len(tensor.raw_data), -(-bits * elements // 8), "bytes"
    elif bits >= 8:
        complex_parts = 2 if tensor.data_type in (onnx.TensorProto.COMPLEX64, onnx.TensorProto.COMPLEX128) else 1
        fields = (tensor.float_data, tensor.double_data, tensor.int32_data, tensor.int64_data, tensor.uint64_data)
        held, needed, unit = sum(map(len, fields)), complex_parts * elements, "numbers"
    else:
        return
    if held != needed:
        raise ModelError(
            f"{label} is not a valid ONNX model: the tensor {tensor.name!r} holds {held} {unit}, "
            f"and its shape and type need {needed}"
        )


def _check_sizes(value: onnx.ValueInfoProto, label: str) -> None:
    """Forget negative sizes, and refuse absurd ones: ONNX's shape inference takes any; it may abort or fill the memory.

    Old exporters write -1 where nothing is known.
    """
    for dim in value.type.tensor_type.shape.dim if value.type.HasField("tensor_type") else ():
        if dim.dim_value < 0:
            dim.ClearField("dim_value")
        elif dim.dim_value >= _ABSURD:
            raise ModelError(f"{label} is damaged: it declares that {value.name!r} is {dim.dim_value} elements long")
