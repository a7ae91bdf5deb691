"""Take the ports before anything slow is done."""

from __future__ import annotations

import errno
import socket

from grpc import aio

from bnfold.errors import SetupError


def resolve(host: str) -> str:
    """The address of ``host``, an IPv4 one if it has both.

    Raises:
        SetupError: it has none.
    """
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise SetupError(f"--host {host}: this machine knows no such address; 127.0.0.1 is itself") from error
    return str(min(found, key=lambda entry: entry[0] != socket.AF_INET)[4][0])


def bind_http(address: str, port: int) -> socket.socket:
    """A socket that holds the port of HTTP.

    Raises:
        SetupError: the port is in use or may not be taken.
    """
    return _bind("HTTP", "--http-port", address, port)


def _bind(what: str, option: str, address: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        # Without it, the port of a server that has just ended would stay taken for a minute.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, port))
        listener.listen(128)  # two that are bound and do not listen may share a port
    except OSError as error:
        listener.close()
        raise _refused(what, option, address, port, error) from error
    return listener


def bind_grpc(server: aio.Server, address: str, port: int) -> int:
    """Make a gRPC server listen; return its port.

    Raises:
        SetupError: the port is in use or may not be taken.
    """
    # gRPC says only that it failed; a socket of our own says why.
    if port:
        _bind("gRPC", "--grpc-port", address, port).close()
    try:
        return int(server.add_insecure_port(written(address, port)))
    except RuntimeError as error:
        raise _refused("gRPC", "--grpc-port", address, port, OSError(errno.EADDRINUSE, "in use")) from error


def written(address: str, port: int) -> str:
    """Address and port as they are written in a URL."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _refused(what: str, option: str, address: str, port: int, error: OSError) -> SetupError:
    if error.errno == errno.EADDRINUSE:
        return SetupError(
            f"port {port} on {address}, which {what} is to be served on, is in use; stop what uses it, or give another "
            f"with {option}"
        )
    if error.errno == errno.EACCES:
        return SetupError(f"port {port} on {address} needs privileges; give one from 1024 on with {option}")
    return SetupError(f"{what} cannot be served on port {port} of {address}: {error.strerror or error}")
