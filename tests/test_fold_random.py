"""Random graphs: forks, joins, shared weights, odd shapes. Folded equals original in float64, whatever the graph.

``BNFOLD_GRAPHS=20000 pytest tests/test_fold_random.py -p no:randomly`` runs the deep profile.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from folding import folded, ops
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

GRAPHS = int(os.environ.get("BNFOLD_GRAPHS", "150"))
BATCH = 2


@dataclass
class Builder:
    """Grows a graph in double, one node at a time, with the concrete shape of each value."""

    draw: st.DrawFn
    random: np.random.Generator
    dynamic: bool
    model: ir.Model = field(init=False)
    values: list[tuple[ir.Value, tuple[int, ...]]] = field(default_factory=list)
    shared: list[ir.Value] = field(default_factory=list)

    def __post_init__(self) -> None:
        shape = (BATCH, self.draw(st.integers(1, 4)), self.draw(st.integers(3, 5)), self.draw(st.integers(3, 5)))
        batch: int | str = "N" if self.dynamic else BATCH
        source = ir.val("x", ir.DataType.DOUBLE, [batch, *shape[1:]])
        graph = ir.Graph([source], [], nodes=[], opset_imports={"": 17}, name="random")
        self.model = ir.Model(graph, ir_version=8)
        self.values.append((source, shape))

    def constant(self, array: np.ndarray, *, share: bool = False) -> ir.Value:
        if share:
            for value in self.shared:
                assert value.const_value is not None
                if tuple(value.const_value.shape.numpy()) == array.shape and self.draw(st.booleans()):
                    return value
        name = f"c{len(self.model.graph.initializers)}"
        value = ir.val(name, const_value=ir.tensor(array, name=name))
        self.model.graph.register_initializer(value)
        if share:
            self.shared.append(value)
        return value

    def floats(self, *shape: int) -> np.ndarray:
        return self.random.normal(size=shape)

    def add(self, op_type: str, inputs: list[ir.Value | None], shape: tuple[int, ...], **attributes: object) -> None:
        node = ir.node(op_type, inputs, attributes=attributes)  # type: ignore[arg-type]
        node.name = f"n{len(self.model.graph)}"
        node.outputs[0].name = f"v{len(self.model.graph)}"
        node.outputs[0].dtype = ir.DataType.DOUBLE
        self.model.graph.append(node)
        self.values.append((node.outputs[0], shape))

    def pick(self) -> tuple[ir.Value, tuple[int, ...]]:
        # Mostly the newest value: long chains with some forks.
        if self.draw(st.integers(0, 3)):
            return self.values[-1]
        return self.draw(st.sampled_from(self.values))


def conv(b: Builder) -> None:
    value, shape = b.pick()
    if len(shape) != 4:
        return
    n, c, h, w = shape
    group = b.draw(st.sampled_from([g for g in (1, 2, c) if c % g == 0]))
    out = group * b.draw(st.integers(1, 3))
    kernel = b.draw(st.sampled_from([1, 3])) if min(h, w) >= 3 else 1
    pad = b.draw(st.sampled_from([0, (kernel - 1) // 2]))
    weight = b.constant(b.floats(out, c // group, kernel, kernel), share=True)
    bias = b.constant(b.floats(out)) if b.draw(st.booleans()) else None
    grown = 2 * pad - kernel + 1
    b.add(
        "Conv", [value, weight, bias][: 3 if bias else 2], (n, out, h + grown, w + grown), group=group, pads=[pad] * 4
    )


def transposed_conv(b: Builder) -> None:
    value, shape = b.pick()
    if len(shape) != 4 or shape[2] * shape[3] > 64:
        return
    n, c, h, w = shape
    group = b.draw(st.sampled_from([g for g in (1, 2) if c % g == 0]))
    out, kernel = b.draw(st.integers(1, 2)), b.draw(st.integers(1, 2))
    weight = b.constant(b.floats(c, out, kernel, kernel), share=True)
    b.add("ConvTranspose", [value, weight], (n, out * group, h + kernel - 1, w + kernel - 1), group=group)


def matmul(b: Builder) -> None:
    value, shape = b.pick()
    out = b.draw(st.integers(1, 5))
    b.add("MatMul", [value, b.constant(b.floats(shape[-1], out), share=True)], (*shape[:-1], out))


def gemm(b: Builder) -> None:
    value, shape = b.pick()
    if len(shape) != 2:
        return
    out = b.draw(st.integers(1, 5))
    transposed = b.draw(st.booleans())
    weight = b.constant(b.floats(*((out, shape[1]) if transposed else (shape[1], out))))
    bias = b.draw(st.sampled_from([None, (), (1,), (out,), (1, out)]))
    inputs: list[ir.Value | None] = [value, weight, *([] if bias is None else [b.constant(b.floats(*bias))])]
    b.add("Gemm", inputs, (shape[0], out), transB=int(transposed), alpha=0.5, beta=2.0)


def batch_norm(b: Builder) -> None:
    value, shape = b.pick()
    if len(shape) < 2:
        return
    c = shape[1]
    parameters = [b.constant(b.floats(c)) for _ in range(3)] + [b.constant(np.abs(b.floats(c)) + 0.1)]
    b.add("BatchNormalization", [value, *parameters], shape)


def binary(b: Builder) -> None:
    value, shape = b.pick()
    op_type = b.draw(st.sampled_from(["Add", "Sub", "Mul", "Div"]))
    axes = list(range(1, len(shape)))
    kind = b.draw(st.sampled_from(["scalar", "axis", "row", "two axes"]))
    dims = [1] * len(shape)
    chosen = {"scalar": [], "axis": [b.draw(st.sampled_from(axes))], "row": [len(shape) - 1], "two axes": axes[-2:]}[
        kind
    ]
    for axis in chosen:
        dims[axis] = shape[axis]
    array = b.floats(*dims)
    array = np.sign(array) * (np.abs(array) + 0.3)
    if kind == "row" and b.draw(st.booleans()):
        array = array.reshape(-1)
    inputs: list[ir.Value | None] = [value, b.constant(array)]
    if op_type != "Div" and b.draw(st.booleans()):
        inputs.reverse()
    b.add(op_type, inputs, shape)


def unary(b: Builder) -> None:
    value, shape = b.pick()
    b.add(b.draw(st.sampled_from(["Relu", "LeakyRelu", "Identity", "Tanh", "Neg", "Dropout"])), [value], shape)


def transpose(b: Builder) -> None:
    value, shape = b.pick()
    order = [0, *b.draw(st.permutations(range(1, len(shape))))]
    b.add("Transpose", [value], tuple(shape[axis] for axis in order), perm=order)


def reshape(b: Builder) -> None:
    value, shape = b.pick()
    if len(shape) == 4:
        target = b.draw(st.sampled_from([(0, 0, -1), (0, -1), (0, 0, -1, 1)]))
    elif len(shape) == 3:
        target = b.draw(st.sampled_from([(0, 0, -1, 1), (0, -1)]))
    else:
        target = (0, -1, 1, 1)
    known = [shape[i] if dim == 0 else dim for i, dim in enumerate(target)]
    rest = int(np.prod(shape)) // int(np.prod([dim for dim in known if dim != -1]))
    b.add("Reshape", [value, b.constant(np.array(target))], tuple(rest if dim == -1 else dim for dim in known))


def join(b: Builder) -> None:
    value, shape = b.pick()
    others = [other for other, other_shape in b.values if other_shape == shape]
    b.add(b.draw(st.sampled_from(["Add", "Sub", "Mul"])), [value, b.draw(st.sampled_from(others))], shape)


def concat(b: Builder) -> None:
    value, shape = b.pick()
    axis = b.draw(st.integers(1, len(shape) - 1))
    fitting = [
        (v, s)
        for v, s in b.values
        if len(s) == len(shape) and s[:axis] + s[axis + 1 :] == shape[:axis] + shape[axis + 1 :]
    ]
    other, other_shape = b.draw(st.sampled_from(fitting))
    b.add("Concat", [value, other], (*shape[:axis], shape[axis] + other_shape[axis], *shape[axis + 1 :]), axis=axis)


def pool(b: Builder) -> None:
    value, shape = b.pick()
    if len(shape) != 4 or min(shape[2:]) < 2:
        return
    n, c, h, w = shape
    op_type = b.draw(st.sampled_from(["AveragePool", "MaxPool", "GlobalAveragePool", "GlobalMaxPool"]))
    if op_type.startswith("Global"):
        b.add(op_type, [value], (n, c, 1, 1))
        return
    pad = b.draw(st.integers(0, 1))
    include: dict[str, object] = {"count_include_pad": b.draw(st.integers(0, 1))} if op_type == "AveragePool" else {}
    b.add(op_type, [value], (n, c, h - 1 + 2 * pad, w - 1 + 2 * pad), kernel_shape=[2, 2], pads=[pad] * 4, **include)


def reduce(b: Builder) -> None:
    value, shape = b.pick()
    if len(shape) < 3:
        return
    axis, keep = b.draw(st.integers(1, len(shape) - 1)), b.draw(st.integers(0, 1))
    left = (*shape[:axis], *([1] * keep), *shape[axis + 1 :])
    b.add(b.draw(st.sampled_from(["ReduceMean", "ReduceMax"])), [value], left, axes=[axis - len(shape)], keepdims=keep)


def pad(b: Builder) -> None:
    value, shape = b.pick()
    axis, mode = b.draw(st.integers(1, len(shape) - 1)), b.draw(st.sampled_from(["constant", "edge", "wrap"]))
    pads = np.zeros(2 * len(shape), np.int64)
    pads[[axis, axis + len(shape)]] = 0, 1
    grown = (*shape[:axis], shape[axis] + 1, *shape[axis + 1 :])
    # `wrap` is of opset 19; the reference of 17 knows the others.
    b.add("Pad", [value, b.constant(pads)], grown, mode="edge" if mode == "wrap" else mode)


def pick_channels(b: Builder) -> None:
    value, shape = b.pick()
    axis = b.draw(st.integers(1, len(shape) - 1))
    size = shape[axis]
    if b.draw(st.booleans()):
        picks = np.array(b.draw(st.lists(st.integers(-size, size - 1), min_size=1, max_size=4)))
        b.add("Gather", [value, b.constant(picks)], (*shape[:axis], len(picks), *shape[axis + 1 :]), axis=axis)
        return
    start, end, step = b.draw(st.integers(-6, 5)), b.draw(st.integers(-7, 6)), b.draw(st.sampled_from([1, 2, -1, -2]))
    made = len(np.arange(size)[start:end:step])
    if not made:
        return
    inputs: list[ir.Value | None] = [value, *(b.constant(np.array([n])) for n in (start, end, axis, step))]
    b.add("Slice", inputs, (*shape[:axis], made, *shape[axis + 1 :]))


def blocks(b: Builder) -> None:
    value, shape = b.pick()
    if len(shape) != 4:
        return
    n, c, h, w = shape
    if c % 4 == 0:
        mode = b.draw(st.sampled_from(["DCR", "CRD"]))
        b.add("DepthToSpace", [value], (n, c // 4, h * 2, w * 2), blocksize=2, mode=mode)
    elif h % 2 == w % 2 == 0:
        b.add("SpaceToDepth", [value], (n, c * 4, h // 2, w // 2), blocksize=2)


def split(b: Builder) -> None:
    value, shape = b.pick()
    axis = b.draw(st.integers(1, len(shape) - 1))
    if shape[axis] < 2:
        return
    first = b.draw(st.integers(1, shape[axis] - 1))
    lengths = b.constant(np.array([first, shape[axis] - first]))
    left = (*shape[:axis], first, *shape[axis + 1 :])
    b.add("Split", [value, lengths], left, axis=axis)
    node = list(b.model.graph)[-1]
    node.resize_outputs(2)
    node.outputs[1].name, node.outputs[1].dtype = f"{node.outputs[0].name}b", ir.DataType.DOUBLE
    b.values.append((node.outputs[1], (*shape[:axis], shape[axis] - first, *shape[axis + 1 :])))


def resize(b: Builder) -> None:
    value, shape = b.pick()
    if len(shape) != 4 or shape[2] * shape[3] > 40:
        return
    scales = b.constant(np.array([1.0, 1.0, 2.0, 1.0], np.float32))
    mode = b.draw(st.sampled_from(["nearest", "linear"]))
    b.add("Resize", [value, None, scales], (*shape[:2], shape[2] * 2, shape[3]), mode=mode)


def positive_scale(b: Builder) -> None:
    """What a Relu or a MaxPool lets pass."""
    value, shape = b.pick()
    dims = [1] * len(shape)
    dims[1] = shape[1]
    b.add("Mul", [value, b.constant(np.abs(b.floats(*dims)) + 0.1)], shape)


STEPS = [
    conv,
    transposed_conv,
    matmul,
    gemm,
    batch_norm,
    batch_norm,
    batch_norm,
    binary,
    binary,
    unary,
    transpose,
    reshape,
    join,
    concat,
    pool,
    reduce,
    pad,
    pick_channels,
    blocks,
    split,
    resize,
    positive_scale,
]


@st.composite
def graphs(draw: st.DrawFn) -> ir.Model:
    builder = Builder(draw, np.random.default_rng(draw(st.integers(0, 2**32 - 1))), draw(st.booleans()))
    for _ in range(draw(st.integers(3, 14))):
        draw(st.sampled_from(STEPS))(builder)
    made = [value for value, _ in builder.values[1:]]
    if not made:
        unary(builder)
        made = [builder.values[-1][0]]
    loose = [value for value in made if not value.uses()]
    extra = [value for value in made if value.uses() and draw(st.integers(0, 7)) == 0]
    for value in (*loose, *extra):
        shape = next(s for v, s in builder.values if v is value)
        value.shape = ir.Shape(["N" if builder.dynamic else BATCH, *shape[1:]])
        builder.model.graph.outputs.append(value)
    return builder.model


@settings(max_examples=GRAPHS, deadline=None, suppress_health_check=list(HealthCheck))
@given(graphs())
def test_folded_equals_original_in_float64(model: ir.Model) -> None:
    after, report = folded(model, tolerance=1e-9)
    assert sum(ops(after).values()) <= sum(ops(model).values())
    assert report.batch_norms_after == ops(after).get("BatchNormalization", 0)
