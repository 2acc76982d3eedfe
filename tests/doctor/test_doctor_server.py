"""`doctor URL`: what is said of real servers - good ones, guarded ones, those behind a proxy that buffers, and strangers."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from certificates import Authority
from click.testing import CliRunner, Result
from fake_server import fake_server, streamed
from gated_session import GatedSession

from maskpro_deploy.commands.doctor import command
from maskpro_deploy.doctor.http_client import HttpClient
from maskpro_deploy.doctor.server import Check, examine_server
from maskpro_deploy.errors import CheckFailed, ConfigError, InputError
from maskpro_deploy.runtime import RuntimeConfig, SessionConfig, TextGenerator, open_session
from maskpro_deploy.runtime.generate.tokenizer import TextTokenizer
from maskpro_deploy.runtime.http import lifecycle
from maskpro_deploy.runtime.http.config import ServeConfig
from maskpro_deploy.runtime.http.lifecycle import running_server
from maskpro_deploy.runtime.http.listening import listen
from maskpro_deploy.runtime.http.tls import Tls

KEY = "a long secret"


def look(url: str, model: str | None = None, **client: Any) -> dict[str, Check]:
    found = examine_server(HttpClient(url, timeout_s=20, **client), model)
    assert all(check.advice for check in found if check.good is False)
    return {check.name: check for check in found}


def verdicts(found: dict[str, Check]) -> dict[str, bool | None]:
    return {name: check.good for name, check in found.items()}


@pytest.fixture
def slow(sparse_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny bundle, whose model takes its time when it is served."""
    session = open_session(sparse_bundle, SessionConfig(provider="cpu", threads=1))
    tokenizer = TextTokenizer.load(sparse_bundle, session.shape)

    def load(*_: object) -> TextGenerator:
        gated = GatedSession(session)
        gated.trickle(0.003)
        return TextGenerator(gated, tokenizer, RuntimeConfig(provider="cpu", threads=1))

    monkeypatch.setattr(lifecycle, "load", load)
    return sparse_bundle


GOOD = {
    "reachable": True, "TLS": None, "version": True, "ready": True, "key": True, "model": True, "limits": True, "clock": True,
    "completion": True, "first token": True, "streaming": True,
}  # fmt: skip


def test_a_good_server_is_good_with_and_without_the_path_of_the_api(slow: Path) -> None:
    with running_server(slow, ServeConfig(port=0, served_model_name="mine")) as url:
        for address in (url, f"{url}/v1/"):
            found = look(address)
            assert verdicts(found) == GOOD
            assert found["model"].detail == "mine"
            assert "256 tokens" in found["limits"].detail
        assert look(url, "other")["model"].good is False


def test_the_key_and_the_certificate_are_looked_at(slow: Path, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    server = authority.issue("server")
    config = ServeConfig(port=0, api_key=KEY, tls=Tls(certfile=server.both))
    with running_server(slow, config) as url:
        right = look(url, key=KEY, ca_certs=authority.path)
        assert verdicts(right) == GOOD | {"TLS": True}
        assert right["key"].detail == "accepted, and needed"
        assert "days" in right["TLS"].detail
        wrong = look(url, key="another", ca_certs=authority.path)
        assert wrong["key"].good is wrong["model"].good is False
        assert "completion" not in wrong
        assert "MASKPRO_API_KEY" in wrong["key"].advice
        (stranger,) = look(url).values()
        assert (stranger.name, stranger.good) == ("TLS", False)
        assert "--ca-certs" in stranger.advice
        (plain,) = look(f"http{url.removeprefix('https')}").values()
        assert "https://" in plain.advice
        assert KEY not in repr((right, wrong))


@contextmanager
def handler_server(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_a_proxy_that_holds_pieces_back_is_found(slow: Path) -> None:
    with running_server(slow, ServeConfig(port=0)) as url:

        class Proxy(BaseHTTPRequestHandler):
            def _pass_on(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                inner = HTTPConnection(str(urlsplit(url).netloc))
                inner.request(self.command, self.path, body, dict(self.headers))
                answer = inner.getresponse()
                whole = answer.read()
                inner.close()
                self.send_response_only(answer.status)
                self.send_header("Date", answer.headers["Date"])
                self.end_headers()
                self.wfile.write(whole)

            do_GET = do_POST = _pass_on

            def log_message(self, *_: object) -> None:
                pass

        with handler_server(Proxy) as proxy:
            found = look(proxy)
    assert verdicts(found) == GOOD | {"streaming": False}
    assert "buffering" in found["streaming"].advice


def test_a_server_that_loads_is_reached_and_not_ready(slow: Path) -> None:
    """Its loading is held up until it was looked at."""
    proceed, port = threading.Event(), 0
    real, found = lifecycle.load, []

    def waiting(*arguments: Any) -> TextGenerator:
        assert proceed.wait(30)
        return real(*arguments)

    with listen("127.0.0.1", 0) as probe:
        port = probe.getsockname()[1]

    def work() -> None:
        for _ in range(600):
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except OSError:
                time.sleep(0.05)
        found.append(look(f"http://127.0.0.1:{port}"))
        proceed.set()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lifecycle, "load", waiting)
        asking = threading.Thread(target=work)
        asking.start()
        with running_server(slow, ServeConfig(port=port)):
            asking.join()
    assert (found[0]["reachable"].good, found[0]["ready"].good, found[0]["model"].good) == (True, False, False)
    assert "loading" in found[0]["ready"].detail


def test_a_strangers_server_is_looked_at_as_far_as_it_goes() -> None:
    def answer(request: dict[str, Any], number: int) -> tuple[int, bytes]:
        if request.get("stream"):
            return streamed(request)
        return 200, json.dumps({"choices": [{"text": " four", "finish_reason": "length"}]}).encode()

    with fake_server(answer) as (url, seen):
        found = look(url)
    assert found["version"].good is None
    assert found["limits"].good is None
    assert found["completion"].good
    assert found["streaming"].good is None  # its pieces come at once, too fast to tell
    assert {request["max_tokens"] for request in seen} >= {4, 32}


def test_a_clock_that_is_off_is_found() -> None:
    class Late(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps({"data": []}).encode()
            self.send_response_only(200)
            self.send_header("Date", formatdate(1_000_000_000, usegmt=True))
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with handler_server(Late) as url:
        found = look(url)
    assert found["clock"].good is False
    assert "behind" in found["clock"].detail
    assert found["model"].good is False


def test_what_does_not_answer_has_one_check() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        (mute,) = examine_server(HttpClient(address, timeout_s=0.2))
    assert (mute.name, mute.good, mute.detail) == ("reachable", False, "no answer within the time")
    (closed,) = examine_server(HttpClient(address, timeout_s=5))
    assert (closed.good, closed.detail) == (False, "Connection refused")


def run(*arguments: str, **env: str) -> Result:
    return CliRunner().invoke(command, arguments, env={"MASKPRO_API_KEY": None, **env})


def test_the_command_prints_the_checks_and_ends_with_their_code(slow: Path) -> None:
    with running_server(slow, ServeConfig(port=0, api_key=KEY)) as url:
        text, as_json = run(url, MASKPRO_API_KEY=KEY), run(url, "--json")
    assert text.exit_code == 0, text.output
    assert "  yes streaming: 32 pieces" in text.output
    assert isinstance(as_json.exception, CheckFailed)
    assert "key" in str(as_json.exception)
    value = json.loads(as_json.stdout)
    assert (value["url"], value["healthy"]) == (url, False)
    assert [check["name"] for check in value["checks"] if check["good"] is False] == ["key", "model"]


def test_wrong_input_is_named(tmp_path: Path) -> None:
    assert isinstance(run("ftp://host").exception, InputError)
    assert isinstance(run("http://host:port").exception, InputError)
    assert isinstance(run("http://127.0.0.1:1", "--api-key", "a\nb").exception, InputError)
    assert "--ca-certs" in str(run("https://127.0.0.1:1", "--ca-certs", str(tmp_path / "absent")).exception)
    refused = run("--model", "mine").exception
    assert isinstance(refused, ConfigError)
    assert "--model is for a server" in str(refused)
