"""The protocol over gRPC: KServe's servicer, with versions, limits and status codes.

KServe's interceptors are left out: they log every call, and answer some of KServe's own exceptions with a second one.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any, NoReturn

from grpc import StatusCode, aio
from kserve.protocol.grpc import grpc_predict_v2_pb2 as messages
from kserve.protocol.grpc import grpc_predict_v2_pb2_grpc as services
from kserve.protocol.grpc.servicer import InferenceServicer
from kserve.protocol.model_repository_extension import ModelRepositoryExtension

from bnfold.serving import grpc_codec
from bnfold.serving.options import ServeOptions
from bnfold.serving.request import (
    OverloadedError,
    RequestError,
    RunError,
    TooLargeError,
    UnavailableError,
    UnknownModelError,
)
from bnfold.serving.service import Service

_LOG = logging.getLogger("bnfold.serve")
_ACCESS = logging.getLogger("bnfold.serve.access")

#: Calls at once beyond the inference requests that are taken.
_OTHER_CALLS = 64

_STATUS: Mapping[type[Exception], StatusCode] = {
    RequestError: StatusCode.INVALID_ARGUMENT,
    UnknownModelError: StatusCode.NOT_FOUND,
    TooLargeError: StatusCode.RESOURCE_EXHAUSTED,
    UnavailableError: StatusCode.UNAVAILABLE,
    OverloadedError: StatusCode.RESOURCE_EXHAUSTED,
    RunError: StatusCode.INTERNAL,
}


class Servicer(InferenceServicer):
    """KServe's servicer over a :class:`Service`."""

    def __init__(self, service: Service) -> None:
        super().__init__(service, ModelRepositoryExtension(service.model_registry))
        self._service = service

    async def ModelReady(self, request: messages.ModelReadyRequest, context: Any) -> messages.ModelReadyResponse:  # noqa: N802
        """Whether a model is ready."""
        try:
            model = self._service.model(request.name, request.version)
        except UnknownModelError as error:
            await _abort(context, error)
        return messages.ModelReadyResponse(ready=model.ready and await self._service.ready())

    async def ModelMetadata(  # noqa: N802
        self, request: messages.ModelMetadataRequest, context: Any
    ) -> messages.ModelMetadataResponse:
        """The metadata of a model."""
        try:
            return messages.ModelMetadataResponse(**self._service.describe(request.name, request.version))
        except UnknownModelError as error:
            await _abort(context, error)

    async def ModelInfer(self, request: messages.ModelInferRequest, context: Any) -> messages.ModelInferResponse:  # noqa: N802
        """Answer an inference request."""
        started = time.perf_counter()
        status = StatusCode.OK
        try:
            with self._service.request("grpc") as observed:
                model = self._service.model(request.model_name, request.model_version)
                observed.of(model)
                checked = grpc_codec.decode(model.deployed, request)
                answer = await self._service.answer(model, checked)
                return grpc_codec.encode(model.deployed, checked, answer.values)
        except Exception as error:
            status = _status(error)
            await _abort(context, error)
        finally:
            if _ACCESS.isEnabledFor(logging.INFO):
                milliseconds = (time.perf_counter() - started) * 1e3
                _ACCESS.info(
                    "%s ModelInfer %r %s %.1f ms", context.peer(), request.model_name, status.name, milliseconds
                )

    async def RepositoryModelLoad(self, request: Any, context: Any) -> NoReturn:  # noqa: N802
        """Refuse: a caller does not decide which models are loaded."""
        await context.abort(StatusCode.UNIMPLEMENTED, "models are loaded by `bnfold deploy`, not by clients")
        raise AssertionError

    RepositoryModelUnload = RepositoryModelLoad


def _status(error: Exception) -> StatusCode:
    return next((status for kind, status in _STATUS.items() if isinstance(error, kind)), StatusCode.UNKNOWN)


async def _abort(context: Any, error: Exception) -> NoReturn:
    status = _status(error)
    if status is StatusCode.INTERNAL:
        _LOG.error("%s", error)
    elif status is StatusCode.UNKNOWN:
        _LOG.error("a request failed", exc_info=error)
        await context.abort(StatusCode.INTERNAL, "the server failed; its log says more")
    await context.abort(status, str(error))
    raise AssertionError  # abort always raises


def create_server(service: Service, limits: ServeOptions) -> aio.Server:
    """The server that answers over gRPC; it listens nowhere yet."""
    server = aio.server(
        # gRPC reads a whole message before it asks: this bounds how many are held. The rest is for health and metadata.
        maximum_concurrent_rpcs=limits.max_requests + _OTHER_CALLS,
        options=[
            ("grpc.max_receive_message_length", limits.max_body),
            ("grpc.max_send_message_length", -1),
            ("grpc.so_reuseport", 0),  # a port that another server has is an error, not shared with it
        ],
    )
    services.add_GRPCInferenceServiceServicer_to_server(Servicer(service), server)
    return server
