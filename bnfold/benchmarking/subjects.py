"""What is measured: a model file, and what can be said of it without running it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from bnfold.benchmarking.inputs import SUPPORTED, InputSpec
from bnfold.errors import ModelError
from bnfold.files import StrPath, sha256_of
from bnfold.model_file import files_of, load_model


@dataclass(frozen=True)
class Subject:
    """One model of a benchmark.

    Attributes:
        path: the file.
        label: what it is called in the results; no two subjects share one.
        sha256: of the file, then of its external data files in the order of their names, as one stream.
        size: bytes on disk, external data included.
        nodes: nodes in the graph and its subgraphs.
        inputs: what it takes.
    """

    path: Path
    label: str
    sha256: str
    size: int
    nodes: int
    inputs: tuple[InputSpec, ...]

    def to_json(self) -> dict[str, object]:
        """The subject as plain data."""
        return {
            "path": str(self.path),
            "label": self.label,
            "sha256": self.sha256,
            "size_bytes": self.size,
            "nodes": self.nodes,
            "inputs": [{"name": spec.name, "dtype": spec.dtype, "shape": list(spec.shape)} for spec in self.inputs],
        }


def load_subjects(paths: Sequence[StrPath]) -> tuple[Subject, ...]:
    """Read every model once.

    Raises:
        ModelError: a file is not a usable model, or takes an input for which no numbers can be made.
    """
    return tuple(_load(Path(path), label) for path, label in zip(paths, labels(paths), strict=True))


def labels(paths: Sequence[StrPath]) -> tuple[str, ...]:
    """A short name for each path, no two equal: its file name, else the path, else that and a number."""
    names = [Path(path).name for path in paths]
    chosen = [name if names.count(name) == 1 else str(path) for name, path in zip(names, paths, strict=True)]
    return tuple(
        label if chosen.count(label) == 1 else f"{label} #{chosen[: index + 1].count(label)}"
        for index, label in enumerate(chosen)
    )


def _load(path: Path, label: str) -> Subject:
    model = load_model(path)
    files = files_of(model, path)
    return Subject(
        path=path,
        label=label,
        sha256=sha256_of(*files),
        size=sum(file.stat().st_size for file in files),
        nodes=sum(1 for _ in model.graph.all_nodes()),
        inputs=tuple(_specs(model, path)),
    )


def _specs(model: ir.Model, path: Path) -> Iterator[InputSpec]:
    for value in model.graph.inputs:
        if value.name in model.graph.initializers:
            continue  # before IR 4 every weight is listed as an input, with its default
        name = value.name or ""
        if not isinstance(value.type, ir.TensorType):
            raise ModelError(f"{path}: the input {name} is not a tensor; only tensors can be made up")
        if value.shape is None:
            raise ModelError(f"{path}: the input {name} declares no shape, not even its rank")
        dtype = _numpy_name(value.type.dtype)
        if dtype is None:
            raise ModelError(f"{path}: the input {name} is {value.type.dtype.name}, which cannot be made up")
        yield InputSpec(name, dtype, tuple(size if isinstance(size, int) else None for size in value.shape))


def _numpy_name(dtype: ir.DataType) -> str | None:
    try:
        name = np.dtype(dtype.numpy()).name
    except TypeError:
        return None
    return name if name in SUPPORTED else None
