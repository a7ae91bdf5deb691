"""Load ONNX files without trusting them; save them whole or not at all."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError, EncodeError

from bnfold.errors import ModelError, OutputError, root_cause
from bnfold.files import StrPath, check_output_file, publish, staging_folder
from bnfold.model_check import check_model, check_readable
from bnfold.protos import has_external
from bnfold.skeleton import Piece, Weights, complete, join, size_of, skeleton_of, split

ExternalData = Literal["auto", "always", "never"]

#: A protobuf message is smaller than this.
_MESSAGE_LIMIT = 1 << 31

#: From here on, ``auto`` moves the weights out.
_EMBED_LIMIT = 1 << 30

#: Where a model in memory keeps whether its file has graphs for training, which onnx-ir does not hold.
_TRAINING = "bnfold.training_info"

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
    label = str(source)
    try:
        content = _read(source)
    except OSError as error:
        raise ModelError(f"{source} cannot be read: {error.strerror or error}") from error
    proto, weights = _parsed(content, label)
    model = _deserialize(proto, label)
    complete(model, weights)
    external = has_external(proto)
    if external:
        for tensor in external_tensors(model):
            tensor.base_dir = source.parent
            _check_external(tensor, source)
    check_model(source if external else proto, label)  # by path, to look for external data beside the model
    return model


def from_proto(proto: onnx.ModelProto) -> ir.Model:
    """A model in memory as onnx-ir's, checked like one from a file.

    Raises:
        ModelError: the model breaks the ONNX specification, or refers to external data.
    """
    label = "the model in memory"
    try:
        content = proto.SerializeToString()
    except (ValueError, EncodeError) as error:
        raise ModelError(f"{label} is over 2 GiB; save it with external data, and give its path") from error
    light, weights = _parsed(memoryview(content), label)
    if has_external(light):
        raise ModelError(f"{label} keeps weights in another file; load them, or give the model's path")
    model = _deserialize(light, label)
    complete(model, weights)
    check_model(light, label)
    return model


def _read(source: Path) -> memoryview:
    """The bytes of a file. They are read, not mapped: another program may write to the file later."""
    with source.open("rb") as stream:
        too_large = os.fstat(stream.fileno()).st_size >= _MESSAGE_LIMIT
        # A device has no size, and may have no end.
        content = b"" if too_large else stream.read(_MESSAGE_LIMIT)
    if too_large or len(content) >= _MESSAGE_LIMIT:
        raise ModelError(f"{source} is no ONNX file: without its external data, one is smaller than 2 GiB")
    return memoryview(content)


def _parsed(content: memoryview, label: str) -> tuple[onnx.ModelProto, Weights]:
    """The skeleton of a serialized model that bnfold can read, and its weights."""
    try:
        proto, weights = split(content)
    except DecodeError as error:
        raise ModelError(f"{label} is not an ONNX model, or is damaged: it cannot be parsed") from error
    if not proto.HasField("graph"):
        raise ModelError(f"{label} is not an ONNX model: it holds no graph")
    if not proto.opset_import:
        raise ModelError(
            f"{label} is not a valid ONNX model: it does not say which version of the operators it uses "
            "(opset_import); export it again"
        )
    check_readable(proto, label)
    return proto, weights


def check_file(path: Path, label: str) -> tuple[onnx.ModelProto, Weights]:
    """Hold a file that no other program knows of yet against the ONNX specification; its skeleton and its weights.

    Raises:
        ModelError: the file breaks the specification.
    """
    with path.open("rb") as stream:
        content = memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))
    proto, weights = _parsed(content, label)
    check_model(path if has_external(proto) else proto, label)
    return proto, weights


def _deserialize(proto: onnx.ModelProto, label: str) -> ir.Model:
    try:
        model = ir.from_proto(proto)
    except (ir.serde.SerdeError, ValueError, TypeError, KeyError, NotImplementedError) as error:
        check_model(proto, label)  # the checker says it better, if it finds it too
        raise ModelError(f"{label} cannot be read: {root_cause(error)}") from error
    model.meta[_TRAINING] = bool(proto.training_info)
    return model


def lost_on_saving(model: ir.Model) -> tuple[str, ...]:
    """What to tell of the parts of a loaded model that a file written from it does not have."""
    if not model.meta.get(_TRAINING):
        return ()
    return ("the model's training_info is not in the new file: its graphs train weights that are others now",)


def external_tensors(model: ir.Model) -> Iterator[ir.ExternalTensor]:
    """Every tensor whose data is in another file: initializers and attributes of all graphs, functions included."""
    for value in _initializers(model):
        if isinstance(value.const_value, ir.ExternalTensor):
            yield value.const_value
    for node in _nodes(model):
        for attribute in node.attributes.values():
            held = attribute.value if attribute.type is ir.AttributeType.TENSORS else [attribute.value]
            yield from (tensor for tensor in held or () if isinstance(tensor, ir.ExternalTensor))


def files_of(model: ir.Model, path: Path) -> tuple[Path, ...]:
    """The file that a model was loaded from, then those of its external weights in the order of their names."""
    return (path, *sorted({path.parent / tensor.location for tensor in external_tensors(model)}))


def _initializers(model: ir.Model) -> Iterator[ir.Value]:
    bodies = (graph for function in model.functions.values() for graph in function.subgraphs())
    for graph in (*model.graphs(), *bodies):
        yield from graph.initializers.values()


def _nodes(model: ir.Model) -> Iterator[ir.Node]:
    yield from model.graph.all_nodes()
    for function in model.functions.values():
        yield from function.all_nodes()


def _check_external(tensor: ir.ExternalTensor, source: Path) -> None:
    """Refuse external data that is not a whole regular file inside the model's own folder."""
    folder = source.parent.resolve()
    location = Path(tensor.location)
    try:
        file = (folder / location).resolve()  # follows links, so that one cannot lead outside
    except (ValueError, RuntimeError) as error:  # a byte that is zero; before Python 3.13, a link to itself
        raise ModelError(f"{source}: the external data of {tensor.name!r} has no path of a file") from error
    if location.is_absolute() or not file.is_relative_to(folder):
        raise ModelError(
            f"{source}: the external data of {tensor.name!r} points outside the model's folder ({location}); "
            "a model may only read files beside itself"
        )
    if not _is_file(file):
        raise ModelError(
            f"{source}: the external data file {location} of {tensor.name!r} is missing; put it beside the model"
        )
    if tensor.length not in (None, tensor.nbytes):
        raise ModelError(
            f"{source}: the external data of {tensor.name!r} is {tensor.length} bytes long, "
            f"and its shape and type need {tensor.nbytes}"
        )
    if file.stat().st_size < (tensor.offset or 0) + tensor.nbytes:
        raise ModelError(f"{source}: the external data file {location} is too short for {tensor.name!r}")


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long for one
        return False


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
    too_large = OutputError(
        f"{path.name} would be larger than the 2 GiB that one file may hold; store the weights as external data"
    )
    whole = _with_inner_tensors(model)
    try:
        if is_external(whole, external_data):
            ir.save(whole, path, external_data=data_file(path).name)
            return path
        pieces = join(*skeleton_of(whole))
    except (ValueError, EncodeError) as error:  # protobuf's own limit
        raise too_large from error
    if size_of(pieces) >= _MESSAGE_LIMIT:
        raise too_large
    with path.open("wb") as stream:
        for piece in pieces:
            if isinstance(piece, ir.Tensor | ir.ExternalTensor | ir.LazyTensor):
                piece.tofile(stream)  # copies nothing
            else:
                stream.write(_bytes_of(piece))
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


def keep_weights_of(file: Path, model: ir.Model) -> None:
    """Let a model keep weights that it reads from a file, when that is about to be replaced."""
    for value in _initializers(model):
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor) and file.samefile(tensor.path):
            value.const_value = _in_memory(tensor)


def _with_inner_tensors(model: ir.Model) -> ir.Model:
    """The model, or a copy with in memory what is external elsewhere than among the main graph's initializers.

    Writing moves the main graph's initializers only.
    """
    moved = {id(value.const_value) for value in model.graph.initializers.values()}
    if all(id(tensor) in moved for tensor in external_tensors(model)):
        return model
    copy = model.clone()
    for value in _initializers(copy):
        if isinstance(value.const_value, ir.ExternalTensor) and id(value.const_value) not in moved:
            value.const_value = _in_memory(value.const_value)
    for node in _nodes(copy):
        for name, attribute in node.attributes.items():
            if attribute.type is ir.AttributeType.TENSOR and isinstance(attribute.value, ir.ExternalTensor):
                node.attributes[name] = ir.AttrTensor(name, _in_memory(attribute.value))
            elif attribute.type is ir.AttributeType.TENSORS and not attribute.is_ref():
                held = [_in_memory(t) if isinstance(t, ir.ExternalTensor) else t for t in attribute.value]
                node.attributes[name] = ir.AttrTensors(name, held)
    return copy


def _in_memory(tensor: ir.ExternalTensor) -> ir.TensorProtocol:
    """The tensor over its file as that is now, mapped: it no longer depends on what the path leads to."""
    metadata = dict(tensor.metadata_props)
    return ir.Tensor(
        tensor.numpy(), tensor.dtype, name=tensor.name, doc_string=tensor.doc_string, metadata_props=metadata
    )


def serialized(model: ir.Model) -> bytes:
    """The model as the bytes of one file, external weights included.

    Raises:
        ModelError: the model is over the 2 GiB that protobuf allows.
    """
    pieces = join(*skeleton_of(_with_inner_tensors(model)))
    if size_of(pieces) >= _MESSAGE_LIMIT:
        raise ModelError("the model is over 2 GiB and cannot be handed over in memory; use a file")
    return b"".join(map(_bytes_of, pieces))


def _bytes_of(piece: Piece) -> bytes:
    return piece if isinstance(piece, bytes) else piece.tobytes()
