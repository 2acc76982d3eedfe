"""What clients and operators see of prefix caching: usage in both APIs, metrics, the request log, and a switch."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from maskpro_deploy.runtime import RuntimeConfig
from maskpro_deploy.runtime.http.config import ServeConfig
from maskpro_deploy.runtime.http.lifecycle import running_server

BLOCK = 16


def serving(bundle: Path, log: Path, **runtime: Any) -> Iterator[tuple[str, openai.OpenAI]]:
    config = RuntimeConfig(provider="cpu", threads=1, max_num_seqs=4, **runtime)
    served = ServeConfig(port=0, served_model_name="tiny", runtime=config, request_log=str(log))
    with running_server(bundle, served) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield url, client


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "requests.jsonl"


@pytest.fixture
def served(sparse_bundle: Path, log: Path) -> Iterator[tuple[str, openai.OpenAI]]:
    yield from serving(sparse_bundle, log)


@pytest.fixture
def served_without(sparse_bundle: Path, log: Path) -> Iterator[tuple[str, openai.OpenAI]]:
    yield from serving(sparse_bundle, log, prefix_caching=False)


def metrics(url: str, answers: int) -> dict[str, float]:
    """The metrics once so many answers have been counted to their end: a step is counted after its answers went out."""
    for _ in range(1000):
        families = text_string_to_metric_families(httpx2.get(f"{url}/metrics").text)
        seen = {s.name.removeprefix("maskpro_"): s.value for f in families for s in f.samples if len(s.labels) == 1}
        if seen["iteration_tokens_total_sum"] == seen["prompt_tokens_total"] + seen["generation_tokens_total"] - answers:
            return seen
        time.sleep(0.01)
    raise AssertionError(seen)


def cached(usage: Any) -> int:
    return int(usage.prompt_tokens_details.cached_tokens)


def test_both_apis_count_the_tokens_that_were_kept(served: tuple[str, openai.OpenAI]) -> None:
    """A chat, its next turn as a stream, and the same as a completion with two answers: each prompt counts once."""
    url, client = served
    messages: list[Any] = [{"role": "system", "content": "be brief " * 8}, {"role": "user", "content": "hello"}]
    settings: dict[str, Any] = {"model": "tiny", "max_tokens": 4, "temperature": 0, "extra_body": {"ignore_eos": True}}
    first = client.chat.completions.create(messages=messages, **settings)
    assert first.usage is not None
    assert cached(first.usage) == 0
    messages += [{"role": "assistant", "content": "yes"}, {"role": "user", "content": "and now?"}]
    *_, last = client.chat.completions.create(messages=messages, stream=True, stream_options={"include_usage": True}, **settings)
    assert last.usage is not None
    assert first.usage.prompt_tokens // BLOCK * BLOCK - BLOCK <= cached(last.usage) < last.usage.prompt_tokens
    tokens = httpx2.post(f"{url}/tokenize", json={"messages": messages}).json()["tokens"]
    both = client.completions.create(prompt=[tokens, tokens[:20]], n=2, **settings)
    assert both.usage is not None
    assert both.usage.prompt_tokens == len(tokens) + 20
    assert cached(both.usage) >= (len(tokens) - 1) // BLOCK * BLOCK
    assert cached(both.usage) <= len(tokens) - 1 + 19


def test_metrics_and_log_say_what_was_found(served: tuple[str, openai.OpenAI], log: Path) -> None:
    url, client = served
    prompt = list(range(100, 100 + 3 * BLOCK))
    for _ in range(2):
        client.completions.create(model="tiny", prompt=prompt, max_tokens=2, temperature=0)
    seen = metrics(url, 2)
    assert seen["prefix_cache_queries_total"] == 2 * len(prompt)
    assert seen["prefix_cache_hits_total"] == len(prompt) - 1
    assert seen["prompt_tokens_total"] == len(prompt) + 1
    assert seen["prefix_cache_tokens"] == len(prompt)
    assert seen["kv_cache_usage_perc"] == 0, "what gives way to sequences does not fill the cache"
    for _ in range(1000):
        if len(lines := log.read_text().splitlines()) == 2:
            break
        time.sleep(0.01)
    assert [json.loads(line)["cached_tokens"] for line in lines] == [0, len(prompt) - 1]


def test_switched_off_nothing_is_looked_for(served_without: tuple[str, openai.OpenAI]) -> None:
    url, client = served_without
    for _ in range(2):
        answer = client.completions.create(model="tiny", prompt=list(range(100, 150)), max_tokens=2, temperature=0)
    assert answer.usage is not None
    assert cached(answer.usage) == 0
    seen = metrics(url, 2)
    assert (seen["prefix_cache_queries_total"], seen["prefix_cache_tokens"], seen["prompt_tokens_total"]) == (0, 0, 100)
