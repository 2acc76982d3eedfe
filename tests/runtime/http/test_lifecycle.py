"""The server's life: the port, the loading, the signals, the end."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest
from gated_session import GatedSession

from maskpro_deploy.errors import ConfigError, InputError
from maskpro_deploy.runtime import RuntimeConfig, TextGenerator
from maskpro_deploy.runtime.generate.tokenizer import TextTokenizer
from maskpro_deploy.runtime.http import lifecycle
from maskpro_deploy.runtime.http.config import ServeConfig
from maskpro_deploy.runtime.http.lifecycle import running_server, serve
from maskpro_deploy.runtime.http.listening import listen

CPU = RuntimeConfig(provider="cpu", threads=1)
LONG = {"prompt": [1], "max_tokens": 200, "ignore_eos": True, "stream": True}


def test_a_port_in_use_shows_before_the_model_is_loaded(
    tmp_path: Path, sparse_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifecycle, "load", lambda *_: pytest.fail("loaded"))
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(InputError, match=rf"port {port}: Address already in use.*--port"):
            serve(sparse_bundle, ServeConfig(port=port))


def test_what_is_no_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a bundle"):
        serve(tmp_path, ServeConfig(port=0))
    with pytest.raises(InputError, match="not a bundle"), running_server(tmp_path):
        pass


def test_settings_out_of_range_are_named() -> None:
    for flag, config in [
        ("--port", {"port": 70000}),
        ("--shutdown-timeout", {"shutdown_timeout_s": -1.0}),
        ("--api-key", {"api_key": " "}),
    ]:
        with pytest.raises(ConfigError, match=flag):
            ServeConfig(**config)  # type: ignore[arg-type]


def test_while_loading_the_server_says_so(sparse_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, proceed = lifecycle.load, threading.Event()

    def slow(*args: Any) -> TextGenerator:
        assert proceed.wait(30)
        return real(*args)

    monkeypatch.setattr(lifecycle, "load", slow)
    with listen("127.0.0.1", 0) as probe:
        port = probe.getsockname()[1]
    seen: dict[str, int] = {}

    def ask() -> None:
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}", transport=httpx2.HTTPTransport(retries=10)) as http:
            seen["health"] = http.get("/health").status_code
            seen["live"] = http.get("/live").status_code
            seen["models"] = http.get("/v1/models").status_code
            seen["completions"] = http.post("/v1/completions", json={"prompt": "x"}).status_code
        proceed.set()

    asking = threading.Thread(target=ask)
    asking.start()
    with running_server(sparse_bundle, ServeConfig(port=port, runtime=CPU)) as url:
        asking.join()
        assert seen == {"health": 503, "live": 200, "models": 503, "completions": 503}
        assert httpx2.get(f"{url}/health").status_code == 200


def test_what_goes_wrong_while_loading_comes_out(sparse_bundle: Path) -> None:
    config = ServeConfig(port=0, runtime=RuntimeConfig(provider="cpu", max_model_len=10_000))
    with pytest.raises(ConfigError, match="--max-model-len"):
        serve(sparse_bundle, config)
    with pytest.raises(ConfigError, match="--max-model-len"), running_server(sparse_bundle, config):
        pass


def serve_slowly(
    bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
    gated: GatedSession,
    tokenizer: TextTokenizer,
    timeout_s: float,
    meanwhile: Callable[[str], None],
) -> tuple[bool, str]:
    """Serve a model that takes its time; `meanwhile` runs once a stream has begun. Returns the outcome and the stream's text."""
    monkeypatch.setattr(lifecycle, "load", lambda *_: TextGenerator(gated, tokenizer))
    text: list[str] = []
    threads: list[threading.Thread] = []

    def client(url: str) -> None:
        with httpx2.Client(base_url=url, timeout=30) as http, http.stream("POST", "/v1/completions", json=LONG) as response:
            lines = response.iter_lines()
            text.append(next(lines))
            meanwhile(url)
            text.extend(lines)

    def ready(url: str, name: str) -> None:
        gated.trickle(0.002)
        threads.append(threading.Thread(target=client, args=(url,)))
        threads[0].start()

    clean = serve(bundle, ServeConfig(port=0, shutdown_timeout_s=timeout_s), ready)
    threads[0].join()
    return clean, "\n".join(text)


def stop(times: int = 1) -> Callable[[str], None]:
    def send(url: str) -> None:
        for _ in range(times):
            os.kill(os.getpid(), signal.SIGTERM)

    return send


def test_a_signal_lets_running_answers_finish(
    sparse_bundle: Path, monkeypatch: pytest.MonkeyPatch, gated: GatedSession, text_tokenizer: TextTokenizer
) -> None:
    refused: list[int] = []

    def meanwhile(url: str) -> None:
        stop()(url)
        while not refused or refused[-1] == 200:
            refused.append(httpx2.get(f"{url}/health").status_code)
        refused.append(httpx2.post(f"{url}/v1/completions", json={"prompt": "x"}).status_code)

    before = signal.getsignal(signal.SIGTERM)
    clean, text = serve_slowly(sparse_bundle, monkeypatch, gated, text_tokenizer, 30, meanwhile)
    assert clean
    assert text.count("data: {") == 200
    assert "[DONE]" in text
    assert refused[-2:] == [503, 503]
    assert signal.getsignal(signal.SIGTERM) is before


def test_when_time_is_up_clients_are_told(
    sparse_bundle: Path, monkeypatch: pytest.MonkeyPatch, gated: GatedSession, text_tokenizer: TextTokenizer
) -> None:
    clean, text = serve_slowly(sparse_bundle, monkeypatch, gated, text_tokenizer, 0.02, stop())
    assert not clean
    assert "shutting down" in text
    assert "[DONE]" not in text


def test_a_second_signal_does_not_wait(
    sparse_bundle: Path, monkeypatch: pytest.MonkeyPatch, gated: GatedSession, text_tokenizer: TextTokenizer
) -> None:
    clean, text = serve_slowly(
        sparse_bundle, monkeypatch, gated, text_tokenizer, 3600, lambda url: (stop()(url), _pause(), stop()(url))
    )
    assert not clean
    assert "shutting down" in text


def _pause() -> None:
    """Python joins equal signals that come at once."""
    threading.Event().wait(0.05)


def test_a_signal_while_loading_stops_at_once(sparse_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forever = threading.Event()

    def never(*_: Any) -> TextGenerator:
        stop()("")
        forever.wait(30)
        raise AssertionError("nobody waits for this")

    monkeypatch.setattr(lifecycle, "load", never)
    assert serve(sparse_bundle, ServeConfig(port=0))
    forever.set()
