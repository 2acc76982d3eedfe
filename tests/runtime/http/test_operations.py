"""What operators see and set: requests by route and status, the process, and the bound of prompts with log-probabilities."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from maskpro_deploy import __version__
from maskpro_deploy.runtime import RuntimeConfig
from maskpro_deploy.runtime.http.config import ServeConfig
from maskpro_deploy.runtime.http.lifecycle import running_server


@pytest.fixture
def http(sparse_bundle: Path) -> Iterator[httpx2.Client]:
    runtime = RuntimeConfig(provider="cpu", threads=1, max_num_seqs=4, chunk_tokens=16, max_prompt_logprobs_tokens=100)
    config = ServeConfig(port=0, runtime=runtime, served_model_name="mine")
    with running_server(sparse_bundle, config) as url, httpx2.Client(base_url=url, timeout=30) as client:
        yield client


def test_requests_are_counted_by_route_and_status_and_names_do_not_pile_up(http: httpx2.Client) -> None:
    http.get("/version")
    http.get("/v1/models/mine")
    for i in range(20):
        http.get(f"/v1/models/{i}")
        http.get(f"/{i}")
        http.request(f"MADE{i}", "/version")
    http.post("/v1/completions", json={"prompt": 5})
    text = http.get("/metrics").text
    found = dict(re.findall(r"^maskpro_http_requests_total\{(.*)\} (\S+)$", text, flags=re.MULTILINE))
    counted = {tuple(re.findall(r'"(.*?)"', labels)): float(value) for labels, value in found.items()}
    assert counted == {
        ("GET", "mine", "/version", "200"): 1,
        ("GET", "mine", "/v1/models/{name:path}", "200"): 1,
        ("GET", "mine", "/v1/models/{name:path}", "404"): 20,
        ("GET", "mine", "other", "404"): 20,
        ("other", "mine", "/version", "405"): 20,
        ("POST", "mine", "/v1/completions", "400"): 1,
    }
    assert f'maskpro_build_info{{version="{__version__}"}} 1.0' in text
    assert re.search(r"^process_resident_memory_bytes \d", text, flags=re.MULTILINE)


def test_prompts_with_log_probabilities_are_bounded_by_an_option_that_the_answer_names(http: httpx2.Client) -> None:
    body = {"prompt": [1] * 60, "max_tokens": 1, "echo": True, "logprobs": 2}
    assert http.post("/v1/completions", json=body).status_code == 200
    for much in ({"n": 2}, {"prompt": [[1] * 60, [2] * 60]}, {"prompt": [1] * 101}):
        refused = http.post("/v1/completions", json={**body, **much})
        assert refused.status_code == 400
        assert "--max-prompt-logprobs-tokens" in refused.json()["error"]["message"]
    for harmless in ({"echo": False}, {"logprobs": None}):
        assert http.post("/v1/completions", json={**body, "n": 2, **harmless}).status_code == 200


def test_a_stream_carries_the_same_log_probabilities(http: httpx2.Client) -> None:
    """The long first event is made beside the event loop."""
    body = {"prompt": list(range(1, 51)), "max_tokens": 3, "echo": True, "logprobs": 3, "temperature": 0}
    whole = http.post("/v1/completions", json=body).json()["choices"][0]
    lines = http.post("/v1/completions", json={**body, "stream": True}).text.splitlines()
    choices = [json.loads(line[6:])["choices"][0] for line in lines if line.startswith("data: {")]
    assert "".join(choice["text"] for choice in choices) == whole["text"]
    for name in ("tokens", "token_logprobs", "top_logprobs"):
        assert [item for choice in choices for item in choice["logprobs"][name]] == whole["logprobs"][name]
    assert len(whole["logprobs"]["tokens"]) == 53
