"""How a repository is served."""

from __future__ import annotations

from dataclasses import dataclass

from bnfold.errors import OptionError


@dataclass(frozen=True)
class ServeOptions:
    """How a repository is served.

    Attributes:
        host: address to bind to; the default is reached from this machine only.
        http_port: TCP port of HTTP; 0 takes a free one.
        grpc_port: TCP port of gRPC; 0 takes a free one.
        provider: ``cpu``, ``cuda`` or ``tensorrt`` in place of what each model was deployed for; empty for that.
        ort_format: load ONNX Runtime's own format, which is made for one type of machine and an error on another.
        max_body: bytes of one request, once decompressed; larger ones are refused.
        max_requests: requests at once, those that wait in a queue included; more are refused.
        drain: seconds that requests in flight are given to finish when the server is asked to stop.
        watch: seconds between two looks for new versions in the repository; 0 never looks again.
    """

    host: str = "127.0.0.1"
    http_port: int = 8000
    grpc_port: int = 8001
    provider: str = ""
    ort_format: bool = False
    max_body: int = 64 << 20
    max_requests: int = 512
    drain: float = 30.0
    watch: float = 0.0

    def __post_init__(self) -> None:
        for name in ("http_port", "grpc_port"):
            if not 0 <= getattr(self, name) <= 65535:
                raise OptionError(f"{name} is {getattr(self, name)}; a port lies between 0 and 65535")
        if self.http_port and self.http_port == self.grpc_port:
            raise OptionError(f"HTTP and gRPC cannot share the port {self.http_port}; give two")
        for name in ("max_body", "max_requests"):
            if getattr(self, name) < 1:
                raise OptionError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("drain", "watch"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise OptionError(f"{name} is {getattr(self, name)}; it must be a number of seconds, 0 or more")
