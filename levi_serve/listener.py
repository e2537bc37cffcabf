"""The address that a server listens on."""

from __future__ import annotations

import socket
from contextlib import suppress

from levi_serve.bundle.commands import RunError

BACKLOG = 2048


def bind(host: str, port: int, share: bool = False) -> socket.socket:
    """A socket with this address, which does not listen yet; port 0 takes a free one. `share` lets sockets of several
    processes of one user listen on it at a time.

    Raises:
        RunError: the address cannot be had.

    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if share:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise _unavailable(host, port, error) from None
    return listener


def listen(listener: socket.socket) -> None:
    """Let clients connect; they wait until they are accepted.

    Raises:
        RunError: another process listens on this address.

    """
    try:
        listener.listen(BACKLOG)
    except OSError as error:
        host, port = listener.getsockname()[:2]
        raise _unavailable(host, port, error) from None


def stop_listening(listener: socket.socket) -> list[socket.socket]:
    """Refuse new clients, and return those that have connected and wait: the kernel would reset their lines.

    The shutdown works at once and on every copy of the socket. A mere close leaves the event loop's copy listening
    until its next turn, and whoever connects meanwhile is reset.
    """
    listener.setblocking(False)
    waiting = []
    with suppress(BlockingIOError):
        while True:
            waiting.append(listener.accept()[0])
    listener.shutdown(socket.SHUT_RDWR)
    return waiting


def url(listener: socket.socket) -> str:
    """How it is reached."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if listener.family == socket.AF_INET6 else f"http://{host}:{port}"


def _unavailable(host: str, port: int, error: OSError) -> RunError:
    return RunError(f"cannot listen on {host}:{port}: {error.strerror or error}")
