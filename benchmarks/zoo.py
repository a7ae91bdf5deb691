"""The models that benchmarks run on: bnfold's own networks, exported in every way, and the graphs inside onnx.

Fresh networks are of no use here: their batch norms change next to nothing, and a wrong fold would go unseen. So
statistics, scales and shifts are drawn at random, a few scales negative, as trained networks have them.
"""

from __future__ import annotations

import copy
import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import nn

from bnfold.errors import BnfoldError
from bnfold.exporting import ExportOptions
from bnfold.exporting.cleaning import clean_model
from bnfold.exporting.conversion import to_onnx
from bnfold.exporting.opset import set_opset
from bnfold.exporting.source import Network
from bnfold.models import build, fitting_arguments, names

#: The newest opset that torch 2.13 writes and of which ONNX Runtime 1.31 has all operators used here.
NEWEST_OPSET = 25

_SHAPE = (3, 16, 16)
_SHAPES: Mapping[str, tuple[int, ...]] = {"fcn1d": (3, 48), "mlp": (48,), "r2plus1d": (3, 4, 16, 16)}
_ARGUMENTS: Mapping[str, Mapping[str, Any]] = {
    "mlp": {"in_features": 48},
    "preact_resnet": {"blocks": 2},
    "unet": {"dense": True},
}


@dataclass(frozen=True)
class Entry:
    """One network of the zoo.

    Attributes:
        name: of the network.
        shape: of one sample.
        arguments: of the network, those that follow from the shape included.
    """

    name: str
    shape: tuple[int, ...]
    arguments: Mapping[str, Any] = field(default_factory=dict)


def entries() -> tuple[Entry, ...]:
    """Every network of bnfold, small."""
    return tuple(entry(name) for name in names())


def entry(name: str) -> Entry:
    """One network of bnfold, small."""
    shape = _SHAPES.get(name, _SHAPE)
    return Entry(name, shape, fitting_arguments(name, shape, 10) | dict(_ARGUMENTS.get(name, {})))


def trained_looking(entry: Entry, seed: int = 0) -> nn.Module:
    """The network in evaluation mode, its statistics, scales, shifts and constant parameters drawn at random."""
    torch.manual_seed(seed)
    network = build(entry.name, **entry.arguments).eval()
    with torch.no_grad():
        for module in network.modules():
            for name, parameter in module.named_parameters(recurse=False):
                if parameter.ndim == 1 and name == "weight":  # the scale of a norm, or a LayerScale
                    signs = torch.where(torch.rand(parameter.shape) < 0.125, -1.0, 1.0)
                    parameter.copy_(torch.empty_like(parameter).uniform_(0.5, 1.5) * signs)
                elif parameter.ndim == 1 or bool((parameter == parameter.flatten()[0]).all()):
                    parameter.uniform_(-0.5, 0.5)
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.uniform_(-0.5, 0.5)
                module.running_var.uniform_(0.5, 2.0)
    return network


class Way(StrEnum):
    """A way to export, by the call that a user writes."""

    DEFAULT = "torch.onnx.export(net, x)"
    RAW = "… optimize=False"
    SCRIPT = "… dynamo=False"
    SCRIPT_KEPT = "… dynamo=False, training=PRESERVE"
    BNFOLD = "bnfold export"


@dataclass(frozen=True)
class Setting:
    """How to export.

    Attributes:
        way: which exporter.
        opset: that is asked for.
        dynamic: whether the batch size is open.
    """

    way: Way
    opset: int = 20
    dynamic: bool = True


class ExportFailedError(Exception):
    """torch, or bnfold's export, cannot do this; the message says why."""


class Exporter:
    """Exports one network in many ways; what several of them need is traced once.

    Args:
        module: the network, in evaluation mode.
        shape: of one sample.
    """

    def __init__(self, module: nn.Module, shape: tuple[int, ...]) -> None:
        self._module = module
        self._shape = shape
        self._traced = cache(self._trace)
        self._cleaned = cache(self._clean)

    def model(self, setting: Setting) -> ir.Model:
        """The exported model.

        Raises:
            ExportFailedError: it cannot be had.
        """
        with _quiet():
            try:
                match setting.way:
                    case Way.SCRIPT | Way.SCRIPT_KEPT:
                        return self._scripted(setting)
                    case Way.BNFOLD:
                        return self._own(setting)
                    case _:
                        return self._dynamo(setting)
            except BnfoldError as error:
                raise ExportFailedError(str(error)) from error
            except Exception as error:  # torch's exporters raise whatever went wrong inside
                first_line = str(error).strip().partition("\n")[0]
                raise ExportFailedError(f"{type(error).__name__}: {first_line[:200]}") from error

    def _example(self, dynamic: bool) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        return torch.randn(2 if dynamic else 1, *self._shape, generator=generator)

    def _trace(self, dynamic: bool) -> torch.export.ExportedProgram:
        shapes = ({0: torch.export.Dim("batch", min=1)},) if dynamic else None
        return torch.export.export(self._module, (self._example(dynamic),), dynamic_shapes=shapes, strict=False)

    def _dynamo(self, setting: Setting) -> ir.Model:
        program = torch.onnx.export(
            copy.deepcopy(self._traced(setting.dynamic)),
            dynamo=True,
            optimize=setting.way is Way.DEFAULT,
            opset_version=setting.opset,
            input_names=["input"],
            output_names=["output"],
            external_data=False,
            verbose=False,
        )
        assert program is not None
        return program.model

    def _scripted(self, setting: Setting) -> ir.Model:
        content = io.BytesIO()
        kept = setting.way is Way.SCRIPT_KEPT
        torch.onnx.export(
            self._module,
            (self._example(setting.dynamic),),
            content,
            dynamo=False,
            training=torch.onnx.TrainingMode.PRESERVE if kept else torch.onnx.TrainingMode.EVAL,
            opset_version=setting.opset,
            input_names=["input"],
            output_names=["output"],
            dynamic_axes={"input": {0: "batch"}} if setting.dynamic else None,
        )
        return ir.from_proto(onnx.load_from_string(content.getvalue()))

    def _own(self, setting: Setting) -> ir.Model:
        native = max(setting.opset, 20)
        model = self._cleaned(native, setting.dynamic).clone()
        set_opset(model, setting.opset)
        return model

    def _clean(self, opset: int, dynamic: bool) -> ir.Model:
        network = Network("network", self._module, self._shape, {})
        model, _ = to_onnx(network, ExportOptions(opset=opset, input_shape=self._shape, static=not dynamic))
        clean_model(model)
        return model


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what the exporters say of themselves, deprecations and whole graphs among it, out of the output."""
    outputs = (1, 2)  # by number, because torch prints from C++ as well
    kept = [os.dup(output) for output in outputs]
    with warnings.catch_warnings(), Path(os.devnull).open("w") as nowhere:
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        sys.stdout.flush()
        for output in outputs:
            os.dup2(nowhere.fileno(), output)
        try:
            yield
        finally:
            sys.stdout.flush()
            for output, copied in zip(outputs, kept, strict=True):
                os.dup2(copied, output)
                os.close(copied)
            logging.disable(logging.NOTSET)


#: The graphs of real networks inside the onnx package, their weights all of one value.
LIGHT_FOLDER = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"


def light_models() -> tuple[Path, ...]:
    """The files of :data:`LIGHT_FOLDER`."""
    return tuple(sorted(LIGHT_FOLDER.glob("light_*.onnx")))


def with_random_weights(model: onnx.ModelProto, seed: int = 0) -> onnx.ModelProto:
    """A copy in which every ``ConstantOfShape`` is a stored tensor, its values drawn by its role.

    All files of onnx have one number for all weights, with which no two channels differ: a fold on the wrong axis
    would go unseen, and an affine that is uniform goes where one that is not may not.
    """
    random = np.random.default_rng(seed)
    made = onnx.ModelProto()
    made.CopyFrom(model)
    readers = {name: (node.op_type, index) for node in made.graph.node for index, name in enumerate(node.input)}
    behind = {node.input[0]: node.output[0] for node in made.graph.node if node.op_type in ("Unsqueeze", "Reshape")}
    sizes = {tensor.name: tuple(numpy_helper.to_array(tensor).tolist()) for tensor in made.graph.initializer}
    kept = [node for node in made.graph.node if node.op_type != "ConstantOfShape"]
    for node in made.graph.node:
        if node.op_type != "ConstantOfShape":
            continue
        (name,) = node.output
        role = readers[behind.get(name, name)]
        made.graph.initializer.append(numpy_helper.from_array(_drawn(random, role, sizes[node.input[0]]), name))
        if made.ir_version < 4:  # where every initializer is an input, too
            made.graph.input.append(
                onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, sizes[node.input[0]])
            )
    del made.graph.node[:]
    made.graph.node.extend(kept)
    return made


def _drawn(random: np.random.Generator, role: tuple[str, int], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Values that suit what reads them: the op and the index of its input."""
    match role:
        case ("BatchNormalization", 4):
            values = random.uniform(0.5, 2.0, shape)
        case ("BatchNormalization", 1) | ("Mul", _):
            values = random.uniform(0.5, 1.5, shape) * random.choice((-1.0, 1.0), shape, p=(0.125, 0.875))
        case ("Conv" | "Gemm" | "MatMul" as op, 1):
            # The last layer's are small, or else the softmax behind it says the same of every image.
            gain = 2.0 if op == "Conv" else 1e-4
            values = random.normal(size=shape) * np.sqrt(gain / max(1.0, float(np.prod(shape[1:]))))
        case _:
            values = random.uniform(-0.5, 0.5, shape)
    return np.asarray(values, dtype=np.float32)
