"""ONNX Runtime sessions of a deployed model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from bnfold.deployment.machine_format import machine_model
from bnfold.deployment.repository import DeployedModel
from bnfold.errors import one_line
from bnfold.extras import require
from bnfold.serving.batching import Feeds, Values
from bnfold.serving.options import ServeOptions
from bnfold.serving.request import RequestError, RunError
from bnfold.session import SessionOptions, create_session, run_options, runtime_errors


def target_of(model: DeployedModel, options: ServeOptions) -> str:
    """What a model is run on: what it was deployed for, or what was asked for in place of that."""
    return options.provider or model.serving.target


def open_sessions(model: DeployedModel, how: ServeOptions) -> tuple[Session, ...]:
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
    return tuple(Session(model, create_session(file, options)) for _ in range(model.serving.instances))


def _provider_options(target: str, precision: str) -> Mapping[str, str]:
    return {"trt_fp16_enable": "1"} if target == "tensorrt" and precision == "FP16" else {}


class Session:
    """One session of a model: called with inputs by name, it returns outputs by name.

    Raises, when called:
        RequestError: ONNX Runtime says that the inputs contradict each other.
        RunError: it failed for another reason.
    """

    def __init__(self, model: DeployedModel, session: Any) -> None:
        self._name = model.name
        self._outputs = [output.name for output in model.outputs]
        self._session = session
        self._run = run_options()
        self._invalid = require("onnxruntime.capi.onnxruntime_pybind11_state", "cpu").InvalidArgument
        self._errors: tuple[type[Exception], ...] = (*runtime_errors(), MemoryError)

    def __call__(self, feeds: Feeds) -> Values:
        """Run it once."""
        try:
            outputs = self._session.run(self._outputs, dict(feeds), self._run)
        except self._invalid as error:
            raise RequestError(f"the model {self._name} does not take it: {one_line(error)}") from None
        except self._errors as error:
            raise RunError(f"the model {self._name} failed: {one_line(error)}") from None
        return {name: np.asarray(value) for name, value in zip(self._outputs, outputs, strict=True)}

    def end(self) -> None:
        """Make the run that is going on fail before its next op: Python does not end before its threads do."""
        self._run.terminate = True
