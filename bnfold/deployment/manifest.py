"""What a deployed version says of itself: ``manifest.json`` in its folder.

Everything that a server needs to run the model is in it, so that a server needs neither protobuf nor the options of
whoever deployed it. ``files`` names every other file of the folder with its size and its SHA-256.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import PurePosixPath
from typing import Any, Literal, get_args

#: The file's name in a version's folder.
MANIFEST_FILE = "manifest.json"

_FORMAT = "bnfold deployment"
_VERSION = 1

Target = Literal["cpu", "cuda", "tensorrt"]
TARGETS: tuple[str, ...] = get_args(Target)

#: Each data type that can be deployed: ONNX's name, numpy's, and that of the Open Inference Protocol.
#: Triton's is the last with ``TYPE_`` before it.
DATATYPES: Mapping[str, tuple[str, str]] = {
    "BOOL": ("bool", "BOOL"),
    "UINT8": ("uint8", "UINT8"),
    "UINT16": ("uint16", "UINT16"),
    "UINT32": ("uint32", "UINT32"),
    "UINT64": ("uint64", "UINT64"),
    "INT8": ("int8", "INT8"),
    "INT16": ("int16", "INT16"),
    "INT32": ("int32", "INT32"),
    "INT64": ("int64", "INT64"),
    "FLOAT16": ("float16", "FP16"),
    "FLOAT": ("float32", "FP32"),
    "DOUBLE": ("float64", "FP64"),
}

_OF_PROTOCOL = {datatype: dtype for dtype, datatype in DATATYPES.values()}

#: A name that is a folder of its own in every file system, and that Triton and URLs take as it is.
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}", re.ASCII)

_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)


def is_model_name(name: str) -> bool:
    """Whether a model may be deployed under that name."""
    return _NAME.fullmatch(name) is not None


class InvalidManifestError(Exception):
    """A manifest that this version of bnfold did not write; the reader says in which file."""


@dataclass(frozen=True)
class TensorSpec:
    """An input or output.

    Attributes:
        name: its name.
        datatype: as the Open Inference Protocol spells it, such as ``FP32``.
        shape: every dimension, the batch included; None where it is open.
    """

    name: str
    datatype: str
    shape: tuple[int | None, ...]

    @property
    def dtype(self) -> str:
        """The numpy dtype's name."""
        return _OF_PROTOCOL[self.datatype]

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dict."""
        return {"name": self.name, "datatype": self.datatype, "shape": list(self.shape)}

    @classmethod
    def from_json(cls, document: Any) -> TensorSpec:
        """Read what :meth:`to_json` wrote."""
        shape = tuple(None if size is None else _whole(size) for size in _list(document["shape"]))
        datatype = _text(document["datatype"])
        if datatype not in _OF_PROTOCOL:
            raise InvalidManifestError(f"the data type {datatype!r} is unknown")
        return cls(_text(document["name"]), datatype, shape)

    def __str__(self) -> str:
        sizes = ", ".join("?" if size is None else str(size) for size in self.shape)
        return f"{self.name} {self.datatype}[{sizes}]"


@dataclass(frozen=True)
class DynamicBatching:
    """How requests of several clients become one run.

    Attributes:
        queue_delay_us: how long a request may wait for others, in microseconds; 0 for no longer than the runs before it
            take.
        preferred: batch sizes that are run at once when they are reached, without waiting out the delay.
    """

    queue_delay_us: int = 0
    preferred: tuple[int, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dict."""
        return {"queue_delay_us": self.queue_delay_us, "preferred": list(self.preferred)}

    @classmethod
    def from_json(cls, document: Any) -> DynamicBatching:
        """Read what :meth:`to_json` wrote."""
        return cls(_whole(document["queue_delay_us"]), tuple(map(_whole, _list(document["preferred"]))))


@dataclass(frozen=True)
class Serving:
    """How the model is to be run.

    Attributes:
        max_batch: the most samples of one run; 0 where the first dimension is no batch, or a fixed one.
        target: what it runs on.
        precision: on TensorRT, ``FP32`` or ``FP16``.
        instances: sessions that run side by side, on each device.
        threads: intra-op threads of each; 0 leaves the choice to ONNX Runtime.
        arena: whether ONNX Runtime keeps memory that a run no longer needs for the next one.
        batching: None where requests are run one by one.
    """

    max_batch: int = 0
    target: Target = "cpu"
    precision: str = "FP32"
    instances: int = 1
    threads: int = 0
    arena: bool = True
    batching: DynamicBatching | None = None

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dict."""
        return {
            "max_batch": self.max_batch,
            "target": self.target,
            "precision": self.precision,
            "instances": self.instances,
            "threads": self.threads,
            "arena": self.arena,
            "batching": None if self.batching is None else self.batching.to_json(),
        }

    @classmethod
    def from_json(cls, document: Any) -> Serving:
        """Read what :meth:`to_json` wrote."""
        target = document["target"]
        if target not in TARGETS:
            raise InvalidManifestError(f"the target {target!r} is unknown")
        instances = _whole(document["instances"])
        if instances < 1:
            raise InvalidManifestError("it asks for no instance")
        batching = document["batching"]
        return cls(
            max_batch=_whole(document["max_batch"]),
            target=target,
            precision=_text(document["precision"]),
            instances=instances,
            threads=_whole(document["threads"]),
            arena=_flag(document["arena"]),
            batching=None if batching is None else DynamicBatching.from_json(batching),
        )


@dataclass(frozen=True)
class Machine:
    """What a file in ONNX Runtime's own format was made for, and runs on.

    Attributes:
        name: what the user calls the machine type.
        cpu: the processor's name.
        instructions: its vector instructions, by which ONNX Runtime lays weights out.
        system: operating system and architecture.
        onnxruntime: the version that wrote the file.
        provider: ONNX Runtime's name of the execution provider.
    """

    name: str
    cpu: str
    instructions: str
    system: str
    onnxruntime: str
    provider: str

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dict."""
        return dict(vars(self))

    @classmethod
    def from_json(cls, document: Any) -> Machine:
        """Read what :meth:`to_json` wrote."""
        return cls(**{field.name: _text(document[field.name]) for field in fields(cls)})


@dataclass(frozen=True)
class MachineFile:
    """The model in ONNX Runtime's own optimized format: not portable.

    Attributes:
        path: in the version's folder.
        machine: what it runs on.
    """

    path: str
    machine: Machine

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dict."""
        return {"path": self.path, "portable": False, "machine": self.machine.to_json()}

    @classmethod
    def from_json(cls, document: Any) -> MachineFile:
        """Read what :meth:`to_json` wrote."""
        return cls(_text(document["path"]), Machine.from_json(document["machine"]))


@dataclass(frozen=True)
class FileRecord:
    """A file of the version's folder: its size in bytes and its SHA-256."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What ``manifest.json`` holds.

    Attributes:
        name: the model's.
        version: its version.
        created: when it was deployed, in UTC, as ISO 8601 writes it.
        model: the portable model, in the version's folder.
        inputs: in the model's order.
        outputs: the same.
        serving: how to run it.
        files: every other file of the folder, by its path there.
        labels: the file with the name of one class a line, for the first output; None without.
        preprocessing: the file that says how an image becomes the input (see :mod:`bnfold.prediction.preprocessing`);
            None where neither a sidecar nor the model's metadata told it.
        golden: the golden file (see :mod:`bnfold.verification.golden`); None where nothing was verified.
        machine_file: the model in ONNX Runtime's own format, where one was made.
        verification: what was proven before it was deployed; ``{"verified": false}`` where nothing was.
        cold_start: how long sessions take to create.
        source: the file that was deployed, and its SHA-256.
        tools: versions of the packages that had a part in it.
    """

    name: str
    version: int
    created: str
    model: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    serving: Serving
    files: Mapping[str, FileRecord]
    labels: str | None = None
    preprocessing: str | None = None
    golden: str | None = None
    machine_file: MachineFile | None = None
    verification: Mapping[str, Any] = field(default_factory=dict)
    cold_start: Mapping[str, Any] | None = None
    source: Mapping[str, Any] = field(default_factory=dict)
    tools: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dict."""
        return {
            "format": _FORMAT,
            "format_version": _VERSION,
            "name": self.name,
            "version": self.version,
            "created": self.created,
            "model": self.model,
            "inputs": [spec.to_json() for spec in self.inputs],
            "outputs": [spec.to_json() for spec in self.outputs],
            "serving": self.serving.to_json(),
            "labels": self.labels,
            "preprocessing": self.preprocessing,
            "golden": self.golden,
            "machine_file": None if self.machine_file is None else self.machine_file.to_json(),
            "verification": dict(self.verification),
            "cold_start": None if self.cold_start is None else dict(self.cold_start),
            "source": dict(self.source),
            "tools": dict(self.tools),
            "files": {path: vars(record) for path, record in self.files.items()},
        }

    @classmethod
    def from_json(cls, document: Any) -> Manifest:
        """Read what :meth:`to_json` wrote.

        Raises:
            InvalidManifestError: it is something else.
        """
        try:
            return cls._read(document)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InvalidManifestError("it lacks some of what it should hold") from error

    @classmethod
    def _read(cls, document: Any) -> Manifest:
        if document["format"] != _FORMAT:
            raise InvalidManifestError("it is no manifest of bnfold")
        if (version := _whole(document["format_version"])) != _VERSION:
            raise InvalidManifestError(f"it is of format {version}, and this bnfold reads {_VERSION}; upgrade bnfold")
        files = {_inner(path): _record(record) for path, record in _object(document["files"]).items()}
        machine_file = document["machine_file"]
        manifest = cls(
            name=_text(document["name"]),
            version=_whole(document["version"]),
            created=_text(document["created"]),
            model=_text(document["model"]),
            inputs=tuple(map(TensorSpec.from_json, _list(document["inputs"]))),
            outputs=tuple(map(TensorSpec.from_json, _list(document["outputs"]))),
            serving=Serving.from_json(document["serving"]),
            files=files,
            labels=_optional(document["labels"]),
            preprocessing=_optional(document["preprocessing"]),
            golden=_optional(document["golden"]),
            machine_file=None if machine_file is None else MachineFile.from_json(machine_file),
            verification=_object(document["verification"]),
            cold_start=None if document["cold_start"] is None else _object(document["cold_start"]),
            source=_object(document["source"]),
            tools=_object(document["tools"]),
        )
        own_format = None if manifest.machine_file is None else manifest.machine_file.path
        named = (manifest.model, manifest.labels, manifest.preprocessing, manifest.golden, own_format)
        for path in named:
            if path is not None and path not in files:
                raise InvalidManifestError(f"it names {path!r}, and no size or hash of it")
        return manifest


def _record(document: Any) -> FileRecord:
    sha256 = _text(document["sha256"])
    if not _SHA256.fullmatch(sha256):
        raise InvalidManifestError(f"{sha256!r} is no SHA-256")
    return FileRecord(_whole(document["size"]), sha256)


def _inner(path: Any) -> str:
    """A path that stays in the folder, and is written in one way only."""
    text = _text(path)
    pure = PurePosixPath(text)
    if (
        pure.is_absolute()
        or ".." in pure.parts
        or str(pure) != text
        or "\\" in text
        or text in ("", ".", MANIFEST_FILE)
    ):
        raise InvalidManifestError(f"{text!r} is no path of a file in its folder")
    return text


def _text(value: Any) -> str:
    """Text that can be shown, and that can name a file: without control characters and halves of surrogate pairs."""
    if not isinstance(value, str) or not value.isprintable():
        raise TypeError(value)
    return value


def _optional(value: Any) -> str | None:
    return None if value is None else _text(value)


def _whole(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 63:
        raise TypeError(value)
    return value


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(value)
    return value


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError(value)
    return value


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(value)
    return value
