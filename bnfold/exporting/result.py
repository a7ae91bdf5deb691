"""What an export came to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


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
        notes: what the caller should know of the export, in sentences.
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
    notes: tuple[str, ...] = ()

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
            "notes": list(self.notes),
        }
