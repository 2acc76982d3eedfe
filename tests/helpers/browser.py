"""A headless Chromium for the tests of pages, and a connection that can be cut."""

from __future__ import annotations

import shutil
import socket
import threading
from contextlib import suppress
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from playwright.sync_api import Page

_PROGRAMS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")


def find_chromium() -> str | None:
    """The path of an installed Chromium; None if there is none."""
    return next((path for name in _PROGRAMS if (path := shutil.which(name)) is not None), None)


class Watch:
    """What a page says on its console, and where its requests go, from now on."""

    def __init__(self, page: Page) -> None:
        self.complaints: list[str] = []
        self.hosts: set[str] = set()
        page.on("console", lambda message: self.complaints.append(message.text) if message.type != "log" else None)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", lambda request: self.hosts.add(urlsplit(request.url).netloc))

    def expect(self, words: str) -> None:
        """Take away complaints with these words; there has to be one."""
        kept = [text for text in self.complaints if words not in text]
        assert len(kept) < len(self.complaints), self.complaints
        self.complaints = kept


class CutProxy:
    """A port that passes everything on to a server, until its connections are cut."""

    def __init__(self, url: str) -> None:
        self._target = (urlsplit(url).hostname or "", urlsplit(url).port or 0)
        self._open: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._start(self._accept)

    def cut(self) -> None:
        """End all connections, in the middle of whatever they carry, and take no more."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for end in self._open:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._target)
                self._open += [client, server]
                self._start(lambda a=client, b=server: self._pass_on(a, b))
                self._start(lambda a=server, b=client: self._pass_on(a, b))

    @staticmethod
    def _pass_on(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                target.sendall(data)
        with suppress(OSError):
            target.shutdown(socket.SHUT_WR)

    @staticmethod
    def _start(work: object) -> None:
        assert callable(work)
        threading.Thread(target=work, daemon=True).start()
