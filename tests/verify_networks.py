"""Random batch-normalized networks with an honest fold of each, and ways to damage the fold.

The fold here is written straight from the algebra and shares nothing with bnfold's engine.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

ONNX_TYPES = {
    "bfloat16": TensorProto.BFLOAT16,
    "float16": TensorProto.FLOAT16,
    "float32": TensorProto.FLOAT,
    "float64": TensorProto.DOUBLE,
}


@dataclass(eq=False)
class Linear:
    """A linear operator and the batch norm after it; ``weight`` in the operator's own layout."""

    op: str
    weight: np.ndarray
    bias: np.ndarray | None
    gamma: np.ndarray
    beta: np.ndarray
    mean: np.ndarray
    var: np.ndarray
    epsilon: float = 1e-5
    attributes: dict = field(default_factory=dict)

    def folded(self, epsilon: float | None = None, dtype: type = np.float64) -> tuple[np.ndarray, np.ndarray]:
        """Weight and bias with the batch norm in them, computed in float64 or, as other tools do, in a narrower type."""
        wide = lambda a: a.astype(dtype)  # noqa: E731
        scale = wide(self.gamma) / np.sqrt(wide(self.var) + dtype(epsilon or np.float32(self.epsilon)))
        bias = (0.0 if self.bias is None else wide(self.bias)) - wide(self.mean)
        weight = wide(self.weight)
        if self.op == "ConvTranspose":
            groups = self.attributes.get("group", 1)
            blocks = weight.reshape(groups, -1, *weight.shape[1:])
            shape = (groups, 1, -1, *(1,) * (weight.ndim - 2))
            weight = (blocks * scale.reshape(shape)).reshape(weight.shape)
        elif self.op == "MatMul":
            weight = weight * scale
        else:
            weight = weight * scale.reshape(-1, *(1,) * (weight.ndim - 1))
        return weight, scale * bias + wide(self.beta)

    @property
    def feature_axis(self) -> int:
        return {"Conv": 0, "Gemm": 0, "ConvTranspose": 1, "MatMul": 1}[self.op]


@dataclass
class Network:
    """Steps are :class:`Linear` layers, ``(op_type, attributes)`` of plain operators, or ``"add"`` of a residual."""

    steps: list
    input_shape: list
    dtype: str = "float32"

    @property
    def linears(self) -> list[Linear]:
        return [step for step in self.steps if isinstance(step, Linear)]

    def model(self, folded: bool, damage=None, fold_type: type = np.float64) -> onnx.ModelProto:
        """The network with its batch norms, or folded; ``damage(index, weight, bias)`` may change a folded layer."""
        nodes, constants = [], []
        numpy_type = np.dtype(getattr(ml_dtypes, self.dtype, self.dtype))

        def constant(name, array):
            constants.append(numpy_helper.from_array(np.asarray(array).astype(numpy_type), name))
            return name

        value, saved = "x", "x"
        for number, step in enumerate(self.steps):
            result = f"v{number}"
            if step == "save":
                saved = value
                continue
            if step == "add":
                nodes.append(helper.make_node("Add", [value, saved], [result]))
            elif isinstance(step, Linear):
                weight, bias = step.weight, step.bias
                if folded:
                    weight, bias = step.folded(dtype=fold_type)
                    if damage is not None:
                        weight, bias = damage(self.linears.index(step), weight, bias)
                inputs = [value, constant(f"w{number}", weight)]
                linear = result if folded else f"l{number}"
                if step.op == "MatMul":
                    product = f"m{number}" if bias is not None else linear
                    nodes.append(helper.make_node("MatMul", inputs, [product]))
                    if bias is not None:
                        nodes.append(helper.make_node("Add", [product, constant(f"b{number}", bias)], [linear]))
                else:
                    if bias is not None:
                        inputs.append(constant(f"b{number}", bias))
                    nodes.append(helper.make_node(step.op, inputs, [linear], **step.attributes))
                if not folded:
                    parameters = [constant(f"{n}{number}", getattr(step, n)) for n in ("gamma", "beta", "mean", "var")]
                    nodes.append(
                        helper.make_node("BatchNormalization", [linear, *parameters], [result], epsilon=step.epsilon)
                    )
            else:
                op_type, attributes = step
                nodes.append(helper.make_node(op_type, [value], [result], **attributes))
            value = result
        nodes.append(helper.make_node("Identity", [value], ["y"]))
        kind = ONNX_TYPES[self.dtype]
        rank = 2 if ("Flatten", {}) in self.steps else len(self.input_shape)
        graph = helper.make_graph(
            nodes,
            "network",
            [helper.make_tensor_value_info("x", kind, self.input_shape)],
            [helper.make_tensor_value_info("y", kind, ["batch", *[None] * (rank - 1)])],
            constants,
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def linear(random, op, channels, features, *, kernel=3, groups=1, bias=None, dtype="float32", **attributes):
    """A layer with weights of He's scale and statistics that roughly fit its output."""
    numpy_type = np.dtype(getattr(ml_dtypes, dtype, dtype))
    rank = 2
    if op == "Conv":
        shape = (features, channels // groups, *(kernel,) * rank)
        fan = channels // groups * kernel**rank
    elif op == "ConvTranspose":
        shape = (channels, features // groups, *(kernel,) * rank)
        fan = channels // groups * kernel**rank // 4
    else:
        shape, fan = ((features, channels) if op == "Gemm" else (channels, features)), channels
    if groups > 1:
        attributes["group"] = groups
    if op == "Gemm":
        attributes["transB"] = 1
    with_bias = random.random() < 0.5 if bias is None else bias
    normal = lambda *size: random.standard_normal(size)  # noqa: E731
    gamma = normal(features) * 0.5 + 1
    gamma[random.random(features) < 0.05] *= 1e-2
    mean = normal(features)
    if random.random() < 0.1:
        mean = mean * 10
    return Linear(
        op,
        (normal(*shape) * np.sqrt(2 / max(fan, 1))).astype(numpy_type),
        normal(features).astype(numpy_type) * numpy_type.type(0.5) if with_bias else None,
        gamma.astype(numpy_type),
        (normal(features) * 0.5).astype(numpy_type),
        mean.astype(numpy_type),
        np.exp(normal(features) * 0.7).astype(numpy_type),
        epsilon=float(random.choice([1e-5, 1e-3])),
        attributes=attributes,
    )


def random_network(seed: int, dtype: str = "float32", deepest: int = 6) -> Network:
    """A network of convolutions (dense, grouped, depthwise, transposed), residuals and pools, with a linear head."""
    random = np.random.default_rng(seed)
    channels = int(random.choice([4, 8, 12]))
    steps: list = []

    def layer(op, inputs, outputs, **settings):
        steps.append(linear(random, op, inputs, outputs, dtype=dtype, **settings))

    layer("Conv", 3, channels, pads=[1, 1, 1, 1])
    steps.append(("Relu", {}))
    for _ in range(int(random.integers(1, deepest + 1))):
        kind = random.choice(["plain", "depthwise", "grouped", "residual", "transposed", "pool"])
        if kind == "plain":
            features = int(random.choice([4, 8, 12]))
            layer("Conv", channels, features, pads=[1, 1, 1, 1])
            channels = features
        elif kind == "depthwise":
            layer("Conv", channels, channels, groups=channels, pads=[1, 1, 1, 1])
            steps.append(("Relu", {}))
            layer("Conv", channels, channels, kernel=1)
        elif kind == "grouped":
            layer("Conv", channels, channels, groups=2, pads=[1, 1, 1, 1])
        elif kind == "residual":
            steps.append("save")
            layer("Conv", channels, channels, pads=[1, 1, 1, 1])
            steps.append(("Relu", {}))
            layer("Conv", channels, channels, kernel=1)
            steps.append("add")
        elif kind == "transposed":
            layer("ConvTranspose", channels, channels, groups=int(random.choice([1, 2])), kernel=2, strides=[2, 2])
            steps.append(("AveragePool", {"kernel_shape": [2, 2], "strides": [2, 2]}))
        else:
            steps.append(("MaxPool", {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}))
        steps.append((str(random.choice(["Relu", "LeakyRelu", "Sigmoid", "Identity"])), {}))
    ending = random.choice(["map", "gemm", "matmul"])
    if ending != "map":
        steps += [("GlobalAveragePool", {}), ("Flatten", {})]
        features = int(random.choice([10, 16]))
        layer("Gemm" if ending == "gemm" else "MatMul", channels, features)
        if random.random() < 0.5:
            steps.append(("Relu", {}))
            layer("Gemm", features, 10)
    return Network(steps, ["batch", 3, 12, 12], dtype)


def resnet50() -> Network:
    """The convolutions, residuals and sizes of ResNet-50, with random weights, at 224 × 224."""
    random = np.random.default_rng(0)
    steps: list = []

    def layer(op, inputs, outputs, **settings):
        steps.append(linear(random, op, inputs, outputs, bias=False, **settings))

    layer("Conv", 3, 64, kernel=7, pads=[3] * 4, strides=[2, 2])
    steps += [("Relu", {}), ("MaxPool", {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1] * 4})]
    channels = 64
    for stage, (width, blocks) in enumerate([(64, 3), (128, 4), (256, 6), (512, 3)]):
        for block in range(blocks):
            stride = 2 if stage and not block else 1
            if block:
                steps.append("save")
            layer("Conv", channels, width, kernel=1)
            steps.append(("Relu", {}))
            layer("Conv", width, width, pads=[1] * 4, strides=[stride, stride])
            steps.append(("Relu", {}))
            layer("Conv", width, width * 4, kernel=1)
            channels = width * 4
            if block:
                # As in training: a residual branch starts small, or the activations grow from block to block.
                steps[-1].gamma = steps[-1].gamma * np.float32(0.2)
                steps.append("add")
            steps.append(("Relu", {}))
    steps += [("GlobalAveragePool", {}), ("Flatten", {})]
    layer("Gemm", channels, 1000)
    return Network(steps, ["batch", 3, 224, 224])


def _scaled_channel(factor):
    def damage(network, random):
        target = int(random.integers(len(network.linears)))
        layer = network.linears[target]
        axis = layer.feature_axis
        channel = int(random.integers(layer.weight.shape[axis]))

        def apply(index, weight, bias):
            if index == target:
                weight = weight.copy()
                weight[(slice(None),) * axis + (channel,)] *= factor
            return weight, bias

        return apply

    return damage


def _swapped_channels(network, random):
    target = int(random.integers(len(network.linears)))
    layer = network.linears[target]
    axis = layer.feature_axis
    one, other = random.choice(layer.weight.shape[axis], 2, replace=False)

    def apply(index, weight, bias):
        if index == target:
            order = np.arange(weight.shape[axis])
            order[[one, other]] = order[[other, one]]
            weight = weight.take(order, axis=axis)
        return weight, bias

    return apply


def _on_bias(change):
    def damage(network, random):
        target = int(random.integers(len(network.linears)))

        def apply(index, weight, bias):
            return (weight, change(bias)) if index == target else (weight, bias)

        return apply

    return damage


def _wrong_epsilon(network, random):
    target = int(random.integers(len(network.linears)))

    def apply(index, weight, bias):
        if index == target:
            layer = network.linears[target]
            return layer.folded(epsilon=1e-3 if layer.epsilon < 1e-4 else 1e-5)
        return weight, bias

    return apply


def _one_element(network, random):
    target = int(random.integers(len(network.linears)))
    place = int(random.integers(network.linears[target].weight.size))

    def apply(index, weight, bias):
        if index == target:
            weight = weight.copy()
            weight.reshape(-1)[place] *= 1.01
        return weight, bias

    return apply


#: Each takes a network and a random generator and returns the ``damage`` of :meth:`Network.model`.
DAMAGES = {
    "one channel of one weight off by 1 %": _scaled_channel(1.01),
    "one channel of one weight off by 0.1 %": _scaled_channel(1.001),
    "one element of one weight off by 1 %": _one_element,
    "bias × 1.001": _on_bias(lambda bias: bias * 1.001),
    "bias dropped": _on_bias(np.zeros_like),
    "two channels of a weight swapped": _swapped_channels,
    "wrong epsilon": _wrong_epsilon,
}
