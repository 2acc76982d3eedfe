"""The socket that a server listens on: taken before anything is loaded, so that a port in use shows at once."""

from __future__ import annotations

import socket

from maskpro_deploy.errors import InputError

_BACKLOG = 2048  # connections that wait to be taken


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; an InputError if the address is not this machine's, or the port is in use."""
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except OSError as e:
        raise InputError(f"--host {host} is not an address of this machine: {e.strerror}.") from e
    listener = socket.socket(family, kind, proto)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)  # binding alone does not show a port that another server has just bound
    except OSError as e:
        listener.close()
        raise InputError(f"cannot listen on {host} port {port}: {e.strerror}. Choose another --port; 0 takes a free one.") from e
    return listener


def base_url(listener: socket.socket, scheme: str = "http") -> str:
    """The URL at which a listening socket is reached from this machine."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
