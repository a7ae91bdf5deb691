"""Random networks of many families, unfolded: what bnfold's engine folds, merges, moves and leaves, all in one place.

Where :mod:`verify_networks` folds by hand and shares nothing with the engine, these are folded by the engine itself:
branches that become one kernel, affines that cross pools, concatenations and sums, batch norms ahead of a convolution.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import ml_dtypes
import numpy as np
import onnx
from onnx import helper, numpy_helper
from verify_networks import ONNX_TYPES

#: Side of the images; a number of channels too, so that an axis can be mistaken for another.
SIDE = 12


@dataclass(eq=False)
class Family:
    """Grows one network; each method adds an operator and returns the name of its result."""

    seed: int
    dtype: str = "float32"
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: dict[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.random = np.random.default_rng(self.seed)

    def constant(self, array: np.ndarray) -> str:
        name = f"c{len(self.constants)}"
        floating = np.issubdtype(array.dtype, np.floating)
        self.constants[name] = array.astype(np.dtype(getattr(ml_dtypes, self.dtype, self.dtype))) if floating else array
        return name

    def op(self, op_type: str, *inputs: str, **attributes: object) -> str:
        name = f"{op_type.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, list(inputs), [f"{name}_out"], name=name, **attributes))
        return f"{name}_out"

    def normal(self, *shape: int) -> np.ndarray:
        return self.random.standard_normal(shape)

    def norm(self, value: str, channels: int) -> str:
        """A batch norm whose scales have both signs and unlike sizes."""
        scale = self.normal(channels) * 0.5 + 1
        scale[self.random.random(channels) < 0.1] *= -1
        parameters = (scale, self.normal(channels) * 0.5, self.normal(channels), np.exp(self.normal(channels) * 0.7))
        epsilon = float(self.random.choice([1e-5, 1e-3]))
        return self.op("BatchNormalization", value, *map(self.constant, parameters), epsilon=epsilon)

    def conv(self, value: str, inputs: int, outputs: int, kernel: Sequence[int], **attributes: object) -> str:
        group = int(attributes.get("group", 1))  # type: ignore[call-overload]
        fan = inputs // group * int(np.prod(kernel))
        weight = self.constant(self.normal(outputs, inputs // group, *kernel) * np.sqrt(2 / fan))
        bias = [self.constant(self.normal(outputs) * 0.3)] if self.random.random() < 0.5 else []
        pads = attributes.pop("pads", [(k - 1) // 2 for k in kernel] * 2)
        return self.op("Conv", value, weight, *bias, kernel_shape=list(kernel), pads=pads, **attributes)

    def activation(self, value: str) -> str:
        op_type = str(self.random.choice(["Relu", "LeakyRelu", "Sigmoid", "HardSwish"]))
        return self.op(op_type, value)

    def model(self, output: str, shape: Sequence[int | str]) -> onnx.ModelProto:
        self.nodes.append(helper.make_node("Identity", [output], ["y"], name="end"))
        kind = ONNX_TYPES[self.dtype]
        graph = helper.make_graph(
            self.nodes,
            "family",
            [helper.make_tensor_value_info("x", kind, ["batch", 3, SIDE, SIDE])],
            [helper.make_tensor_value_info("y", kind, shape)],
            [numpy_helper.from_array(array, name) for name, array in self.constants.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        onnx.checker.check_model(model)
        return model


Block = Callable[[Family, str, int], tuple[str, int]]


def _plain(f: Family, x: str, c: int) -> tuple[str, int]:
    out = int(f.random.choice([8, SIDE]))
    kernel = [[3, 3], [1, 3], [3, 1], [1, 1]][int(f.random.integers(4))]
    return f.activation(f.norm(f.conv(x, c, out, kernel), out)), out


def _grouped(f: Family, x: str, c: int) -> tuple[str, int]:
    group = int(f.random.choice([2, 4, c]))  # 8 and 12 channels
    return f.activation(f.norm(f.conv(x, c, c, [3, 3], group=group), c)), c


def _dilated(f: Family, x: str, c: int) -> tuple[str, int]:
    return f.norm(f.conv(x, c, c, [3, 3], dilations=[2, 1], pads=[2, 1, 2, 1]), c), c


def _repvgg(f: Family, x: str, c: int) -> tuple[str, int]:
    """Three branches that become one kernel."""
    large, small = f.norm(f.conv(x, c, c, [3, 3]), c), f.norm(f.conv(x, c, c, [1, 1]), c)
    total = f.op("Add", large, small)
    return f.activation(f.op("Add", total, f.norm(x, c)) if f.random.random() < 0.7 else total), c


def _asymmetric(f: Family, x: str, c: int) -> tuple[str, int]:
    """ACNet's three branches, one of them with a sign."""
    square, wide = f.norm(f.conv(x, c, c, [3, 3]), c), f.norm(f.conv(x, c, c, [1, 3]), c)
    tall = f.norm(f.conv(x, c, c, [3, 1]), c)
    return f.activation(f.op("Sub", f.op("Add", square, wide), tall)), c


def _in_a_row(f: Family, x: str, c: int) -> tuple[str, int]:
    """Two convolutions without anything in between: the second takes in the first."""
    return f.activation(f.norm(f.conv(f.norm(f.conv(x, c, c, [3, 3]), c), c, c, [1, 1]), c)), c


def _residual(f: Family, x: str, c: int) -> tuple[str, int]:
    inner = f.activation(f.norm(f.conv(x, c, c, [3, 3]), c))
    return f.activation(f.op("Add", f.norm(f.conv(inner, c, c, [1, 1]), c), x)), c


def _concat(f: Family, x: str, c: int) -> tuple[str, int]:
    """A batch norm that goes back through a concatenation to two convolutions."""
    both = f.op("Concat", f.conv(x, c, 4, [3, 3]), f.conv(x, c, 4, [1, 1]), axis=1)
    return f.activation(f.norm(both, 8)), 8


def _through_a_pool(f: Family, x: str, c: int) -> tuple[str, int]:
    pooled = f.op("AveragePool", f.conv(x, c, c, [1, 1]), kernel_shape=[3, 3], pads=[1] * 4, count_include_pad=0)
    return f.activation(f.norm(pooled, c)), c


def _ahead(f: Family, x: str, c: int) -> tuple[str, int]:
    """A batch norm that goes forward into a convolution, which must not pad."""
    pads = [1] * 4 if f.random.random() < 0.5 else [0] * 4
    return f.activation(f.conv(f.norm(x, c), c, 8, [3, 3] if any(pads) else [1, 1], pads=pads)), 8


def _affines(f: Family, x: str, c: int) -> tuple[str, int]:
    """A batch norm taken apart, constants on either side."""
    value = f.op("Sub", f.conv(x, c, c, [1, 1]), f.constant(f.normal(c, 1, 1)))
    value = f.op("Mul", f.constant(f.normal(c, 1, 1)), value)
    return f.activation(f.op("Sub", f.constant(f.normal(c, 1, 1)), value)), c


def _kept(f: Family, x: str, c: int) -> tuple[str, int]:
    """Affines that can go nowhere: a scale of the columns, and one between two activations."""
    value = f.op("Mul", f.activation(x), f.constant(f.normal(SIDE)))
    value = f.op("Mul", f.op("Tanh", value), f.constant(f.normal(c, 1, 1) + 2))
    return f.op("Tanh", value), c


def _difference(f: Family, x: str, c: int) -> tuple[str, int]:
    """Two branches with an activation each, which nobody can merge."""
    one, other = (f.activation(f.norm(f.conv(x, c, c, kernel), c)) for kernel in ([3, 3], [1, 1]))
    return f.op("Sub", one, other), c


def _transposed(f: Family, x: str, c: int) -> tuple[str, int]:
    group = int(f.random.choice([1, 2]))
    weight = f.constant(f.normal(c, c // group, 2, 2) * np.sqrt(2 / c))
    value = f.norm(f.op("ConvTranspose", x, weight, group=group, strides=[2, 2]), c)
    return f.op("MaxPool", value, kernel_shape=[2, 2], strides=[2, 2]), c


BLOCKS: tuple[Block, ...] = (
    *(_plain, _grouped, _dilated, _repvgg, _asymmetric, _in_a_row, _residual, _concat),
    *(_through_a_pool, _ahead, _affines, _kept, _difference, _transposed),
)


def family_network(seed: int, dtype: str = "float32", deepest: int = 4) -> onnx.ModelProto:
    """One to ``deepest`` blocks after a stem, then a map, a linear head or an uneven stride."""
    f = Family(seed, dtype)
    value, channels = _plain(f, "x", 3)
    for _ in range(int(f.random.integers(1, deepest + 1))):
        value, channels = BLOCKS[int(f.random.integers(len(BLOCKS)))](f, value, channels)
    ending = f.random.choice(["map", "strided", "gemm", "matmul"])
    if ending == "map":
        return f.model(value, ["batch", channels, "h", "w"])
    value = f.activation(f.norm(f.conv(value, channels, channels, [3, 3], strides=[2, 1]), channels))
    if ending == "strided":
        return f.model(value, ["batch", channels, "h", "w"])
    value = f.op("Flatten", f.op("GlobalAveragePool", value))
    if ending == "gemm":
        weight = f.constant(f.normal(10, channels) / np.sqrt(channels))
        value = f.norm(f.op("Gemm", value, weight, f.constant(f.normal(10)), transB=1), 10)
    else:
        value = f.op("MatMul", value, f.constant(f.normal(channels, 10) / np.sqrt(channels)))
        value = f.norm(f.op("Add", value, f.constant(f.normal(10))), 10)
    return f.model(value, ["batch", 10])
