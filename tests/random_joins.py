"""Random steps of several inputs: joins of activations and constants, attention, gates; and ops that nothing crosses."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from graph_builder import Builder, Tensor
from random_steps import along

JOINS = ("Add", "Add", "Add", "Sub", "Sum", "Sum", "Mean", "Max", "Min", "Mul", "Div")


def join(b: Builder) -> None:
    x, op_type = b.pick(), b.one(*JOINS)
    same = [other for other in b.tensors if other.shape == x.shape]
    near = [other for other in b.tensors if broadcasts(other.shape, x.shape)] if b.opset >= 8 else same
    others = [b.one(*(near if b.chance(40) else same)) for _ in range(b.one(1, 1, 2))]
    if op_type == "Div":  # by something that is never 0: 0 / 0 says nothing
        b.add("Sigmoid", others[:1])
        others = [b.tensors[-1]]
    b.add(op_type, [x, *(others[:1] if op_type in ("Add", "Sub", "Mul", "Div") else others)])


def broadcasts(shape: tuple[int, ...], target: tuple[int, ...]) -> bool:
    pairs = zip(shape[::-1], target[::-1], strict=False)
    return len(shape) <= len(target) and all(size in (1, wanted) for size, wanted in pairs)


def branches(b: Builder) -> None:
    """Two convolutions or products of one value that meet again."""
    x = b.pick()
    for step in (linear, linear):
        b.tensors.append(x)
        b.axis = b.axis if len(x.shape) < 3 else 1
        step(b)
    join(b)


def linear(b: Builder) -> None:
    x = b.tensors[-1]
    if len(x.shape) >= 3:
        b.add("Conv", [x, b.constant(b.floats(x.shape[1], x.shape[1], *[1] * (len(x.shape) - 2)), share=True)])
    elif x.shape:
        b.add("MatMul", [x, b.constant(b.floats(x.shape[-1], x.shape[-1]), share=True)])


def concat(b: Builder) -> None:
    x = b.pick()
    axis = b.axis_of(x)
    fitting = [
        other
        for other in b.tensors
        if len(other.shape) == len(x.shape) and _without(other.shape, axis) == _without(x.shape, axis)
    ]
    b.add("Concat", [x, b.one(*fitting)], axis=axis - len(x.shape) if b.opset >= 11 else axis)


def _without(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return (*shape[:axis], *shape[axis + 1 :])


def constant_join(b: Builder) -> None:
    """An Add, Max or product of a constant that is no affine along one axis: a positional embedding, say."""
    x = b.pick()
    first, rank = int(b.dynamic), len(x.shape)
    axes = [axis for axis in range(first, rank) if b.chance(70)]
    array = along(b, x, axes) if len(axes) != 1 or b.chance(50) else np.abs(along(b, x, axes))
    op_type = b.one("Add", "Sub", "Mul", "Div", *(() if b.opset < 8 else ("Add", "Sum", "Max", "Min", "Mean")))
    inputs: list[Tensor | ir.Value] = [x, b.constant(np.abs(array) + 0.2 if op_type == "Div" else array, share=True)]
    if b.chance(40) and op_type != "Div":
        inputs.reverse()
    b.add(op_type, inputs)


def constant_concat(b: Builder) -> None:
    """A class token, or padding by values of one's own."""
    x = b.pick()
    axis = b.axis_of(x)
    shape = [*x.shape]
    shape[axis] = b.number(1, 2)
    token: Tensor | ir.Value = b.constant(b.floats(*shape), share=True)
    if b.dynamic:
        shape = [1, *x.shape[1:]]
        if b.opset < 8 or not b.add(
            "Expand", [b.constant(b.floats(*shape), share=True), b.aside("Shape", x, np.array(x.shape))]
        ):
            return
        token = b.tensors[-1]
    b.add("Concat", [token, x] if b.chance(50) else [x, token], axis=axis)


def product(b: Builder) -> None:
    """Attention scores: a MatMul of two activations."""
    x = b.pick()
    if len(x.shape) < 3:
        return
    rank = len(x.shape)
    if b.add("Transpose", [x], perm=[*range(rank - 2), rank - 1, rank - 2]):
        other = b.tensors[-1]
        b.add("MatMul", [x, other] if b.chance(50) else [other, x])


def left_matmul(b: Builder) -> None:
    """A constant matrix on the left."""
    x = b.pick()
    if len(x.shape) >= 3:
        b.axis = len(x.shape) - 2
        b.add("MatMul", [b.constant(b.floats(b.number(1, 4), x.shape[-2]), share=True), x])


def gate(b: Builder) -> None:
    """A squeeze-and-excitation: a factor for each channel that is computed at run time."""
    x = b.pick()
    if len(x.shape) >= 3 and b.add("GlobalAveragePool", [x]) and b.add("Sigmoid", [b.tensors[-1]]):
        b.add("Mul", [x, b.tensors[-1]] if b.chance(50) else [b.tensors[-1], x])


# Ops that nothing crosses.


def block(b: Builder) -> None:
    b.add(b.one("Tanh", "Sigmoid", "Softplus"), [b.pick()])


def branch(b: Builder) -> None:
    """An If whose one body holds a convolution or product and an affine."""
    x = b.pick()
    if len(x.shape) < 2 or b.opset < 11:
        return
    flag = b.constant(np.array(b.chance(50)), plain=True)
    rank = len(x.shape)
    if rank >= 3:
        weight = b.constant(b.floats(x.shape[1], x.shape[1], *[1] * (rank - 2)), share=True)
        inner = ir.node("Conv", [x.value, weight])
    else:
        weight = b.constant(b.floats(x.shape[1], x.shape[1]), share=True)
        inner = ir.node("MatMul", [x.value, weight])
    scale = b.constant(b.floats(x.shape[1], *[1] * (rank - 2)), share=True)
    count = len(b.graph)
    nodes = [inner, ir.node("Mul", [inner.outputs[0], scale])]
    other = [ir.node("Relu", [x.value])]
    pair = []
    for name, steps in (("then", nodes), ("else", other)):
        for index, step in enumerate(steps):
            step.name, step.outputs[0].name = f"{name}{count}_{index}", f"{name}{count}_{index}"
            step.outputs[0].dtype = ir.DataType.DOUBLE
        pair.append(ir.Graph([], [steps[-1].outputs[0]], nodes=steps, name=f"{name}{count}"))
    b.add("If", [flag], then_branch=pair[0], else_branch=pair[1])
