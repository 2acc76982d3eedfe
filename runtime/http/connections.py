"""Connections that do not wait for ever: a request's headers have to arrive within a time and a size.

uvicorn closes connections that idle between two requests, but not those that never send a whole one; a few hundred of them would
use up the server's sockets. What is no request at all is answered here too, in the shape of every other error.
"""

from __future__ import annotations

import asyncio
import json
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

from maskpro_deploy.runtime.http.api.errors import ApiError

_MOST_HEADER_BYTES = 1 << 16


def _on_the_wire(error: ApiError) -> bytes:
    body = json.dumps(error.body()).encode()
    head = f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(body)}\r\nconnection: close\r\n\r\n".encode() + body


_KIND = "invalid_request_error"
_TOO_LARGE = _on_the_wire(ApiError(431, f"the headers hold more than {_MOST_HEADER_BYTES:,} bytes.", _KIND, "headers_too_large"))
_TOO_SLOW = _on_the_wire(ApiError(408, "the headers did not arrive in time.", _KIND, "request_timeout"))
_NO_REQUEST = _on_the_wire(ApiError(400, "this is not an HTTP/1.1 request.", _KIND, "invalid_http"))


def protocol_with_deadline(header_timeout_s: float) -> type[asyncio.Protocol]:
    """The protocol of uvicorn, which gives a request's headers so much time, from the connection or their first byte."""

    class DeadlineProtocol(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self._deadline: asyncio.TimerHandle | None = None
            self._header_bytes = 0

        @property
        def _answering(self) -> bool:
            """Whether a request's headers are there and its answer is not."""
            return self.cycle is not None and not self.cycle.response_complete

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._wait()

        def data_received(self, data: bytes) -> None:
            before = self.cycle
            super().data_received(data)
            if self._answering or self.cycle is not before:
                self._stop_waiting()
                return
            self._header_bytes += len(data)
            if self._header_bytes > _MOST_HEADER_BYTES:
                self._end(_TOO_LARGE)
            elif self._deadline is None:
                self._wait()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_waiting()
            super().connection_lost(exc)

        def send_400_response(self, msg: str) -> None:
            self._end(_NO_REQUEST)

        def _wait(self) -> None:
            self._deadline = asyncio.get_running_loop().call_later(header_timeout_s, self._end, _TOO_SLOW)

        def _stop_waiting(self) -> None:
            self._header_bytes = 0
            if self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None

        def _end(self, answer: bytes) -> None:
            self._stop_waiting()
            if not self.transport.is_closing():
                self.transport.write(answer)
                self.transport.close()

    return DeadlineProtocol
