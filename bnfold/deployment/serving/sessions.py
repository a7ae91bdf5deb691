"""ONNX Runtime sessions of a deployed model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from bnfold.deployment.machine_format import machine_model
from bnfold.deployment.repository import DeployedModel
from bnfold.deployment.serving.batching import Feeds, Run, Values
from bnfold.deployment.serving.options import ServeOptions
from bnfold.deployment.serving.request import RequestError, RunError
from bnfold.extras import require
from bnfold.session import SessionOptions, create_session, one_line, runtime_errors


def target_of(model: DeployedModel, options: ServeOptions) -> str:
    """What a model is run on: what it was deployed for, or what was asked for in place of that."""
    return options.provider or model.serving.target


def open_sessions(model: DeployedModel, how: ServeOptions) -> tuple[Run, ...]:
    """One session for each instance of a model.

    Raises:
        ProviderError: the provider is not installed or does not run here.
        ModelError: ONNX Runtime does not load the file.
        SetupError: ONNX Runtime's own format was asked for, and there is none for this machine.
    """
    target = target_of(model, how)
    file = machine_model(model) if how.ort_format else model.model
    options = SessionOptions(
        provider=target,
        threads=model.serving.threads,
        arena=model.serving.arena,
        spinning=False,  # threads that spin while they wait would take the cores from those that read requests
        provider_options=_provider_options(target, model.serving.precision),
    )
    return tuple(_runner(create_session(file, options), model) for _ in range(model.serving.instances))


def _provider_options(target: str, precision: str) -> Mapping[str, str]:
    return {"trt_fp16_enable": "1"} if target == "tensorrt" and precision == "FP16" else {}


def _runner(session: Any, model: DeployedModel) -> Run:
    errors: tuple[type[Exception], ...] = (*runtime_errors(), MemoryError)
    invalid = require("onnxruntime.capi.onnxruntime_pybind11_state", "cpu").InvalidArgument
    names = [output.name for output in model.outputs]

    def run(feeds: Feeds) -> Values:
        try:
            outputs = session.run(names, dict(feeds))
        except invalid as error:
            raise RequestError(f"the model {model.name} does not take it: {one_line(error)}") from None
        except errors as error:
            raise RunError(f"the model {model.name} failed: {one_line(error)}") from None
        return {name: np.asarray(value) for name, value in zip(names, outputs, strict=True)}

    return run
