"""Clients that are slow or vast: every wait has an end, and every header a size."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import pytest

from maskpro_deploy.runtime import RuntimeConfig
from maskpro_deploy.runtime.http.config import ServeConfig
from maskpro_deploy.runtime.http.lifecycle import running_server

CPU = RuntimeConfig(provider="cpu", threads=1, max_num_seqs=4)
WAIT_S = 0.3


@pytest.fixture(scope="module")
def url(sparse_bundle: Path) -> Iterator[str]:
    config = ServeConfig(
        port=0, runtime=CPU, header_timeout_s=WAIT_S, body_timeout_s=WAIT_S, max_connections=20, max_tokens_limit=5,
        default_max_tokens=3,
    )  # fmt: skip
    with running_server(sparse_bundle, config) as served:
        yield served


def connect(url: str) -> socket.socket:
    place = urlsplit(url)
    assert place.hostname is not None
    return socket.create_connection((place.hostname, place.port or 0), timeout=10)


def read_to_end(client: socket.socket) -> bytes:
    received = b""
    while piece := client.recv(4096):
        received += piece
    return received


def read_error(client: socket.socket) -> tuple[int, str]:
    """Status and code of the answer that ends a connection."""
    head, _, body = read_to_end(client).partition(b"\r\n\r\n")
    error = json.loads(body)["error"]
    assert f"content-length: {len(body)}".encode() in head
    assert error["message"]
    return int(head.split()[1]), error["code"]


@pytest.mark.parametrize("start", [b"", b"GET /live HTTP/1.1\r\n", b"GET /live HTTP/1.1\r\nHost: x\r\nX-Slow: "])
def test_a_request_that_never_comes_is_ended(url: str, start: bytes) -> None:
    started = time.monotonic()
    with connect(url) as client:
        client.sendall(start)
        assert read_error(client) == (408, "request_timeout")
        assert WAIT_S <= time.monotonic() - started < 20 * WAIT_S


def test_one_that_drips_is_ended_too(url: str) -> None:
    def drip(client: socket.socket) -> None:
        client.sendall(b"GET /live HTTP/1.1\r\n")
        for i in range(200):
            client.sendall(b"X-%d: y\r\n" % i)
            time.sleep(WAIT_S / 10)

    with connect(url) as client, pytest.raises(ConnectionError):
        drip(client)


def test_a_connection_may_ask_again_after_a_pause_and_is_ended_when_it_breaks_off(url: str) -> None:
    with connect(url) as client:
        ask = b"GET /live HTTP/1.1\r\nHost: x\r\n\r\n"
        for _ in range(2):
            client.sendall(ask)
            received = b""
            while not received.endswith(b"}"):
                received += client.recv(4096)
            assert received.startswith(b"HTTP/1.1 200")
            time.sleep(2 * WAIT_S)
        client.sendall(ask[:10])
        assert read_error(client) == (408, "request_timeout")


def test_vast_headers_are_refused(url: str) -> None:
    with connect(url) as client:
        try:
            client.sendall(b"GET /live HTTP/1.1\r\nX-Vast: " + b"y" * 200_000)
            error = read_error(client)
        except ConnectionError:
            return  # it was ended before all was sent
        assert error in ((431, "headers_too_large"), (400, "invalid_http"))


@pytest.mark.parametrize("nonsense", [b"\x16\x03\x01 x\r\n\r\n", b"GET\r\n\r\n", b"GET /live HTTP/1.1\r\nno colon\r\n\r\n"])
def test_what_is_no_request_gets_an_error_like_all_others(url: str, nonsense: bytes) -> None:
    with connect(url) as client:
        client.sendall(nonsense)
        assert read_error(client) == (400, "invalid_http")


def test_a_body_that_never_comes_is_answered(url: str) -> None:
    with connect(url) as client:
        client.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        assert client.recv(4096).startswith(b"HTTP/1.1 408")


def test_a_body_that_says_it_is_too_long_is_not_waited_for(url: str) -> None:
    with connect(url) as client:
        client.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n")
        assert client.recv(4096).startswith(b"HTTP/1.1 413")


def test_a_crowd_of_connections_leaves_the_server_alive(url: str) -> None:
    crowd = [connect(url) for _ in range(40)]
    probe, other = (httpx2.get(f"{url}/{path}", timeout=WAIT_S * 20) for path in ("live", "v1/models"))
    assert probe.status_code == 200
    assert (other.status_code, other.json()["error"]["code"]) == (503, "server_overloaded")
    assert int(other.headers["Retry-After"]) >= 1
    time.sleep(2 * WAIT_S)
    assert httpx2.get(f"{url}/live").status_code == 200
    for client in crowd:
        client.close()


@pytest.mark.parametrize(
    ("path", "body", "tokens"),
    [
        ("completions", {"prompt": "x", "max_tokens": 50, "ignore_eos": True}, 5),
        ("chat/completions", {"messages": [{"role": "user", "content": "x"}], "ignore_eos": True}, 3),
        ("chat/completions", {"messages": [{"role": "user", "content": "x"}], "ignore_eos": True, "max_tokens": 4}, 4),
    ],
)
def test_answers_are_as_long_as_the_operator_allows(url: str, path: str, body: dict[str, object], tokens: int) -> None:
    answer = httpx2.post(f"{url}/v1/{path}", json=body).json()
    assert answer["usage"]["completion_tokens"] == tokens
    assert answer["choices"][0]["finish_reason"] == "length"


def test_nobody_is_sent_to_another_host(url: str) -> None:
    answer = httpx2.get(f"{url}/live/", headers={"Host": "elsewhere.example"}, follow_redirects=False)
    assert answer.status_code == 404
    assert "location" not in answer.headers
