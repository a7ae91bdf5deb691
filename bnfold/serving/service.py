"""The models that are served, and the life of the server: the part that HTTP and gRPC share.

The classes of KServe that its endpoints and servicers ask are extended here at the places that it leaves open: a
:class:`kserve.Model` for each deployed model, and a data plane that knows versions and whether the server is ready.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import kserve
from kserve.protocol.dataplane import DataPlane

from bnfold.deployment.repository import DeployedModel
from bnfold.serving.batching import Answer, Batcher
from bnfold.serving.metrics import Metrics
from bnfold.serving.request import (
    ClientGoneError,
    OverloadedError,
    Request,
    RequestError,
    TooLargeError,
    UnavailableError,
    UnknownModelError,
    protocol_shape,
)
from bnfold.serving.sessions import Session

#: What each failure is called in the metrics; any other is called "failed".
_OUTCOMES: Mapping[type[BaseException], str] = {
    UnknownModelError: "unknown_model",
    RequestError: "bad_request",
    TooLargeError: "too_large",
    UnavailableError: "unavailable",
    OverloadedError: "overloaded",
    asyncio.CancelledError: "client_gone",
    ClientGoneError: "client_gone",
}


class ServedModel(kserve.Model):
    """A deployed model behind KServe's interface: its sessions and its queue."""

    def __init__(self, deployed: DeployedModel, sessions: Sequence[Session], metrics: Metrics) -> None:
        super().__init__(deployed.name)
        self.deployed = deployed
        labels = (deployed.name, str(deployed.version))
        batch_rows, batch_requests = metrics.batch_rows.labels(*labels), metrics.batch_requests.labels(*labels)
        run_seconds, self._queue_seconds = metrics.run_seconds.labels(*labels), metrics.queue_seconds.labels(*labels)

        def observe(requests: int, rows: int, seconds: float) -> None:
            batch_requests.observe(requests)
            batch_rows.observe(rows)
            run_seconds.observe(seconds)

        batching = deployed.serving.batching
        self._batcher = Batcher(
            sessions,
            max_rows=deployed.serving.max_batch if batching else 1,
            delay=batching.queue_delay_us / 1e6 if batching else 0.0,
            preferred=batching.preferred if batching else (),
            observe=observe,
        )
        self._sessions = sessions
        self._users = 0
        self._unused = asyncio.Event()
        self._unused.set()
        self.ready = True

    def get_input_types(self) -> list[dict[str, Any]]:
        """The inputs, as the protocol's metadata describe them."""
        return [{"name": i.name, "datatype": i.datatype, "shape": protocol_shape(i)} for i in self.deployed.inputs]

    def get_output_types(self) -> list[dict[str, Any]]:
        """The outputs, as the protocol's metadata describe them."""
        return [{"name": o.name, "datatype": o.datatype, "shape": protocol_shape(o)} for o in self.deployed.outputs]

    async def predict(self, payload: Request, headers: Mapping[str, str] | None = None) -> Answer:
        """Run a request; see :meth:`Batcher.submit`."""
        answer = await self._batcher.submit(payload)
        self._queue_seconds.observe(answer.waited)
        return answer

    def validate(self, payload: Request) -> Request:
        """Nothing is left to check: a :class:`Request` has been."""
        return payload

    def hold(self) -> None:
        """A request is being answered by it: it stays until :meth:`release`."""
        self._users += 1
        self._unused.clear()

    def release(self) -> None:
        """The request has been answered."""
        self._users -= 1
        if not self._users:
            self._unused.set()

    async def close(self, seconds: float) -> None:
        """End the sessions once nobody holds it, or after so many seconds."""
        self.ready = False
        with suppress(TimeoutError):
            await asyncio.wait_for(self._unused.wait(), seconds)
        for session in self._sessions:
            session.end()
        await self._batcher.close()


@dataclass
class _Life:
    ready: bool = False
    stopping: bool = False
    in_flight: int = 0


class Service(DataPlane):
    """The models that are served, and whether they are.

    Args:
        metrics: where requests are counted.
        max_requests: requests at once; more are refused.
    """

    def __init__(self, metrics: Metrics, max_requests: int) -> None:
        super().__init__(kserve.ModelRepository())
        self.metrics = metrics
        self.max_requests = max_requests
        self._life = _Life()
        self._idle = asyncio.Event()
        self._idle.set()

    # The server's life.

    def open(self) -> None:
        """Take requests from now on."""
        self._life.ready = True
        self.metrics.ready.set(1)

    def stop(self) -> None:
        """Take no more requests; readiness goes false."""
        self._life.ready, self._life.stopping = False, True
        self.metrics.ready.set(0)

    async def finish(self, seconds: float) -> int:
        """Wait until nothing is in flight, at most so long; return how many requests still are."""
        try:
            await asyncio.wait_for(self._idle.wait(), seconds)
        except TimeoutError:
            return self._life.in_flight
        return 0

    def metadata(self) -> dict[str, Any]:
        """The server's name, version and what it does beyond the protocol's core."""
        extensions = ["binary_tensor_data", "model_repository"]
        return {"name": "bnfold", "version": metadata.version("bnfold"), "extensions": extensions}

    async def ready(self) -> bool:
        """Whether requests are taken."""
        return self._life.ready

    # The models.

    @property
    def models(self) -> tuple[ServedModel, ...]:
        """Those that are served, sorted by name."""
        return tuple(model for _, model in sorted(self.model_registry.get_models().items()))

    def put(self, model: ServedModel) -> ServedModel | None:
        """Serve a model from now on; return the version that it takes the place of."""
        before = self.model_registry.get_model(model.name)
        self.model_registry.update(model)
        return before if isinstance(before, ServedModel) else None

    def take(self, name: str) -> ServedModel | None:
        """Serve a model no longer."""
        model = self.model_registry.get_models().pop(name, None)
        return model if isinstance(model, ServedModel) else None

    def model(self, name: str, version: str | None) -> ServedModel:
        """The model of that name, in that version or whichever is served.

        Raises:
            UnknownModelError: it is not served.
        """
        model = self.model_registry.get_model(name)
        if not isinstance(model, ServedModel):
            raise UnknownModelError(f"no model {name!r:.80} is served here")
        if version and version != str(model.deployed.version):
            raise UnknownModelError(
                f"version {version!r:.40} of {name} is not served; version {model.deployed.version} is"
            )
        return model

    def describe(self, name: str, version: str | None) -> dict[str, Any]:
        """The metadata of a model.

        Raises:
            UnknownModelError: it is not served.
        """
        model = self.model(name, version)
        return {
            "name": model.name,
            "versions": [str(model.deployed.version)],
            "platform": "onnxruntime_onnx",
            "inputs": model.get_input_types(),
            "outputs": model.get_output_types(),
        }

    def index(self) -> list[dict[str, str]]:
        """What the repository holds, as the protocol's index lists it."""
        state = "READY" if self._life.ready else "UNAVAILABLE"
        return [
            {"name": model.name, "version": str(model.deployed.version), "state": state, "reason": ""}
            for model in self.models
        ]

    # Requests.

    @contextmanager
    def request(self, protocol: str) -> Iterator[Observation]:
        """Count one inference request while it is in flight, and what comes of it.

        Raises:
            UnavailableError: the server is starting or stopping.
            OverloadedError: there are too many requests.
        """
        observation = Observation()
        started = time.perf_counter()
        self._count(1)
        try:
            if not self._life.ready:
                raise UnavailableError(f"the server is {'stopping' if self._life.stopping else 'starting'}")
            if self._life.in_flight > self.max_requests:
                raise OverloadedError(f"{self.max_requests} requests are in flight; try again later")
            yield observation
        except BaseException as error:
            observation.outcome = next((name for kind, name in _OUTCOMES.items() if isinstance(error, kind)), "failed")
            raise
        finally:
            self._count(-1)
            seconds = time.perf_counter() - started
            self.metrics.requests.labels(*observation.labels, protocol, observation.outcome).inc()
            if observation.model is not None:
                observation.model.release()
                self.metrics.seconds.labels(*observation.labels, protocol).observe(seconds)

    def _count(self, more: int) -> None:
        self._life.in_flight += more
        self.metrics.in_flight.set(self._life.in_flight)
        if self._life.in_flight:
            self._idle.clear()
        else:
            self._idle.set()

    async def answer(self, model: ServedModel, request: Request) -> Answer:
        """Run a checked request; see :meth:`Batcher.submit`."""
        answer, _headers = await model(request)
        assert isinstance(answer, Answer)
        return answer


class Observation:
    """What is known of a request in flight.

    Attributes:
        model: the model that answers it. Labels are made of models that are served, never of what a client wrote.
        outcome: what came of it.
    """

    def __init__(self) -> None:
        self.model: ServedModel | None = None
        self.outcome = "ok"

    @property
    def labels(self) -> tuple[str, str]:
        """Name and version of the model, empty where it was never found."""
        return ("", "") if self.model is None else (self.model.name, str(self.model.deployed.version))

    def of(self, model: ServedModel) -> None:
        """The request is for that model, which stays loaded until it is answered."""
        model.hold()
        self.model = model
