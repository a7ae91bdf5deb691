"""Networks of a given size for the benchmarks, made node by node with random weights: no training, no download."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

OPSET, IR_VERSION = 17, 9


@dataclass
class Builder:
    """Nodes and weights of one graph; each method adds a layer and returns the name of its result."""

    seed: int = 0
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: list[onnx.TensorProto] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._random = np.random.default_rng(self.seed)

    def uniform(self, shape: tuple[int, ...], low: float, high: float) -> NDArray[np.float32]:
        """Random numbers between ``low`` and ``high``."""
        return self._random.random(shape, np.float32) * np.float32(high - low) + np.float32(low)

    def weight(self, name: str, *shape: int, low: float = -1.0, high: float = 1.0) -> str:
        """A random initializer."""
        self.weights.append(numpy_helper.from_array(self.uniform(shape, low, high), name))
        return name

    def op(self, op_type: str, inputs: Sequence[str], name: str, **attributes: object) -> str:
        """One node, whose only output carries its name."""
        self.nodes.append(helper.make_node(op_type, list(inputs), [name], name=f"{name}/{op_type}", **attributes))
        return name

    def conv(self, x: str, name: str, inner: int, out: int, size: int = 1, stride: int = 1) -> str:
        """A square convolution that pads to the same size, without a bias."""
        reach = float(np.sqrt(6 / (inner * size * size)))
        kernel = self.weight(f"{name}.weight", out, inner, size, size, low=-reach, high=reach)
        pads = [size // 2] * 4
        return self.op("Conv", [x, kernel], f"{name}.out", kernel_shape=[size] * 2, strides=[stride] * 2, pads=pads)

    def norm(self, x: str, name: str, channels: int) -> str:
        """A batch norm with statistics as after training."""
        ranges = {"weight": (0.5, 1.5), "bias": (-0.5, 0.5), "running_mean": (-0.5, 0.5), "running_var": (0.5, 2.0)}
        parameters = [self.weight(f"{name}.{key}", channels, low=a, high=b) for key, (a, b) in ranges.items()]
        return self.op("BatchNormalization", [x, *parameters], f"{name}.out", epsilon=1e-5)

    def relu(self, x: str) -> str:
        """ReLU."""
        return self.op("Relu", [x], f"{x}.relu")

    def model(self, inputs: dict[str, Sequence[int | str]], outputs: dict[str, Sequence[int | str]]) -> onnx.ModelProto:
        """The graph as a model with float32 inputs and outputs of these shapes."""
        values = [
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in group.items()]
            for group in (inputs, outputs)
        ]
        graph = helper.make_graph(self.nodes, "benchmark", *values, self.weights)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)


def resnet50() -> onnx.ModelProto:
    """ResNet-50 (He et al. 2015) with torchvision's layer sizes: 25.6 million parameters, 53 batch norms, 102 MB."""
    b = Builder()

    def unit(x: str, name: str, inner: int, out: int, size: int = 1, stride: int = 1) -> str:
        return b.norm(b.conv(x, f"{name}.conv", inner, out, size, stride), f"{name}.bn", out)

    x = b.relu(unit("image", "stem", 3, 64, 7, 2))
    x = b.op("MaxPool", [x], "pool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    inner = 64
    for stage, (width, depth) in enumerate(zip((64, 128, 256, 512), (3, 4, 6, 3), strict=True), 1):
        for block in range(depth):
            name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            y = b.relu(unit(x, f"{name}.1", inner, width))
            y = b.relu(unit(y, f"{name}.2", width, width, 3, stride))
            y = unit(y, f"{name}.3", width, 4 * width)
            skip = unit(x, f"{name}.down", inner, 4 * width, 1, stride) if block == 0 else x
            x = b.relu(b.op("Add", [y, skip], f"{name}.sum"))
            inner = 4 * width
    x = b.op("Flatten", [b.op("GlobalAveragePool", [x], "mean")], "features")
    b.op("Gemm", [x, b.weight("fc.weight", 1000, 2048), b.weight("fc.bias", 1000)], "logits", transB=1)
    return b.model({"image": ["N", 3, 224, 224]}, {"logits": ["N", 1000]})


_CHANNELS, _SIDE = 4, 8


def _image(b: Builder, result: str, channels: int = _CHANNELS) -> onnx.ModelProto:
    b.op("Identity", [result], "y")
    return b.model({"x": ["N", _CHANNELS, _SIDE, _SIDE]}, {"y": ["N", channels, _SIDE, _SIDE]})


def residual(nodes: int) -> onnx.ModelProto:
    """A thin residual network of about so many nodes."""
    b, x = Builder(), "x"
    for block in range(nodes // 6):
        y = b.relu(b.norm(b.conv(x, f"a{block}", _CHANNELS, _CHANNELS), f"an{block}", _CHANNELS))
        y = b.norm(b.conv(y, f"b{block}", _CHANNELS, _CHANNELS, 3), f"bn{block}", _CHANNELS)
        x = b.op("Add", [y, x], f"s{block}")
    return _image(b, x)


def chain(repeats: int, *steps: str, conv: bool = True) -> onnx.ModelProto:
    """Steps in a row, over and over, behind a convolution and before one, or else with nowhere to go.

    A step is ``Conv``, ``BatchNormalization``, ``Mul`` or ``Add`` by a constant, or an op of one input.
    """
    b = Builder()
    x = b.conv("x", "first", _CHANNELS, _CHANNELS) if conv else "x"
    for number in range(repeats):
        for step in steps:
            name = f"{step}{number}"
            match step:
                case "BatchNormalization":
                    x = b.norm(x, name, _CHANNELS)
                case "Conv":
                    x = b.conv(x, name, _CHANNELS, _CHANNELS, 3)
                case "Mul" | "Add":
                    x = b.op(step, [x, b.weight(f"{name}.constant", _CHANNELS, 1, 1, low=0.9, high=1.1)], name)
                case _:
                    x = b.op(step, [x], name)
    return _image(b, b.conv(x, "last", _CHANNELS, _CHANNELS) if conv else x)


def fan_of_convs(width: int) -> onnx.ModelProto:
    """One batch norm that so many convolutions read."""
    b = Builder()
    x = b.norm("x", "norm", _CHANNELS)
    return _image(b, b.op("Sum", [b.conv(x, f"c{i}", _CHANNELS, _CHANNELS) for i in range(width)], "sum"))


def fan_of_norms(width: int) -> onnx.ModelProto:
    """One convolution that so many batch norms read."""
    b = Builder()
    x = b.conv("x", "conv", _CHANNELS, _CHANNELS)
    return _image(b, b.op("Sum", [b.relu(b.norm(x, f"n{i}", _CHANNELS)) for i in range(width)], "sum"))


def wide_concat(width: int) -> onnx.ModelProto:
    """A batch norm behind a Concat of so many convolutions."""
    b = Builder()
    parts = [b.conv("x", f"c{i}", _CHANNELS, _CHANNELS) for i in range(width)]
    x = b.op("Concat", parts, "concat", axis=1)
    return _image(b, b.relu(b.norm(x, "norm", _CHANNELS * width)), _CHANNELS * width)


def dense(layers: int) -> onnx.ModelProto:
    """A DenseNet: each layer reads all results before it, so that the number of inputs grows with the square."""
    b, parts = Builder(), ["x"]
    for layer in range(layers):
        x = b.op("Concat", parts, f"concat{layer}", axis=1)
        x = b.relu(b.norm(x, f"norm{layer}", _CHANNELS * len(parts)))
        parts.append(b.conv(x, f"conv{layer}", _CHANNELS * len(parts), _CHANNELS, 3))
    return _image(b, b.op("Concat", parts, "concat", axis=1), _CHANNELS * len(parts))


def perceptron(folder: Path, layers: int, width: int, *, norms: int) -> Path:
    """Square Gemms, one in so many followed by a batch norm, with their weights in external data; the model's path."""
    b, x, offset = Builder(), "x", 0
    path = folder / "large.onnx"
    with path.with_suffix(".onnx.data").open("wb") as stream:
        for layer in range(layers):
            matrix = b.uniform((width, width), -0.05, 0.05)
            matrix.tofile(stream)
            proto = onnx.TensorProto(name=f"l{layer}.weight", data_type=TensorProto.FLOAT, dims=matrix.shape)
            proto.data_location = TensorProto.EXTERNAL
            place = {"location": f"{path.name}.data", "offset": offset, "length": matrix.nbytes}
            for key, value in place.items():
                proto.external_data.add(key=key, value=str(value))
            b.weights.append(proto)
            offset += matrix.nbytes
            x = b.op("Gemm", [x, proto.name, b.weight(f"l{layer}.bias", width)], f"l{layer}.out", transB=1)
            if layer % norms == 0:
                x = b.norm(x, f"n{layer}", width)
            x = b.relu(x)
    b.op("Identity", [x], "y")
    onnx.save(b.model({"x": ["N", width]}, {"y": ["N", width]}), path)
    return path
