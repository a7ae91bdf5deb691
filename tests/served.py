"""A repository of small models and a server of it in a process of its own, for tests of serving."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from bnfold.deployment.machine_format import FOLDER, write_machine_file
from bnfold.deployment.manifest import DATATYPES, DynamicBatching, Machine, MachineFile, Manifest, Serving, TensorSpec
from bnfold.deployment.publishing import publish_version
from bnfold.deployment.repository import DeployedModel
from bnfold.verification import record_golden

OPSET = [helper.make_opsetid("", 17)]
BATCHED = Serving(max_batch=8, threads=1, batching=DynamicBatching(queue_delay_us=2000))
ALONE = Serving(threads=1)


def _model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    constants: dict[str, np.ndarray[Any, Any]] | None = None,
) -> onnx.ModelProto:
    infos = [
        [
            helper.make_tensor_value_info(
                spec.name,
                helper.np_dtype_to_tensor_dtype(np.dtype(spec.dtype)),
                [f"{spec.name}_{axis}" if size is None else size for axis, size in enumerate(spec.shape)],
            )
            for spec in specs
        ]
        for specs in (inputs, outputs)
    ]
    initializers = [numpy_helper.from_array(value, name) for name, value in (constants or {}).items()]
    return helper.make_model(
        helper.make_graph(list(nodes), "g", *infos, initializers), opset_imports=OPSET, ir_version=9
    )


def deploy_model(
    repository: Path,
    name: str,
    model: onnx.ModelProto,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    serving: Serving,
    *,
    golden: onnx.ModelProto | None = None,
    machine: Machine | None = None,
) -> DeployedModel:
    """Put a model there, with a golden file made from ``golden`` and ONNX Runtime's own format, if those are given."""

    def fill(folder: Path, version: int) -> Manifest:
        onnx.save(model, folder / "model.onnx")
        if golden is not None:
            onnx.save(golden, folder / "reference.onnx")
            record_golden(folder / "reference.onnx", folder / "golden.npz")
            (folder / "reference.onnx").unlink()
        made = None
        if machine is not None:
            (folder / FOLDER).mkdir()
            file = write_machine_file(folder / "model.onnx", folder / FOLDER, machine)
            made = MachineFile(f"{FOLDER}/{file.name}", machine)
        config = f'name: "{name}"\nversion_policy {{ specific {{ versions: {version} }} }}\n'
        (folder / "config.pbtxt").write_text(config)
        return Manifest(
            name=name,
            version=version,
            created="2026-01-01T00:00:00+00:00",
            model="model.onnx",
            inputs=tuple(inputs),
            outputs=tuple(outputs),
            serving=serving,
            files={},
            golden=None if golden is None else "golden.npz",
            machine_file=made,
        )

    return publish_version(repository, name, fill)


def classifier(seed: int = 0) -> onnx.ModelProto:
    """Images (N, 1, 8, 8) to logits (N, 10): Conv, Relu, Flatten, Gemm."""
    draw = np.random.default_rng(seed)
    constants = {
        "w": draw.normal(size=(16, 1, 3, 3)).astype(np.float32),
        "b": draw.normal(size=16).astype(np.float32),
        "v": draw.normal(size=(10, 16 * 64)).astype(np.float32) / np.float32(32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], pads=[1] * 4),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("Flatten", ["r"], ["f"]),
        helper.make_node("Gemm", ["f", "v"], ["logits"], transB=1),
    ]
    return _model(nodes, *CLASSIFIER, constants)


def centred() -> onnx.ModelProto:
    """A classifier whose logits are less their mean over the batch: a row depends on its neighbours."""
    model = classifier()
    model.graph.node[-1].output[0] = "raw"
    model.graph.node.append(helper.make_node("ReduceMean", ["raw"], ["mean"], axes=[0], keepdims=1))
    model.graph.node.append(helper.make_node("Sub", ["raw", "mean"], ["logits"]))
    return model


CLASSIFIER = ((TensorSpec("x", "FP32", (None, 1, 8, 8)),), (TensorSpec("logits", "FP32", (None, 10)),))


def deploy_classifier(repository: Path, seed: int = 0, serving: Serving = BATCHED) -> DeployedModel:
    model = classifier(seed)
    return deploy_model(repository, "digits", model, *CLASSIFIER, serving, golden=model)


def deploy_slow(repository: Path) -> DeployedModel:
    """``turns`` products of 64×64 matrices: the caller says how long it takes."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["on"], ["on_out"]), helper.make_node("MatMul", ["state", "m"], ["state_out"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", TensorProto.FLOAT, [64, 64]),
        ],
        [
            helper.make_tensor_value_info("on_out", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state_out", TensorProto.FLOAT, [64, 64]),
        ],
    )
    nodes = [
        helper.make_node("Squeeze", ["turns"], ["n"]),
        helper.make_node("Loop", ["n", "", "m"], ["y"], body=body),
    ]
    inputs, outputs = (TensorSpec("turns", "INT64", (1,)),), (TensorSpec("y", "FP32", (64, 64)),)
    constants = {"m": np.eye(64, dtype=np.float32)}
    return deploy_model(repository, "slow", _model(nodes, inputs, outputs, constants), inputs, outputs, ALONE)


def deploy_every_type(repository: Path) -> DeployedModel:
    """One input and one output of each datatype that can be deployed; an output is its input."""
    inputs = tuple(TensorSpec(f"in_{datatype}", datatype, (None,)) for _, datatype in DATATYPES.values())
    outputs = tuple(TensorSpec(f"out_{datatype}", datatype, (None,)) for _, datatype in DATATYPES.values())
    nodes = [helper.make_node("Identity", [i.name], [o.name]) for i, o in zip(inputs, outputs, strict=True)]
    return deploy_model(repository, "types", _model(nodes, inputs, outputs), inputs, outputs, ALONE)


def deploy_lookup(repository: Path) -> DeployedModel:
    """Rows of a table of ten by their index: another index makes a run fail."""
    inputs, outputs = (TensorSpec("index", "INT64", (None,)),), (TensorSpec("row", "FP32", (None, 3)),)
    nodes = [helper.make_node("Gather", ["table", "index"], ["row"])]
    model = _model(nodes, inputs, outputs, {"table": np.arange(30, dtype=np.float32).reshape(10, 3)})
    slow = Serving(max_batch=8, threads=1, batching=DynamicBatching(queue_delay_us=100_000))
    return deploy_model(repository, "lookup", model, inputs, outputs, slow)


def deploy_sums(repository: Path) -> DeployedModel:
    """Σx and log Σx of rows of any length, divided by a second input."""
    inputs = (TensorSpec("x", "FP32", (None, None)), TensorSpec("by", "FP32", (None, 1)))
    outputs = (TensorSpec("sum", "FP32", (None, 1)), TensorSpec("log", "FP32", (None, 1)))
    nodes = [
        helper.make_node("ReduceSum", ["x", "axes"], ["s"]),
        helper.make_node("Div", ["s", "by"], ["sum"]),
        helper.make_node("Log", ["sum"], ["log"]),
    ]
    model = _model(nodes, inputs, outputs, {"axes": np.array([1], np.int64)})
    slow = Serving(max_batch=8, threads=1, batching=DynamicBatching(queue_delay_us=100_000))
    return deploy_model(repository, "sums", model, inputs, outputs, slow)


@dataclass(frozen=True)
class Server:
    """A server in a process of its own, with what it announced."""

    process: subprocess.Popen[str]
    http: str
    grpc: str
    announced: dict[str, Any]

    def stop(self, number: int = signal.SIGTERM) -> None:
        self.process.send_signal(number)

    def end(self, timeout: float = 30) -> tuple[int, str]:
        """Exit code and what was written to stderr."""
        _, errors = self.process.communicate(timeout=timeout)
        return self.process.returncode, errors


def command(repository: Path, *options: str) -> list[str]:
    program = [sys.executable, "-P", "-m", "bnfold", "serve", str(repository), "--json"]
    ports = [] if "--http-port" in options else ["--http-port", "0", "--grpc-port", "0"]
    return [*program, *ports, *options]


@contextmanager
def serving(repository: Path, *options: str) -> Iterator[Server]:
    process = subprocess.Popen(
        command(repository, *options), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=repository.parent
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise AssertionError(process.communicate()[1])
        announced = json.loads(line)
        yield Server(process, announced["http"], announced["grpc"], announced)
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()
