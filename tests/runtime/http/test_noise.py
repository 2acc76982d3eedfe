"""What clients can make the server write: a few lines a minute, with a count of the rest."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import pytest

from maskpro_deploy.runtime import RuntimeConfig, TextGenerator
from maskpro_deploy.runtime.generate import generator as generator_module
from maskpro_deploy.runtime.generate.sampling_params import SamplingParams
from maskpro_deploy.runtime.http.config import ServeConfig
from maskpro_deploy.runtime.http.lifecycle import running_server
from maskpro_deploy.system.throttle import Throttle

TRIES = 40


def test_nonsense_on_the_wire_does_not_fill_the_log(sparse_bundle: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = ServeConfig(port=0, runtime=RuntimeConfig(provider="cpu", threads=1))
    with running_server(sparse_bundle, config) as url:
        place = urlsplit(url)
        for _ in range(TRIES):
            with socket.create_connection((place.hostname or "", place.port or 0), timeout=10) as client:
                client.sendall(b"\x16\x03\x01 nonsense\r\n\r\n")
                while client.recv(4096):
                    pass
        assert httpx2.get(f"{url}/health").status_code == 200
    lines = [line for line in caplog.messages if "Invalid HTTP request" in line]
    assert len(lines) == 6
    assert lines[-1].startswith(f"{TRIES - 5} warnings were left out: ")


def test_readers_that_are_gone_are_told_a_few_times(
    generator: TextGenerator, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The event loop of whoever asked is closed before the answer comes; the others go on."""
    loop = asyncio.new_event_loop()
    loop.close()
    logger = generator_module.log
    monkeypatch.setattr(logger, "filters", [Throttle()])  # other tests have used up their share of the one that is there
    for _ in range(TRIES):
        done: list[object] = []
        sink = lambda event: loop.call_soon_threadsafe(done.append, event)  # noqa: E731, B023
        generator.submit([[1]], SamplingParams(max_tokens=1), sink, limited=False)
    assert generator.generate([[1]], SamplingParams(max_tokens=2))[0].tokens
    lines = [line for line in caplog.messages if "has lost its reader" in line]
    assert len(lines) == 5
