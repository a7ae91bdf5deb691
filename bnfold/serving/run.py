"""Start to serve, without importing what only a running server needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bnfold.extras import require
from bnfold.files import StrPath
from bnfold.serving.options import ServeOptions


@dataclass(frozen=True)
class Announcement:
    """What a server tells once it is ready.

    Attributes:
        http: address of HTTP, such as ``127.0.0.1:8000``.
        grpc: address of gRPC.
        models: each model with its version and the provider that it runs on.
        warnings: what of the repository is not served, and what is served unchecked.
    """

    http: str
    grpc: str
    models: tuple[tuple[str, int, str], ...]
    warnings: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dict."""
        models = [{"name": name, "version": version, "provider": provider} for name, version, provider in self.models]
        return {"http": self.http, "grpc": self.grpc, "models": models, "warnings": list(self.warnings)}


def serve(repository: StrPath, options: ServeOptions | None, announce: Callable[[Announcement], None]) -> int:
    """Serve a repository until SIGTERM or SIGINT comes; a second one ends the process at once.

    Both ports are bound before any model is loaded, and liveness is answered from then on. Readiness is not until each
    model has given what its golden file says.

    Args:
        repository: a folder that :func:`bnfold.deploy` wrote.
        options: see :class:`ServeOptions`.
        announce: called once, when the server is ready.

    Returns:
        How many requests were cut off, because they took longer than ``options.drain`` after the signal.

    Raises:
        MissingExtraError: KServe is not installed.
        RepositoryError: the repository cannot be served.
        ProviderError: a provider does not run here.
        ModelError: ONNX Runtime does not load a model, or it does not give what its golden file says.
        SetupError: a port is in use, or the address is none of this machine.
    """
    require("kserve", "serve")
    from bnfold.serving.server import run

    return run(repository, options or ServeOptions(), announce)
