"""Clients that vanish at any moment leave nothing: no slot, no waiting place, no tokens in the cache, no memory."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import pytest
from dirty_device import DirtyDevice, device_session
from real_socket import serving

from maskpro_deploy.backends.session import GraphSession
from maskpro_deploy.cache_forms import CACHE_FORMS
from maskpro_deploy.runtime import RuntimeConfig, TextGenerator
from maskpro_deploy.runtime.generate.tokenizer import TextTokenizer
from maskpro_deploy.runtime.http.routes import GeneratorSlot

CLIENTS = 1000
LIMIT = 150  # tokens, for sequences and prefixes together
SYSTEM = [7] * 20


@pytest.fixture(params=tuple(CACHE_FORMS))
def device(request: pytest.FixtureRequest, forms_bundle: Path) -> GraphSession:
    return device_session(forms_bundle, request.param)


@pytest.fixture
def generator(device: GraphSession, text_tokenizer: TextTokenizer) -> Iterator[TextGenerator]:
    config = RuntimeConfig(max_num_seqs=4, chunk_tokens=16, max_cache_tokens=LIMIT, max_num_queued_reqs=64)
    with TextGenerator(device, text_tokenizer, config) as made:
        yield made


@pytest.fixture
def url(generator: TextGenerator) -> Iterator[str]:
    with serving(GeneratorSlot("tiny", generator)) as served:
        yield served


def request(number: int, **more: object) -> bytes:
    prompt = [*SYSTEM, *(3 + (number * 7 + i) % 300 for i in range(15 + number % 13))]
    body = json.dumps({"prompt": prompt, "max_tokens": 14, "temperature": 0, "ignore_eos": True, **more}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def vanish(url: str, number: int) -> None:
    """One client: it leaves before the end of its request, at once after it, with the first piece of a stream, or a bit later."""
    where = urlsplit(url)
    assert where.hostname is not None
    with socket.create_connection((where.hostname, where.port or 0), timeout=30) as client:
        way = number % 4
        asked = request(number, stream=way == 2)
        client.sendall(asked[:-10] if way == 0 else asked)
        if way == 2:
            client.recv(100)
        elif way == 3:
            time.sleep(0.001 * (number % 5))


def held(device: GraphSession) -> int:
    """Bytes of the device's memory that are taken, used or idle."""
    memory = device._device
    assert isinstance(memory, DirtyDevice)
    return sum(block.nbytes for block in list(memory._blocks.values()))


def settle(generator: TextGenerator) -> None:
    """Wait until nobody is left."""
    for _ in range(3000):
        if not generator._live and generator._scheduler.idle:
            return
        time.sleep(0.01)
    raise AssertionError(generator.load)


def test_a_thousand_clients_that_vanish_leave_nothing(url: str, generator: TextGenerator, device: GraphSession) -> None:
    after: list[int] = []
    for number in range(CLIENTS):
        vanish(url, number)
        if (number + 1) % (CLIENTS // 4) == 0:
            settle(generator)
            after.append(held(device))
    # two blocks of each size that was ever in use; what all clients' tokens take would be over four times as much
    assert max(after) <= 50 * LIMIT * device._layout.token, f"bytes after each quarter: {after}"
    load = generator.load
    assert (load.running, load.waiting, load.cached_tokens) == (0, 0, 0)
    assert 0 < load.prefix_tokens <= LIMIT
    metrics = httpx2.get(f"{url}/metrics").text
    ended = re.findall(r"maskpro_request_success_total{.*} (\d+)", metrics)
    assert sum(map(int, ended)) > CLIENTS // 4, "most of them had got as far as the generator"
    for gauge in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc"):
        assert f'maskpro_{gauge}{{model_name="tiny"}} 0.0\n' in metrics
    prompt = [*SYSTEM, 5, 6]
    answer = httpx2.post(f"{url}/v1/completions", json={"prompt": prompt, "max_tokens": 5, "temperature": 0, "ignore_eos": True})
    assert answer.json()["choices"][0]["text"] == generator.tokenizer.decode(device.greedy(prompt, 5))
    assert answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"] == 16
