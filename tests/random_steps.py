"""Random steps of one op: linear ops, affines, and the ops of one input that affines may cross."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from graph_builder import BATCH, Array, Builder, Tensor

# Linear ops.


def window(b: Builder, spatial: tuple[int, ...], kernel: Sequence[int]) -> dict[str, Any]:
    """Strides, dilations and pads of a convolution or pool, mostly absent."""
    rank = len(spatial)
    drawn: dict[str, Any] = {}
    if b.chance(20):
        drawn["strides"] = [b.one(1, 2) for _ in range(rank)]
    if b.chance(15):
        drawn["dilations"] = [b.one(1, 2) for _ in range(rank)]
    if b.chance(15):
        drawn["auto_pad"] = b.one("SAME_UPPER", "SAME_LOWER", "VALID")
    elif b.chance(35):
        drawn["pads"] = [b.number(0, max(0, size - 1)) for size in (*kernel, *kernel)]
    return drawn


def conv(b: Builder) -> None:
    x = b.pick()
    if len(x.shape) < 3:
        return
    c, spatial = x.shape[1], x.shape[2:]
    group = b.one(*[g for g in (1, 1, 2, c) if c % g == 0])
    out = group * b.number(1, 3)
    kernel = [b.one(1, 1, 2, 3) for _ in spatial]
    weight = b.constant(b.floats(out, c // group, *kernel), share=True)
    bias = b.constant(b.floats(out)) if b.chance(50) else None
    b.axis = 1
    b.add("Conv", [x, weight, bias][: 3 if bias else 2], group=group, **window(b, spatial, kernel))


def transposed_conv(b: Builder) -> None:
    x = b.pick()
    if len(x.shape) < 3:
        return
    c, spatial = x.shape[1], x.shape[2:]
    group = b.one(*[g for g in (1, 2) if c % g == 0])
    kernel = [b.number(1, 2) for _ in spatial]
    inputs = [x, b.constant(b.floats(c, b.number(1, 2), *kernel), share=True)]
    strides = [b.one(1, 1, 2) for _ in spatial]
    b.axis = 1
    pads = [b.one(0, 0, 1) for _ in (*kernel, *kernel)] if b.chance(20) else None
    b.add("ConvTranspose", inputs, group=group, strides=strides, pads=pads)


def matmul(b: Builder) -> None:
    x = b.pick()
    b.axis = -1
    weight = b.constant(b.floats(x.shape[-1], b.number(1, 5)), share=True)
    if b.add("MatMul", [x, weight]) and b.chance(50):
        x = b.tensors[-1]
        bias = b.constant(b.floats(b.one(x.shape[-1], 1)))
        b.add("Add", [x, bias] if b.chance(50) else [bias, x])


def gemm(b: Builder) -> None:
    x = b.pick()
    if len(x.shape) != 2:
        return
    out, transposed, flipped = b.number(1, 5), b.chance(50), not b.dynamic and b.chance(15)
    inner = x.shape[0] if flipped else x.shape[1]
    weight = b.constant(b.floats(*((out, inner) if transposed else (inner, out))), share=True)
    shape = b.one(None, (), (1,), (out,), (1, out)) if b.opset >= 11 else (out,)
    bias = [] if shape is None else [b.constant(b.floats(*shape))]
    b.axis = -1
    b.add("Gemm", [x, weight, *bias], transA=int(flipped), transB=int(transposed), alpha=0.5, beta=2.0)


def recurrent(b: Builder) -> None:
    """An LSTM, GRU or RNN over one of the first two axes; it is linear before it is anything else."""
    x = b.pick()
    if len(x.shape) < 3:
        return
    if len(x.shape) > 3:
        if not b.add("Reshape", [x, b.ints(0, -1, x.shape[-1])]):
            return
        x = b.tensors[-1]
    op_type, direction = b.one("LSTM", "GRU", "RNN"), b.one("forward", "reverse", "bidirectional")
    layout = b.one(0, 1) if b.opset >= 14 else None
    count, hidden = 1 + (direction == "bidirectional"), b.number(1, 2)
    rows = {"LSTM": 4, "GRU": 3, "RNN": 1}[op_type] * hidden
    time, batch = x.shape[:2] if not layout else x.shape[1::-1]
    inputs: list[Tensor | ir.Value | None] = [x]
    inputs += [b.constant(b.floats(count, rows, size), share=True) for size in (x.shape[-1], hidden)]
    inputs.append(b.constant(b.floats(count, 2 * rows), share=True) if b.chance(60) else None)
    if b.chance(20) and not (b.dynamic and layout):
        inputs.append(b.constant(b.random.integers(1, time + 1, batch).astype(np.int32), plain=True))
    outputs = 1 if b.dynamic else b.one(1, 1, 2)
    b.axis = -1
    b.add(op_type, inputs, outputs, hidden_size=hidden, direction=direction, layout=layout)


# Affines.


def batch_norm(b: Builder) -> None:
    x = b.pick()
    if len(x.shape) < 2:
        return
    c = x.shape[1]
    scale, shift, mean = b.vector(c), b.vector(c), b.vector(c)
    if b.chance(50):
        scale = np.abs(scale) + 0.1
    if b.chance(25):
        shift, mean = np.zeros(c), np.zeros(c)
    var = np.full(c, 1.0) if b.chance(35) else np.abs(b.floats(c)) + 0.1
    b.add("BatchNormalization", [x, *(b.constant(p, share=True) for p in (scale, shift, mean, var))])


def along(b: Builder, x: Tensor, axes: Sequence[int]) -> Array:
    """A constant that varies along some axes of a tensor, of its rank or of a lower one that does as well."""
    dims = [1] * len(x.shape)
    for axis in axes:
        dims[axis] = x.shape[axis]
    array = b.vector(dims[axes[0]]).reshape(dims) if len(axes) == 1 else b.floats(*dims)
    while b.opset >= 7 and array.ndim and array.shape[0] == 1 and b.chance(50):
        array = array[0]
    return array


def binary(b: Builder) -> None:
    x, op_type = b.pick(), b.one("Add", "Sub", "Mul", "Mul", "Div")
    kind = b.one("none", "one", "one", "one", "one", "two")
    first = int(b.dynamic)
    if kind == "two" and len(x.shape) - first >= 2:
        axes = sorted((first + b.random.permutation(len(x.shape) - first)[:2]).tolist())
    else:
        axes = [] if kind == "none" else [b.channels_of(x)]
    if any(axis < first for axis in axes):
        return
    array = along(b, x, axes)
    if op_type == "Div" or (op_type == "Mul" and b.chance(60)):
        array = np.abs(array) + 0.3
    inputs: list[Tensor | ir.Value] = [x, b.constant(array, share=True)]
    if op_type != "Div" and b.chance(30):
        inputs.reverse()
    b.add(op_type, inputs)


def scale(b: Builder) -> None:
    """What passes most ops: a positive scale."""
    x = b.pick()
    axis = b.channels_of(x)
    if axis >= int(b.dynamic):
        b.add("Mul", [x, b.constant(np.abs(along(b, x, [axis])) + 0.1, share=True)])


def normalization(b: Builder) -> None:
    """What has a scale and a bias of its own for an affine behind it."""
    x = b.pick()
    rank = len(x.shape)
    op_type = b.one("InstanceNormalization", "LayerNormalization", "RMSNormalization")
    if op_type == "InstanceNormalization":
        if rank >= 3 and min(x.shape[2:]) > 1:
            b.add(op_type, [x, *(b.constant(b.floats(x.shape[1]), share=True) for _ in range(2))])
    elif b.opset >= (17 if op_type == "LayerNormalization" else 23) and rank >= 2:
        axis = b.number(1, rank - 1)
        count = 1 if op_type == "RMSNormalization" else b.one(1, 2)
        b.axis = b.number(axis, rank - 1)
        parameters = [b.constant(b.floats(*x.shape[axis:]), share=True) for _ in range(count)]
        b.add(op_type, [x, *parameters], axis=axis)


# Ops that affines cross.


def unary(b: Builder) -> None:
    b.add(b.one("Relu", "LeakyRelu", "Identity", "Neg", "Dropout", "Abs"), [b.pick()])


def prelu(b: Builder) -> None:
    x = b.pick()
    b.add("PRelu", [x, b.constant(along(b, x, [b.channels_of(x)] if not b.dynamic or len(x.shape) > 1 else []))])


def transpose(b: Builder) -> None:
    x = b.pick()
    rank, first = len(x.shape), int(b.dynamic)
    order = [*range(first), *(first + b.random.permutation(rank - first)).tolist()]
    if b.add("Transpose", [x], perm=order) and b.axis % rank in order:
        b.axis = order.index(b.axis % rank)


def reshape(b: Builder) -> None:
    x = b.pick()
    rank = len(x.shape)
    kind = b.one("Reshape", "Flatten", "Squeeze", "Unsqueeze")
    if kind == "Flatten":
        b.add("Flatten", [x], axis=1 if b.dynamic else b.number(0, rank))
    elif kind == "Reshape":
        cut = b.number(1, rank)
        b.add("Reshape", [x, b.ints(*([0] * cut), *b.one((), (-1,), (-1, 1), (1, -1), (2, -1)))])
    else:
        ones = [axis for axis, size in enumerate(x.shape) if size == 1 and axis >= int(b.dynamic)]
        choices = ones if kind == "Squeeze" else list(range(int(b.dynamic), rank + 1))
        if not choices or rank + (kind == "Unsqueeze") > 5:
            return
        axis = b.one(*choices)
        if b.opset < 13:
            b.add(kind, [x], axes=[axis])
        else:
            b.add(kind, [x, b.ints(axis)])


def tokens(b: Builder) -> None:
    """A product of many rows, laid out in one matrix behind it, whose columns are then normalized."""
    x = b.pick()
    if len(x.shape) < 3 or b.dynamic:
        return
    b.axis = -1
    out = b.number(1, 4)
    if not b.add("MatMul", [x, b.constant(b.floats(x.shape[-1], out), share=True)]):
        return
    if b.chance(10):
        unary(b)
    rows = x.array.size // x.shape[-1]
    made = b.one((-1, out), (rows, out), (rows, -1), (out, -1))
    if b.chance(30):
        shape = b.aside("Shape", x, np.array(x.shape))
        first = b.aside("Gather", shape, np.array(x.shape[:1]), b.ints(0))
        made = (*x.shape[:1], rows // x.shape[0], out)
        sizes = b.aside("Concat", first, np.array(made), b.ints(*made[1:]), axis=0)
    else:
        sizes = b.ints(*made)
    b.loyalty, before = 100, b.loyalty
    b.add("Reshape", [b.tensors[-1], sizes])
    b.one(batch_norm, binary, scale)(b)
    b.loyalty = before


def idle(b: Builder) -> None:
    """An op that computes nothing, or looks so."""
    x = b.pick()
    axis = b.axis_of(x)
    kind = b.one("Concat", "Max", "Sum", "Slice", "Cast", "Expand", "Dropout")
    if kind == "Slice" and b.opset >= 10:
        start, step = b.one(0, 0, 0, -1), b.one(1, 1, 1, -1)
        end = b.one(x.shape[axis], 2**31 - 1, 2**63 - 1, -(2**31))
        b.add("Slice", [x, *(b.ints(n) for n in (start, end, axis, step))])
    elif kind == "Cast":
        b.add("Cast", [x], to=ir.DataType.DOUBLE.value)
    elif kind == "Expand" and b.opset >= 8 and not b.dynamic:
        b.add("Expand", [x, b.ints(*b.one(x.shape, (1,), (2, *x.shape)))])
    elif kind in ("Max", "Sum", "Concat"):
        b.add(kind, [x], axis=axis if kind == "Concat" else None)
    elif kind == "Dropout":
        b.add("Dropout", [x])


def pool(b: Builder) -> None:
    x = b.pick()
    if len(x.shape) < 3:
        return
    op_type = b.one("AveragePool", "AveragePool", "MaxPool", "MaxPool", "GlobalAveragePool", "GlobalMaxPool")
    if op_type == "GlobalMaxPool" and len(x.shape) != 4:
        return  # the reference of onnx 1.23 takes the largest over the last two axes, whatever the rank
    if op_type.startswith("Global"):
        b.add(op_type, [x])
        return
    kernel = [b.one(1, 2, 3) for _ in x.shape[2:]]
    drawn = window(b, x.shape[2:], kernel)
    if b.opset < (10 if op_type == "MaxPool" else 19):
        drawn.pop("dilations", None)
    if b.opset >= 10 and min(kernel) > 1 and drawn.keys() <= {"strides"}:  # a window of padding alone is not agreed on
        drawn["ceil_mode"] = b.one(0, 1)
    if op_type == "AveragePool":
        drawn["count_include_pad"] = b.one(0, 1)
    outputs = 1 + (op_type == "MaxPool" and b.opset >= 8 and b.chance(10))
    b.add(op_type, [x], outputs, kernel_shape=kernel, **drawn)


def reduce(b: Builder) -> None:
    x = b.pick()
    op_type = b.one("ReduceMean", "ReduceMax", "ReduceMin", "ReduceSum", "ReduceSum")
    axes = sorted({b.axis_of(x) for _ in range(b.one(1, 1, 2))})
    if b.chance(50):
        axes = [axis - len(x.shape) for axis in axes] if b.opset >= 11 else axes
    if b.opset < (13 if op_type == "ReduceSum" else 18):
        b.add(op_type, [x], axes=axes, keepdims=b.one(0, 1))
    else:
        b.add(op_type, [x, b.ints(*axes)], keepdims=b.one(0, 1))


def pad(b: Builder) -> None:
    x, axis = b.pick(), None
    axis, mode = b.axis_of(x), b.one("constant", "edge", "reflect", "wrap" if b.opset >= 19 else "edge")
    pads = np.zeros((2, len(x.shape)), np.int64)
    pads[:, axis] = b.one((0, 1), (1, 1), (1, -1), (2, 0))
    if b.opset < 11:
        b.add("Pad", [x], pads=pads.ravel().tolist(), mode=mode)
    elif b.opset >= 18 and b.chance(30):
        b.add("Pad", [x, b.ints(*pads[:, axis]), None, b.ints(axis)], mode=mode)
    else:
        b.add("Pad", [x, b.ints(*pads.ravel())], mode=mode)


def slice_(b: Builder) -> None:
    x = b.pick()
    axis, start, end = b.axis_of(x), b.number(-6, 3), b.number(-5, 6)
    if b.opset < 10:
        b.add("Slice", [x], starts=[start], ends=[end], axes=[axis])
    else:
        b.add("Slice", [x, *(b.ints(n) for n in (start, end, axis, b.one(1, 1, 2, -1, -2)))])


def gather(b: Builder) -> None:
    x = b.pick()
    axis = b.axis_of(x)
    size = x.shape[axis]
    lowest = -size if b.opset >= 11 else 0
    indices = np.array([b.number(lowest, size - 1) for _ in range(b.number(1, 4))])
    form = b.one("vector", "vector", "scalar", "matrix", "input")
    if form == "scalar":
        indices = np.array(indices[0])
    if form == "matrix":
        indices = indices.reshape(1, -1)
    if form == "input" and not b.dynamic and size > 1:
        b.add("Gather", [x, b.indices(indices.shape)], axis=axis)
        return
    b.add("Gather", [x, b.constant(indices, plain=True)], axis=axis)


def embedding(b: Builder) -> None:
    """Rows of a constant table, picked at run time."""
    x = b.pick()
    rows = b.indices((BATCH, *x.shape[1:-1]))
    b.axis = -1
    b.add("Gather", [b.constant(b.floats(b.number(2, 4), b.number(1, 4)), share=True), rows], axis=0)


def split(b: Builder) -> None:
    x = b.pick()
    axis = b.channels_of(x)
    if x.shape[axis] < 2 or axis < int(b.dynamic):
        return
    first = b.number(1, x.shape[axis] - 1)
    lengths = [first, x.shape[axis] - first]
    if b.opset < 13:
        b.add("Split", [x], outputs=2, axis=axis, split=lengths)
    else:
        b.add("Split", [x, b.ints(*lengths)], outputs=2, axis=axis)


def blocks(b: Builder) -> None:
    x = b.pick()
    if len(x.shape) != 4:
        return
    if x.shape[1] % 4 and x.shape[2] % 2 == x.shape[3] % 2 == 0:
        b.add("SpaceToDepth", [x], blocksize=2)
        return
    if x.shape[1] % 4 and b.add("Conv", [x, b.constant(b.floats(4 * b.number(1, 2), x.shape[1], 1, 1), share=True)]):
        x = b.tensors[-1]
    b.add("DepthToSpace", [x], blocksize=2, mode=b.one("DCR", "CRD") if b.opset >= 11 else None)


def resize(b: Builder) -> None:
    x = b.pick()
    scales = [1.0] * len(x.shape)
    scales[b.axis_of(x)] = 2.0
    mode = b.one("nearest", "linear")
    stored = None if b.opset < 9 else b.constant(np.array(scales, np.float32), plain=True)
    if b.opset < 9:
        b.add("Upsample", [x], scales=scales, mode=mode)
    elif b.opset == 9:
        b.add("Upsample", [x, stored], mode=mode)
    elif b.opset == 10:
        b.add("Resize", [x, stored], mode=mode)
    else:
        roi = None if b.opset >= 13 else b.constant(np.zeros(0, np.float32), plain=True)
        b.add("Resize", [x, roi, stored], mode=mode)


def expand(b: Builder) -> None:
    x = b.pick()
    target = [b.one(size, size, 3) if size == 1 else size for size in x.shape]
    if b.opset < 8 or len(target) > 4:
        return
    if b.chance(25) and not b.dynamic:
        target = [b.one(1, 2), *target]
    target[0] = 1 if b.dynamic else target[0]
    b.add("Expand", [x, b.ints(*target)])


def tile(b: Builder) -> None:
    x = b.pick()
    repeats = [1] * len(x.shape)
    repeats[b.channels_of(x) if b.chance(70) else b.axis_of(x)] = 2
    repeats[0] = 1 if b.dynamic else repeats[0]
    b.add("Tile", [x, b.ints(*repeats)])
