"""A session with its inputs, ready to be timed: plain, or with inputs and outputs bound in the provider's memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnfold.errors import ModelError, one_line
from bnfold.extras import require
from bnfold.session import provider_name, runtime_errors

#: Where each provider's memory is, as ONNX Runtime names devices; the host for any other.
_DEVICES: Mapping[str, str] = {"CUDAExecutionProvider": "cuda", "TensorrtExecutionProvider": "cuda"}

Arrays = Mapping[str, NDArray[Any]]


class Runner:
    """One inference at a time, with the same inputs each time.

    Args:
        session: an ``onnxruntime.InferenceSession``.
        inputs: an array for each input.
        provider: where it runs; decides in which memory a binding lies.
        binding: bind inputs and outputs instead of handing arrays over. The buffers of the outputs are those that
            the first run was given, so that later runs allocate none.
        output_shapes: shapes to bind before the first run, by name, for a provider that records it.

    Attributes:
        run: one inference. When it returns, the provider has finished it, on any device.
    """

    def __init__(
        self,
        session: Any,
        inputs: Arrays,
        *,
        provider: str = "cpu",
        binding: bool = False,
        output_shapes: Mapping[str, tuple[int, ...]] | None = None,
    ) -> None:
        # What a bound run raises is no exception of ONNX Runtime's own.
        self._failures: tuple[type[Exception], ...] = (*runtime_errors(), RuntimeError)
        self._session = session
        self._outputs = {output.name: output.type for output in session.get_outputs()}
        self._bound: Any = None
        if not binding:
            self.run: Callable[[], object] = partial(session.run, list(self._outputs), dict(inputs))
            return
        self._device = _DEVICES.get(provider_name(provider), "cpu")
        self._bound = self._bind(inputs, output_shapes or {})
        self.run = self._run_bound if self._device == "cpu" else self._run_on_device

    def _bind(self, inputs: Arrays, output_shapes: Mapping[str, tuple[int, ...]]) -> Any:
        ort = require("onnxruntime", "cpu")
        bound = self._session.io_binding()
        for name, array in inputs.items():
            bound.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array, self._device, 0))
        for name, kind in self._outputs.items():
            if name in output_shapes:
                value = ort.OrtValue.ortvalue_from_shape_and_type(
                    list(output_shapes[name]), _numpy_type(kind), self._device, 0
                )
                bound.bind_ortvalue_output(name, value)
            else:
                bound.bind_output(name, self._device)
        bound.synchronize_inputs()
        return bound

    def _run_bound(self) -> None:
        self._session.run_with_iobinding(self._bound)

    def _run_on_device(self) -> None:
        self._session.run_with_iobinding(self._bound)
        self._bound.synchronize_outputs()  # kernels are only queued until then

    def keep_outputs(self) -> None:
        """Write every further run's outputs where the last run wrote them, if they are bound and tensors."""
        if self._bound is None or not all(kind.startswith("tensor(") for kind in self._outputs.values()):
            return
        values = self._bound.get_outputs()
        for name, value in zip(self._outputs, values, strict=True):
            self._bound.bind_ortvalue_output(name, value)

    @contextmanager
    def failures_named(self) -> Iterator[None]:
        """What ONNX Runtime raises inside becomes a :class:`ModelError`."""
        try:
            yield
        except self._failures as error:
            raise ModelError(f"ONNX Runtime failed while running the model: {one_line(error)}") from error


def _numpy_type(kind: str) -> Any:
    """numpy's type for ONNX Runtime's name of a tensor type, for example ``tensor(float)``."""
    name = kind.removeprefix("tensor(").removesuffix(")")
    return np.dtype({"float": "float32", "double": "float64"}.get(name, name)).type
