"""Export a network to ONNX with its batch norms kept, and check what came out.

torch's own exporter folds batch norm by default, or leaves biases as sub-graphs that no optimizer reads, or
misses the opset without saying so. Here each batch norm stays one ``BatchNormalization`` node, constants are
constants, names say which module a node comes from, and the file is compared with the network before it is
written.
"""

from __future__ import annotations

from pathlib import Path

from bnfold.errors import ModelError, OutputError
from bnfold.exporting.options import DEFAULT_OPSET, ExportOptions
from bnfold.exporting.result import ExportCheck, ExportResult
from bnfold.extras import require
from bnfold.files import StrPath
from bnfold.progress import Progress, silent
from bnfold.sidecar import sidecar_left_by_another

__all__ = ["DEFAULT_OPSET", "ExportCheck", "ExportOptions", "ExportResult", "export"]


def export(
    source: StrPath, output: StrPath, options: ExportOptions | None = None, progress: Progress = silent
) -> ExportResult:
    """Export a trained network to an ONNX file, check the file, and only then put it in its place.

    The network is copied, put into evaluation mode, and left as it was. The input is named ``input``; a
    single output is named ``logits``. What a run recorded (class names, normalization) goes into the file's
    metadata under ``bnfold.classes``, ``bnfold.normalization`` and ``bnfold.run``, each as JSON. How an image becomes
    the input, size and crop included, goes into ``OUTPUT.preprocessing.json`` too, for programs that read no ONNX.

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
        OutputError: the file cannot be written, or is what the network is read from.
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
    from bnfold.model_file import check_model_output, save_model
    from bnfold.prediction.preprocessing import write_sidecar

    options = options or ExportOptions()
    target = check_model_output(output)
    _check_not_read(target, source, options)
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
    notes = [network.note] if network.note else []
    if network.preprocessing is not None:
        write_sidecar(target, network.preprocessing)
    else:
        notes += sidecar_left_by_another(target)
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
        notes=tuple(notes),
    )


def _check_not_read(target: Path, source: StrPath, options: ExportOptions) -> None:
    """Refuse to write over the weights, or over a file of the run, that the network comes from.

    Raises:
        OutputError: the target is one of them.
    """
    given = Path(source)
    read = [*given.iterdir()] if given.is_dir() else [given]
    if options.weights is not None:
        read.append(Path(options.weights))
    if target.exists() and any(file.exists() and target.samefile(file) for file in read if file.suffix != ".onnx"):
        raise OutputError(f"{target} is what the network is read from; write the ONNX file elsewhere")
