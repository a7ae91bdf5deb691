"""Load ONNX files without trusting them; save them whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError

from bnfold.errors import ModelError, OutputError
from bnfold.files import StrPath, check_output_file, publish, staging_folder

ExternalData = Literal["auto", "always", "never"]

#: A protobuf message cannot exceed 2 GiB; ``auto`` moves the weights out well before that.
_EMBED_LIMIT = 1 << 30

#: Suffixes under which onnx reads and writes text.
_TEXT_SUFFIXES = (".json", ".onnxjson", ".onnxtext", ".onnxtxt", ".pbtxt", ".prototxt", ".textproto", ".txtpb")


def load_model(path: StrPath) -> ir.Model:
    """Load an ONNX file; weights kept in external data are mapped, not read.

    Raises:
        ModelError: the file is missing, is not an ONNX model, is damaged, breaks the ONNX specification,
            or its external data is missing, truncated or outside the model's folder.
    """
    source = Path(path)
    if source.is_dir():
        raise ModelError(f"{source} is a folder; give the path of an ONNX file")
    if not source.exists():
        raise ModelError(f"{source} does not exist")
    try:
        proto = onnx.load(source, format="protobuf", load_external_data=False)
    except DecodeError as error:
        raise ModelError(f"{source} is not an ONNX model, or is damaged: it cannot be parsed") from error
    except OSError as error:
        raise ModelError(f"{source} cannot be read: {error.strerror or error}") from error
    if not proto.HasField("graph") or not proto.opset_import:
        raise ModelError(f"{source} is not an ONNX model: it holds no graph")
    _check_supported(proto, str(source))
    model = _deserialize(proto, str(source))
    ir.external_data.set_base_dir(model.graph, source.parent)
    for tensor in external_tensors(model):
        _check_external(tensor, source)
    check_model(source, str(source))  # by its path, so that external data is looked for beside the model
    return model


def from_proto(proto: onnx.ModelProto) -> ir.Model:
    """A model in memory as onnx-ir's, checked like one from a file.

    Raises:
        ModelError: the model breaks the ONNX specification, or refers to external data.
    """
    label = "the model in memory"
    _check_supported(proto, label)
    model = _deserialize(proto, label)
    if next(external_tensors(model), None) is not None:
        raise ModelError(f"{label} keeps weights in another file; load them, or give the model's path")
    check_model(proto, label)
    return model


def check_model(model: onnx.ModelProto | Path, label: str) -> None:
    """Hold a model against the ONNX specification.

    Args:
        model: a model in memory, or the path of one, whose external data is then looked for beside it.
        label: what to call the model in an error.

    Raises:
        ModelError: the model breaks the specification.
    """
    try:
        onnx.checker.check_model(model)
    except (onnx.checker.ValidationError, ValueError) as error:
        first_line = str(error).strip().partition("\n")[0]
        raise ModelError(f"{label} is not a valid ONNX model: {first_line}") from error


def _check_supported(proto: onnx.ModelProto, label: str) -> None:
    known = onnx.defs.onnx_opset_version()
    for entry in proto.opset_import:
        if entry.domain in ("", "ai.onnx") and not 1 <= entry.version <= known:
            raise ModelError(
                f"{label} uses version {entry.version} of the ONNX operators, and the installed onnx knows up to "
                f"{known}; upgrade onnx, or export with a lower opset"
            )
    if _has_sparse_tensors(proto):
        raise ModelError(f"{label} holds sparse tensors, which bnfold does not read; store them as dense ones")


def _has_sparse_tensors(proto: onnx.ModelProto) -> bool:
    sparse = (onnx.AttributeProto.SPARSE_TENSOR, onnx.AttributeProto.SPARSE_TENSORS)
    graphs = [proto.graph]
    nodes = [node for function in proto.functions for node in function.node]
    while graphs or nodes:
        if graphs:
            graph = graphs.pop()
            if graph.sparse_initializer:
                return True
            nodes.extend(graph.node)
            continue
        for attribute in nodes.pop().attribute:
            if attribute.type in sparse:
                return True
            graphs.extend([attribute.g] if attribute.HasField("g") else attribute.graphs)
    return False


def _deserialize(proto: onnx.ModelProto, label: str) -> ir.Model:
    try:
        return ir.from_proto(proto)
    except (ir.serde.SerdeError, ValueError, TypeError, KeyError, NotImplementedError) as error:
        check_model(proto, label)  # the checker says it better, if it finds it too
        raise ModelError(f"{label} is not a valid ONNX model: {' '.join(str(error).split())[:300]}") from error


def external_tensors(model: ir.Model) -> Iterator[ir.ExternalTensor]:
    """Every tensor of the model, subgraphs and attributes included, whose data is in another file."""
    for graph in model.graphs():
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                yield value.const_value
        for node in graph:
            for attribute in node.attributes.values():
                if isinstance(attribute, ir.Attr) and isinstance(attribute.value, ir.ExternalTensor):
                    yield attribute.value


def _check_external(tensor: ir.ExternalTensor, source: Path) -> None:
    """Refuse external data that is not a whole regular file inside the model's own folder."""
    folder = source.parent.resolve()
    location = Path(tensor.location)
    file = (folder / location).resolve()  # follows links, so that one cannot lead outside
    if location.is_absolute() or not file.is_relative_to(folder):
        raise ModelError(
            f"{source}: the external data of {tensor.name!r} points outside the model's folder ({location}); "
            "a model may only read files beside itself"
        )
    if not file.is_file():
        raise ModelError(
            f"{source}: the external data file {location} of {tensor.name!r} is missing; put it beside the model"
        )
    end = (tensor.offset or 0) + (tensor.length if tensor.length is not None else tensor.nbytes)
    if (tensor.length is not None and tensor.length < tensor.nbytes) or file.stat().st_size < end:
        raise ModelError(f"{source}: the external data file {location} is too short for {tensor.name!r}")


def save_model(model: ir.Model, path: StrPath, *, external_data: ExternalData = "auto") -> Path:
    """Write a model atomically and return its path.

    Args:
        model: the model to write.
        path: the file to create; weights go to ``<name>.data`` beside it when they are external.
        external_data: ``auto`` moves weights out of the file from 1 GiB on; ``always`` and ``never`` as said.

    Raises:
        OutputError: the file cannot be written, or is too large to be written without external data.
    """
    target = check_model_output(path)
    with staging_folder(target) as folder:
        publish_model(write_model(model, folder / target.name, external_data=external_data), target)
    return target


def check_model_output(path: StrPath) -> Path:
    """Like :func:`bnfold.files.check_output_file`, for a model; onnx takes some suffixes for text formats.

    Raises:
        OutputError: a model cannot be written there.
    """
    target = check_output_file(path)
    if target.suffix in _TEXT_SUFFIXES:
        raise OutputError(f"{target}: a model is written in ONNX's binary format; end the name in .onnx")
    return target


def write_model(model: ir.Model, path: Path, *, external_data: ExternalData = "auto") -> Path:
    """Write a model, and its external data if any, into a folder of one's own; return the model's path."""
    try:
        if is_external(model, external_data):
            ir.save(model, path, external_data=data_file(path).name)
        else:
            ir.save(_embedded(model), path)
    except ValueError as error:  # protobuf's own limit
        raise OutputError(
            f"{path.name} would be larger than the 2 GiB that one file may hold; store the weights as external data"
        ) from error
    return path


def publish_model(staged: Path, target: Path) -> None:
    """Move a written model into place: its data first, so that a model that is there is a model that loads."""
    staged_data = data_file(staged)
    if staged_data.exists():
        publish(staged_data, data_file(target))
    publish(staged, target)


def data_file(path: Path) -> Path:
    """Where the external weights of a model at ``path`` go."""
    return path.with_name(f"{path.name}.data")


def is_external(model: ir.Model, choice: ExternalData) -> bool:
    """Whether the weights of ``model`` go to a file of their own."""
    if choice != "auto":
        return choice == "always"
    stored = (v.const_value for graph in model.graphs() for v in graph.initializers.values())
    return sum(tensor.nbytes for tensor in stored if tensor is not None) > _EMBED_LIMIT


def _embedded(model: ir.Model) -> ir.Model:
    """``model`` with the weights of external files in memory, so that it is written as one file."""
    if next(external_tensors(model), None) is None:
        return model
    copy = model.clone()
    ir.external_data.load_to_model(copy)
    return copy


def serialized(model: ir.Model) -> bytes:
    """The model as the bytes of one file, external weights included.

    Raises:
        ModelError: the model is over the 2 GiB that protobuf allows.
    """
    try:
        content: bytes = ir.to_proto(_embedded(model)).SerializeToString()
    except ValueError as error:
        raise ModelError("the model is over 2 GiB and cannot be handed over in memory; use a file") from error
    return content
