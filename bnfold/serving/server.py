"""The life of a server: take ports, load, be ready, stop in order."""

from __future__ import annotations

import asyncio
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

import uvicorn
import uvloop

from bnfold.files import StrPath
from bnfold.serving.following import Fleet
from bnfold.serving.metrics import Metrics
from bnfold.serving.options import ServeOptions
from bnfold.serving.ports import bind_grpc, bind_http, resolve, written
from bnfold.serving.rest import create_app
from bnfold.serving.rpc import create_server
from bnfold.serving.run import Announcement
from bnfold.serving.service import Service

#: Seconds that a connection may be idle: longer than clients and proxies keep theirs, as KServe has it.
_KEEP_ALIVE = 65

#: Seconds that connections are given to close at least.
_CLOSING = 1


class _Http(uvicorn.Server):
    """uvicorn, which leaves signals to whoever runs it."""

    def capture_signals(self) -> nullcontext[None]:
        """Capture none."""
        return nullcontext()


def run(repository: StrPath, options: ServeOptions, announce: Callable[[Announcement], None]) -> int:
    """See :func:`bnfold.serving.serve`."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_serve(Path(repository), options, announce))


async def _serve(repository: Path, options: ServeOptions, announce: Callable[[Announcement], None]) -> int:
    service = Service(Metrics(), options.max_requests)
    address = resolve(options.host)
    listener = bind_http(address, options.http_port)
    rpc = create_server(service, options)
    grpc_port = bind_grpc(rpc, address, options.grpc_port)
    http_port = listener.getsockname()[1]
    http = _Http(_http_config(service, options))
    fleet = Fleet(repository, options, service)

    def ready() -> None:
        addresses = written(address, http_port), written(address, grpc_port)
        announce(Announcement(*addresses, fleet.models, fleet.warnings))

    with _stop_signal() as stop:
        answering = asyncio.create_task(http.serve([listener]))
        await rpc.start()
        working = asyncio.create_task(_work(fleet, options, ready))
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait({stopping, working}, return_when=asyncio.FIRST_COMPLETED)
        deadline = time.monotonic() + options.drain
        service.stop()
        left = 0 if working.done() else await service.finish(options.drain)
        for task in (stopping, working):
            task.cancel()
        # What has been answered may be on its way to a slow client still.
        rest = _CLOSING if left else max(_CLOSING, math.ceil(deadline - time.monotonic()))
        http.config.timeout_graceful_shutdown = rest
        http.should_exit = True
        await asyncio.gather(fleet.close(), rpc.stop(rest), answering)
        if working.done() and not working.cancelled():
            working.result()  # it ends by itself only if it fails
        return left


async def _work(fleet: Fleet, options: ServeOptions, ready: Callable[[], None]) -> None:
    await fleet.load()
    fleet.service.open()
    ready()
    while True:
        await asyncio.sleep(options.watch or 3600)
        if options.watch:
            await fleet.refresh()


def _http_config(service: Service, options: ServeOptions) -> uvicorn.Config:
    return uvicorn.Config(
        create_app(service, options.max_body),
        http="h11",  # it bounds the size of headers, which httptools does not
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE,
    )


@contextmanager
def _stop_signal() -> Iterator[asyncio.Event]:
    """An event that SIGTERM and SIGINT set; the second one ends the process at once."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()

    def stop_or_end(number: signal.Signals) -> None:
        if stop.is_set():
            with suppress(OSError, ValueError):
                sys.stdout.flush()
            os._exit(128 + number)  # sessions may be running in threads that nothing can end
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop_or_end, number)
    try:
        yield stop
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
