"""Small deployments, written without Triton's protobuf: for tests of what reads and writes repositories."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bnfold.deployment.manifest import Manifest, Serving, TensorSpec
from bnfold.deployment.publishing import Fill, publish_version
from bnfold.deployment.repository import DeployedModel

INPUTS = (TensorSpec("x", "FP32", (None, 3)),)
OUTPUTS = (TensorSpec("y", "FP32", (None, 2)),)


def fill(
    name: str,
    content: bytes = b"model",
    *,
    inputs: Sequence[TensorSpec] = INPUTS,
    labels: Sequence[str] = ("cat", "dog"),
) -> Fill:
    def write(folder: Path, version: int) -> Manifest:
        (folder / "model.onnx").write_bytes(content)
        (folder / "config.pbtxt").write_text(
            f'name: "{name}"\nversion_policy {{ specific {{ versions: {version} }} }}\n'
        )
        (folder / "labels.txt").write_text("".join(f"{label}\n" for label in labels))
        return Manifest(
            name=name,
            version=version,
            created="2026-01-01T00:00:00+00:00",
            model="model.onnx",
            inputs=tuple(inputs),
            outputs=OUTPUTS,
            serving=Serving(max_batch=8),
            files={},
            labels="labels.txt",
        )

    return write


def deploy_bytes(repository: Path, name: str = "net", content: bytes = b"model") -> DeployedModel:
    return publish_version(repository, name, fill(name, content))
