"""From a torch module to an ONNX graph, with torch's exporter and without its noise."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from typing import TYPE_CHECKING

import onnx_ir as ir
import torch

from bnfold.errors import InputError, ModelError, one_line
from bnfold.exporting.source import Network

if TYPE_CHECKING:
    from bnfold.exporting.options import ExportOptions

#: The lowest opset that torch's exporter writes itself.
LOWEST_NATIVE_OPSET = 18

#: Loggers of the exporter that tell of things nobody asked for (torchvision that is not installed).
_NOISY_LOGGERS = ("torch.fx", "torch.onnx", "torch.export", "onnxscript", "onnx_ir")

_BATCH_NORMS = frozenset(
    (
        "aten::batch_norm",
        "aten::cudnn_batch_norm",
        "aten::native_batch_norm",
        "aten::_native_batch_norm_legit",
        "aten::_native_batch_norm_legit_no_training",
    )
)


def to_onnx(network: Network, options: ExportOptions) -> tuple[ir.Model, int]:
    """The network as an ONNX graph, with an open batch unless static, and its number of batch norms.

    The graph has at least opset 18; a lower one is for :func:`bnfold.exporting.opset.set_opset`.

    Raises:
        InputError: the network does not take the input.
        ModelError: torch's exporter does not convert the network.
    """
    batch = 1 if options.static else 2  # torch.export takes an example of size 1 for a constant
    try:
        example = example_input(network, batch, seed=options.seed)
        with torch.inference_mode():
            outputs = network.module(example)
    except Exception as error:  # a network's own code may raise anything
        raise InputError(
            f"the network {network.name} does not take an input of shape {(batch, *network.input_shape)}: "
            f"{_first_paragraph(error)}"
        ) from error
    names = _output_names(outputs)
    shapes = None if options.static else ({0: torch.export.Dim("batch", min=1)},)
    try:
        with _quiet():
            program = torch.export.export(network.module, (example,), dynamic_shapes=shapes, strict=False)
            onnx_program = torch.onnx.export(
                program,
                (example,),
                dynamo=True,
                optimize=False,
                opset_version=max(options.opset, LOWEST_NATIVE_OPSET),
                input_names=["input"],
                output_names=names,
                external_data=False,
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        cause = error.__cause__ or error
        raise ModelError(f"torch cannot export {network.name} to ONNX: {_first_paragraph(cause)}") from error
    except Exception as error:  # the network's code again, and torch's own kinds
        remedy = "" if options.static else "; if its forward depends on the batch size, export it as static"
        raise ModelError(f"torch cannot trace {network.name}: {_first_paragraph(error)}{remedy}") from error
    assert onnx_program is not None
    model = onnx_program.model
    if not options.static:
        _name_batch(model)
    return model, _batch_norms(program)


def example_input(network: Network, batch: int, *, seed: int) -> torch.Tensor:
    """Standard normal samples (batch, …) in the type of the network's weights."""
    kinds = (tensor.dtype for tensor in network.module.state_dict().values() if tensor.is_floating_point())
    generator = torch.Generator().manual_seed(seed)
    sample = torch.randn(batch, *network.input_shape, generator=generator, dtype=torch.float64)
    return sample.to(next(kinds, torch.float32))


def _output_names(outputs: object) -> list[str]:
    if isinstance(outputs, torch.Tensor):
        return ["logits"]
    if isinstance(outputs, dict):
        return [str(name) for name in outputs]
    if isinstance(outputs, tuple | list):
        fields = getattr(outputs, "_fields", None)  # a named tuple says it better
        return list(fields) if fields else [f"output_{index}" for index in range(len(outputs))]
    raise InputError(f"the network returns a {type(outputs).__name__}; tensors are needed")


def _batch_norms(program: torch.export.ExportedProgram) -> int:
    """How many batch norms the traced network evaluates."""
    return sum(
        node.op == "call_function"
        and getattr(node.target, "_schema", None) is not None
        and node.target._schema.name in _BATCH_NORMS
        for node in program.graph.nodes
    )


def _name_batch(model: ir.Model) -> None:
    """Call the open batch size ``batch``; torch calls it after its own symbol."""
    symbol = model.graph.inputs[0].shape
    assert symbol is not None
    old = symbol[0]
    for value in _values(model):
        if value.shape is not None:
            value.shape = ir.Shape([ir.SymbolicDim("batch") if size == old else size for size in value.shape])


def _values(model: ir.Model) -> Iterator[ir.Value]:
    yield from model.graph.inputs
    for node in model.graph.all_nodes():
        yield from node.outputs


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what torch's exporter warns of, logs and prints from the user; errors still come as exceptions."""
    loggers = [logging.getLogger(name) for name in _NOISY_LOGGERS]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _first_paragraph(error: BaseException) -> str:
    """The first paragraph of a message, as one line."""
    return one_line(str(error).strip().partition("\n\n")[0] or error)
