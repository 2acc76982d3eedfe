"""The request log: a line for every request with what an operator needs, and nothing of what was said."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest

from maskpro_deploy.errors import InputError
from maskpro_deploy.runtime import RuntimeConfig
from maskpro_deploy.runtime.http.config import ServeConfig
from maskpro_deploy.runtime.http.lifecycle import running_server
from maskpro_deploy.runtime.http.request_log import RequestLog

KEY = "a long secret"


def read(path: Path, until: Callable[[list[dict[str, Any]]], bool]) -> list[dict[str, Any]]:
    """The lines once they are complete: a client has its answer before the line is written."""
    for _ in range(1000):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        if until(lines):
            return lines
        time.sleep(0.01)
    raise AssertionError(path.read_text())


def test_every_request_has_a_line_without_its_texts(tmp_path: Path, sparse_bundle: Path) -> None:
    path = tmp_path / "requests.jsonl"
    runtime = RuntimeConfig(provider="cpu", threads=1, max_num_seqs=4)
    config = ServeConfig(port=0, runtime=runtime, api_key=KEY, request_log=str(path))
    body = {"prompt": "words that nobody else reads", "max_tokens": 4, "ignore_eos": True}
    with running_server(sparse_bundle, config) as url:
        with httpx2.Client(base_url=url, headers={"Authorization": f"Bearer {KEY}", "X-Request-Id": "mine"}) as http:
            whole = http.post("/v1/completions", json={**body, "n": 2}).json()
            http.post("/v1/completions", json={**body, "stream": True})
            http.post("/v1/completions", json={"prompt": 5})
            http.get("/health")
        httpx2.post(f"{url}/v1/completions", json=body)
        with httpx2.Client(base_url=url, headers={"Authorization": f"Bearer {KEY}"}) as http:
            with http.stream("POST", "/v1/completions", json={**body, "max_tokens": 200, "stream": True}) as response:
                next(response.iter_lines())
            lines = read(path, lambda found: len(found) == 5)
    first, streamed, wrong, unknown, left = lines
    assert (first["id"], first["key"], first["status"], first["method"], first["path"]) == (
        "mine", "api-key", 200, "POST", "/v1/completions",
    )  # fmt: skip
    assert first["prompt_tokens"] == whole["usage"]["prompt_tokens"]
    assert (first["answers"], first["completion_tokens"], first["finished"]) == (2, 8, ["length", "length"])
    assert 0 <= first["queued_s"] <= first["first_token_s"] <= first["seconds"]
    assert (streamed["stream"], streamed["completion_tokens"]) == (True, 4)
    assert (wrong["status"], "answers" in wrong) == (400, False)
    assert (unknown["status"], unknown["key"]) == (401, None)
    assert left["completion_tokens"] < 200
    assert "nobody" not in path.read_text()
    assert "secret" not in path.read_text()


def test_a_log_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--request-log .* cannot be written"):
        RequestLog(str(tmp_path / "absent" / "log"))


def test_a_full_disk_costs_lines_and_no_request(sparse_bundle: Path) -> None:
    config = ServeConfig(port=0, runtime=RuntimeConfig(provider="cpu", threads=1), request_log="/dev/full")
    with running_server(sparse_bundle, config) as url:
        assert [httpx2.get(f"{url}/v1/models").status_code for _ in range(3)] == [200, 200, 200]
