"""A real HTTP server on the loopback interface whose answers a test decides; it runs in a thread."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = tuple[int, bytes]
Answerer = Callable[[dict[str, Any], int], Reply]  # the request and its number -> status and body


def events(*values: object, done: bool = True) -> bytes:
    """Server-sent events."""
    lines = [f"data: {json.dumps(v)}\n\n" for v in values] + (["data: [DONE]\n\n"] if done else [])
    return "".join(lines).encode()


def streamed(request: dict[str, Any], number: int = 0) -> Reply:
    """As many tokens as were asked for, and their counts."""
    asked = request["max_tokens"]
    prompt = request.get("prompt") or request["messages"][0]["content"]
    used = len(prompt) if isinstance(prompt, list) else len(prompt.split())
    pieces = [{"choices": [{"text": f" {i}", "finish_reason": "length" if i == asked - 1 else None}]} for i in range(asked)]
    usage = {"prompt_tokens": used, "completion_tokens": asked}
    return 200, events(*pieces, {"choices": [], "usage": usage})


@contextmanager
def fake_server(
    answer: Answerer = streamed, *, models: object = "demo", tokenize: bool = True, delay_s: float = 0.0
) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The URL of a server, and the requests that it has seen."""
    seen: list[dict[str, Any]] = []
    listed = {"object": "list", "data": [{"id": models}]} if isinstance(models, str) else models

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._send(200, json.dumps(listed).encode())

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.path == "/tokenize":
                ids = [sum(word.encode()) % 997 for word in request["prompt"].split()]
                self._send(*((200, json.dumps({"tokens": ids}).encode()) if tokenize else (404, b"{}")))
                return
            seen.append({**request, "path": self.path, "authorization": self.headers["Authorization"]})
            time.sleep(delay_s)
            self._send(*answer(request, len(seen) - 1))

        def _send(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", seen
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
