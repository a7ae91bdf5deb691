"""The protocol over HTTP: KServe's endpoints, with versions, binary tensors that stay binary, limits and errors.

What KServe 0.21 lacks and is added by overriding its methods or by routes beside its own: versions (it answers 501),
the repository index, a limit on bodies, error documents for wrong methods and paths. What it has and is left out: the
routes that load and unload models for any caller, and the first version of the protocol.
"""

from __future__ import annotations

import asyncio
import logging
import time
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import orjson
from fastapi import FastAPI, Request, Response
from kserve.protocol.rest.v2_endpoints import V2Endpoints
from prometheus_client import exposition
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from bnfold.serving import http_codec
from bnfold.serving.request import (
    ClientGoneError,
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

#: The protocol's header that tells where JSON ends and tensors begin.
_JSON_LENGTH = "Inference-Header-Content-Length"

#: Seconds in which the next piece of a body must come.
_PATIENCE = 30.0

#: A body of this many bytes is read in a thread, so that others are answered meanwhile.
_LARGE = 1 << 18

_STATUS: Mapping[type[Exception], int] = {
    RequestError: 400,
    UnknownModelError: 404,
    ClientGoneError: 400,
    TooLargeError: 413,
    UnavailableError: 503,
    OverloadedError: 503,
    RunError: 500,
}

Handler = Callable[..., Awaitable[Response]]


class Endpoints(V2Endpoints):
    """KServe's endpoints over a :class:`Service`.

    Args:
        service: the models.
        max_body: bytes of a request's body at most.
    """

    def __init__(self, service: Service, max_body: int) -> None:
        super().__init__(service)
        self._service = service
        self._max_body = max_body

    async def index(self, request: Request) -> Response:
        """The repository index; ``{"ready": true}`` leaves out what is not ready."""
        body = await self._body(request)
        try:
            options = orjson.loads(body) if body else {}
        except ValueError as error:
            raise RequestError(f"the request is not JSON: {error}") from error
        wanted = isinstance(options, dict) and options.get("ready") is True
        return _json([entry for entry in self._service.index() if entry["state"] == "READY" or not wanted])

    async def model_metadata(self, model_name: str, model_version: str | None = None) -> Response:
        """The metadata of a model."""
        return _json(self._service.describe(model_name, model_version))

    async def model_ready(self, model_name: str, model_version: str | None = None) -> Response:
        """Whether a model is ready."""
        model = self._service.model(model_name, model_version)
        ready = model.ready and await self._service.ready()
        return _json({"name": model.name, "ready": ready}, 200 if ready else 503)

    async def ready(self) -> Response:
        """Whether the server takes requests."""
        ready = await self._service.ready()
        return _json({"ready": ready}, 200 if ready else 503)

    async def infer(self, raw_request: Request, model_name: str, model_version: str | None = None) -> Response:
        """Answer an inference request."""
        with self._service.request("http") as observed:
            body = await self._body(raw_request)
            model = self._service.model(model_name, model_version)
            observed.of(model)
            deployed, length = model.deployed, raw_request.headers.get(_JSON_LENGTH)
            request = await _off_loop(len(body), http_codec.decode, deployed, body, length)
            del body
            answer = await self._service.answer(model, request)
            size = sum(values.nbytes for values in answer.values.values())
            encoded = await _off_loop(size, http_codec.encode, deployed, request, answer.values)
        if encoded.json_length is None:
            return Response(encoded.content, media_type="application/json")
        return Response(
            encoded.content,
            media_type="application/octet-stream",
            headers={_JSON_LENGTH: str(encoded.json_length)},
        )

    async def _body(self, request: Request) -> bytes:
        length = request.headers.get("content-length", "0")
        if length.isdigit() and int(length) > self._max_body:
            raise TooLargeError(f"the body of {length} bytes is larger than the {self._max_body} that are taken")
        pieces, size = [], 0
        async for piece in _decompressed(request, self._max_body):
            size += len(piece)
            if size > self._max_body:
                raise TooLargeError(f"the body is larger than the {self._max_body} bytes that are taken")
            pieces.append(piece)
        return b"".join(pieces)


async def _off_loop(size: int, work: Callable[..., Any], *arguments: Any) -> Any:
    return await asyncio.to_thread(work, *arguments) if size >= _LARGE else work(*arguments)


async def _pieces(request: Request) -> AsyncIterator[bytes]:
    stream = request.stream()
    while True:
        try:
            async with asyncio.timeout(_PATIENCE):
                piece = await anext(stream)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise RequestError(f"nothing more of the body came for {_PATIENCE:g} seconds") from None
        except ClientDisconnect:
            raise ClientGoneError("the client went before its request was whole") from None
        yield piece


async def _decompressed(request: Request, limit: int) -> AsyncIterator[bytes]:
    """The body's pieces; no piece is much longer than ``limit``, however well it was compressed."""
    encoding = request.headers.get("content-encoding", "identity").lower()
    if encoding == "identity":
        async for piece in _pieces(request):
            yield piece
        return
    if encoding not in ("gzip", "deflate"):
        raise HTTPException(415, f"content-encoding {encoding!r:.40} is not taken; gzip and deflate are")
    inflater = zlib.decompressobj(zlib.MAX_WBITS | 32)  # finds out which of the two it is
    try:
        async for piece in _pieces(request):
            yield inflater.decompress(piece, limit + 1)
        if not inflater.eof or inflater.unused_data:
            raise RequestError(f"the body is not whole in {encoding}")
    except zlib.error as error:
        raise RequestError(f"the body is no {encoding}: {error}") from error


def create_app(service: Service, max_body: int) -> FastAPI:
    """The application that answers over HTTP."""
    app = FastAPI(title="bnfold", docs_url=None, redoc_url=None, openapi_url=None)
    endpoints = Endpoints(service, max_body)
    for path, handler, method in (
        ("/v2", endpoints.metadata, "GET"),
        ("/v2/health/live", endpoints.live, "GET"),
        ("/v2/health/ready", endpoints.ready, "GET"),
        ("/v2/models", endpoints.models, "GET"),
        ("/v2/models/{model_name}", endpoints.model_metadata, "GET"),
        ("/v2/models/{model_name}/versions/{model_version}", endpoints.model_metadata, "GET"),
        ("/v2/models/{model_name}/ready", endpoints.model_ready, "GET"),
        ("/v2/models/{model_name}/versions/{model_version}/ready", endpoints.model_ready, "GET"),
        ("/v2/repository/index", endpoints.index, "POST"),
    ):
        app.add_api_route(path, handler, methods=[method], response_model=None)

    async def infer(request: Request) -> Response:
        return await endpoints.infer(request, **request.path_params)

    # Not add_api_route: FastAPI's search for parameters takes a quarter of the time of a small request.
    app.add_route("/v2/models/{model_name}/infer", infer, methods=["POST"])
    app.add_route("/v2/models/{model_name}/versions/{model_version}/infer", infer, methods=["POST"])

    @app.get("/metrics")
    async def metrics(request: Request) -> Response:
        encode, media_type = exposition.choose_encoder(request.headers.get("accept", ""))
        return Response(encode(service.metrics.registry), headers={"content-type": media_type})

    for kind in _STATUS:
        app.add_exception_handler(kind, _failed)
    app.add_exception_handler(HTTPException, _refused)
    app.add_exception_handler(Exception, _broken)
    if _ACCESS.isEnabledFor(logging.INFO):
        app.middleware("http")(_log_access)
    return app


def _json(content: Any, status: int = 200) -> Response:
    return Response(orjson.dumps(content), status, media_type="application/json")


async def _failed(_request: Request, error: Exception) -> Response:
    status = next(status for kind, status in _STATUS.items() if isinstance(error, kind))
    if status == 500:
        _LOG.error("%s", error)
    response = _json({"error": str(error)}, status)
    if status == 413:
        response.headers["connection"] = "close"  # what is left of the body is not read
    return response


async def _refused(_request: Request, error: HTTPException) -> Response:
    return _json({"error": str(error.detail)}, error.status_code)


async def _broken(_request: Request, error: Exception) -> Response:
    _LOG.error("a request failed", exc_info=error)
    return _json({"error": "the server failed; its log says more"}, 500)


async def _log_access(request: Request, call_next: Handler) -> Response:
    started = time.perf_counter()
    response = await call_next(request)
    where = request.client.host if request.client else "?"
    milliseconds = (time.perf_counter() - started) * 1e3
    _ACCESS.info("%s %s %r %d %.1f ms", where, request.method, request.url.path, response.status_code, milliseconds)
    return response
