"""Export a network to ONNX with its batch norms kept, and check what came out.

torch's own exporter folds batch norm by default, or leaves biases as sub-graphs that no optimizer reads, or
misses the opset without saying so. Here each batch norm stays one ``BatchNormalization`` node, constants are
constants, names say which module a node comes from, and the file is compared with the network before it is
written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bnfold.errors import InputError, ModelError
from bnfold.extras import require
from bnfold.files import StrPath, check_output_file
from bnfold.progress import Progress, silent

#: The opset of an export where none is asked for, whatever the version of torch.
DEFAULT_OPSET = 20


@dataclass(frozen=True)
class ExportOptions:
    """How to export.

    Attributes:
        model: name of the network, where the source is a file of weights (:func:`bnfold.models.build`).
        model_args: its arguments.
        weights: file of weights, where the source is a network's name; without it the initial weights stay.
        opset: version of the default operator set.
        input_shape: shape of one sample without the batch; needed unless the source is a run.
        static: fix the batch size at 1 in place of leaving it open.
        clean: evaluate constant sub-graphs and name nodes after their modules; False keeps what torch's
            exporter wrote.
        seed: of the random inputs of the check, and of initial weights.

    Raises:
        InputError: a value is out of range.
    """

    model: str | None = None
    model_args: Mapping[str, Any] = field(default_factory=dict)
    weights: StrPath | None = None
    opset: int = DEFAULT_OPSET
    input_shape: tuple[int, ...] | None = None
    static: bool = False
    clean: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if self.opset < 7:
            raise InputError(f"opset is {self.opset}; batch norm has its present form from opset 7 on")
        if self.input_shape is not None and (not self.input_shape or min(self.input_shape) < 1):
            raise InputError(f"input_shape is {self.input_shape}; give sizes of at least 1, such as 3,224,224")
        if self.seed < 0:
            raise InputError(f"seed is {self.seed}; it must be at least 0")


@dataclass(frozen=True)
class ExportCheck:
    """How the exported file compares with the network, on random inputs.

    Attributes:
        engine: what ran the file: ``onnxruntime`` (without graph optimizations) or ``onnx.reference``.
        reference: the arithmetic of the network that it is compared with: float64 where the network can.
        samples: inputs compared.
        max_error: largest difference of an output from the reference.
        network_error: the same for the network in its own precision.
        bound: the largest difference that rounding explains; ``max_error`` is not above it.
    """

    engine: str
    reference: str
    samples: int
    max_error: float
    network_error: float
    bound: float

    def to_json(self) -> dict[str, Any]:
        """The check as a plain document."""
        return {
            "engine": self.engine,
            "reference": self.reference,
            "samples": self.samples,
            "max_error": self.max_error,
            "network_error": self.network_error,
            "bound": self.bound,
        }


@dataclass(frozen=True)
class ExportResult:
    """An exported and checked model.

    Attributes:
        path: the ONNX file.
        network: name of the network.
        opset: version of the default operator set in the file.
        nodes: number of nodes.
        batch_norms: number of ``BatchNormalization`` nodes, as many as the network evaluates.
        parameters: number of values in the network's parameters and buffers.
        inputs: name and shape of each input; a name stands for a size that is open.
        outputs: likewise.
        size: bytes of the file.
        check: comparison with the network.
    """

    path: Path
    network: str
    opset: int
    nodes: int
    batch_norms: int
    parameters: int
    inputs: Mapping[str, tuple[int | str, ...]]
    outputs: Mapping[str, tuple[int | str, ...]]
    size: int
    check: ExportCheck

    def to_json(self) -> dict[str, Any]:
        """The result as a plain document."""
        return {
            "path": str(self.path),
            "network": self.network,
            "opset": self.opset,
            "nodes": self.nodes,
            "batch_norms": self.batch_norms,
            "parameters": self.parameters,
            "inputs": {name: list(shape) for name, shape in self.inputs.items()},
            "outputs": {name: list(shape) for name, shape in self.outputs.items()},
            "size": self.size,
            "check": self.check.to_json(),
        }


def export(
    source: StrPath, output: StrPath, options: ExportOptions | None = None, progress: Progress = silent
) -> ExportResult:
    """Export a trained network to an ONNX file, check the file, and only then put it in its place.

    The network is copied, put into evaluation mode, and left as it was. The input is named ``input``; a
    single output is named ``logits``. What a run recorded (class names, normalization) goes into the file's
    metadata under ``bnfold.classes``, ``bnfold.normalization`` and ``bnfold.run``, each as JSON.

    Args:
        source: the folder of a run; or a file of weights (``.safetensors``, or a torch file of plain
            tensors), with ``options.model``; or the name of a network, with ``options.weights`` or with its
            initial weights.
        output: the ONNX file to write.
        options: see :class:`ExportOptions`.
        progress: called as the export goes on.

    Raises:
        CheckpointError: weights are missing, damaged or for another architecture.
        InputError: the source or the options do not say which network on which input.
        ModelError: the network cannot be exported as asked, or the export does not compute the same function.
        OutputError: the file cannot be written.
        MissingExtraError: torch, onnxscript or safetensors is not installed.
    """
    for package in ("torch", "onnxscript", "safetensors"):
        require(package, "train")
    from bnfold.exporting.check import check_export
    from bnfold.exporting.cleaning import clean_model
    from bnfold.exporting.conversion import to_onnx
    from bnfold.exporting.opset import set_opset
    from bnfold.exporting.source import load_source
    from bnfold.exporting.summary import batch_norm_count, open_shape, parameter_count
    from bnfold.model_file import save_model

    options = options or ExportOptions()
    target = check_output_file(output)
    stages = 4
    progress("exporting", 0, stages)
    network = load_source(source, options)
    progress("exporting", 1, stages)
    model, expected_batch_norms = to_onnx(network, options)
    if options.clean:
        clean_model(model)
    set_opset(model, options.opset)
    progress("exporting", 2, stages)
    found = batch_norm_count(model)
    if found != expected_batch_norms:
        raise ModelError(
            f"the export of {network.name} has {found} BatchNormalization nodes where the network evaluates "
            f"{expected_batch_norms} batch norms; report this, with the network"
        )
    model.metadata_props.update(network.metadata)
    check = check_export(model, network, options)
    progress("exporting", 3, stages)
    save_model(model, target)
    progress("exporting", stages, stages)
    return ExportResult(
        path=target,
        network=network.name,
        opset=model.opset_imports[""],
        nodes=len(model.graph),
        batch_norms=found,
        parameters=parameter_count(network.module),
        inputs={str(value.name): open_shape(value) for value in model.graph.inputs},
        outputs={str(value.name): open_shape(value) for value in model.graph.outputs},
        size=target.stat().st_size,
        check=check,
    )
