"""A stream begins with its first token: an answer that never starts is an error by its status."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest
from gated_session import GatedSession
from real_socket import serving

from maskpro_deploy.runtime import RuntimeConfig, TextGenerator
from maskpro_deploy.runtime.generate.tokenizer import TextTokenizer

LONG = {"prompt": [1], "max_tokens": 200, "ignore_eos": True}


@pytest.fixture
def generator(gated: GatedSession, text_tokenizer: TextTokenizer) -> Iterator[TextGenerator]:
    """One place in the batch, and a short wait for it."""
    config = RuntimeConfig(max_num_seqs=1, max_num_queued_reqs=4, queue_timeout_s=0.2)
    with TextGenerator(gated, text_tokenizer, config) as made:
        yield made
        gated.open()


@pytest.fixture
def url(gated: GatedSession, generator: TextGenerator) -> Iterator[str]:
    with serving(generator) as served:
        yield f"{served}/v1"
        gated.open()


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("completions", {"prompt": [2]}),
        ("chat/completions", {"messages": [{"role": "user", "content": "hi"}]}),
        ("responses", {"input": "hi"}),
    ],
)
def test_a_stream_that_waited_too_long_is_a_503(path: str, body: dict[str, object], url: str, gated: GatedSession) -> None:
    with ThreadPoolExecutor() as pool:
        running = pool.submit(httpx2.post, f"{url}/completions", json=LONG, timeout=60)
        assert gated.entered.acquire(timeout=30)
        gated.trickle(0.01)  # two seconds for all of its tokens
        refused = httpx2.post(f"{url}/{path}", json={**body, "stream": True}, timeout=60)
        assert refused.status_code == 503, refused.text
        assert refused.json()["error"]["code"] == "server_overloaded"
        assert int(refused.headers["Retry-After"]) > 0
        assert running.result().status_code == 200


def test_a_reader_that_goes_away_before_the_start_frees_its_place(
    url: str, gated: GatedSession, generator: TextGenerator
) -> None:
    with ThreadPoolExecutor() as pool:
        running = pool.submit(httpx2.post, f"{url}/completions", json=LONG, timeout=60)
        assert gated.entered.acquire(timeout=30)
        with pytest.raises(httpx2.ReadTimeout):
            httpx2.post(f"{url}/completions", json={**LONG, "stream": True}, timeout=0.1)
        gated.open()
        assert running.result().status_code == 200
    deadline = time.monotonic() + 30
    while generator.load.running or generator.load.waiting:
        assert time.monotonic() < deadline
        time.sleep(0.005)
