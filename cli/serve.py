"""``bnfold serve``: answer requests over the Open Inference Protocol."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import click

from bnfold.cli.render import Output, common_options

if TYPE_CHECKING:
    from bnfold.serving import Announcement


@click.command("serve")
@click.argument("repository", type=click.Path())
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to bind to; 0.0.0.0 for all.")
@click.option("--http-port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 takes a free one.")
@click.option("--grpc-port", type=click.IntRange(0, 65535), default=8001, show_default=True, help="0 takes a free one.")
@click.option("--provider", type=click.Choice(["cpu", "cuda", "tensorrt"]),
              help="Run on this in place of what each model was deployed for.")  # fmt: skip
@click.option(
    "--ort-format", is_flag=True, help="Load the file that `bnfold deploy --ort-format` made for this machine."
)
@click.option("--max-body", type=click.IntRange(min=1), default=64 << 20, show_default=True,
              help="Bytes of one request.")  # fmt: skip
@click.option("--max-requests", type=click.IntRange(min=1), default=512, show_default=True,
              help="Requests at once; more are refused.")  # fmt: skip
@click.option("--drain", type=click.FloatRange(min=0), default=30.0, show_default=True,
              help="Seconds that requests in flight get to finish after SIGTERM or Ctrl-C.")  # fmt: skip
@click.option("--watch", type=click.FloatRange(min=0), default=0.0,
              help="Look for new versions every so many seconds.")  # fmt: skip
@click.option("--access-log", is_flag=True, help="Log a line for each request on stderr.")
@common_options
def command(
    output: Output,
    repository: str,
    host: str,
    http_port: int,
    grpc_port: int,
    provider: str | None,
    ort_format: bool,
    max_body: int,
    max_requests: int,
    drain: float,
    watch: float,
    access_log: bool,
) -> None:
    """Serve the models of REPOSITORY over the Open Inference Protocol v2, by HTTP and gRPC.

    REPOSITORY is what `bnfold deploy` wrote. Any client of the protocol works, such as tritonclient; /metrics is for
    Prometheus. With --json, one line on stdout tells addresses and models once the server is ready.
    """
    from bnfold.serving import ServeOptions, serve

    options = ServeOptions(
        host=host,
        http_port=http_port,
        grpc_port=grpc_port,
        provider=provider or "",
        ort_format=ort_format,
        max_body=max_body,
        max_requests=max_requests,
        drain=drain,
        watch=watch,
    )
    _log_to_stderr(output.quiet, access_log)

    def announce(announcement: Announcement) -> None:
        for warning in announcement.warnings:
            output.warn(warning)
        for name, version, target in announcement.models:
            output.say(f"{name} version {version} on {target}")
        output.say(f"Serving on http://{announcement.http} and grpc://{announcement.grpc}. Stop with Ctrl-C.")
        output.line(announcement.to_json())

    left = serve(repository, options, announce)
    if left:
        noun, verb = ("request", "was") if left == 1 else ("requests", "were")
        output.warn(f"{left} {noun} took longer than {drain:g} s and {verb} cut off")
        output.answer_no()
    else:
        output.say("Stopped; nothing was in flight any more.")


def _log_to_stderr(quiet: bool, access: bool) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    logger = logging.getLogger("bnfold.serve")
    logger.handlers = [handler]
    logger.propagate = False
    logger.setLevel(logging.ERROR if quiet else logging.INFO)
    logging.getLogger("bnfold.serve.access").setLevel(logging.INFO if access else logging.WARNING)
