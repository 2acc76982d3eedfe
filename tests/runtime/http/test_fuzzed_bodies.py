"""A thousand bodies that nobody would send: no error of the server, and every answer as described."""

from __future__ import annotations

from collections import Counter

from http_fuzz import AnswerChecker, fuzz_request
from starlette.testclient import TestClient

from maskpro_deploy.runtime import TextGenerator
from maskpro_deploy.runtime.http.config import ServeConfig
from maskpro_deploy.runtime.http.server import create_app

BODIES = 1000


def test_every_body_is_answered_as_described(generator: TextGenerator) -> None:
    statuses, faults = Counter[int](), []
    config = ServeConfig(max_tokens_limit=4, default_max_tokens=4)
    with TestClient(create_app(generator, config), raise_server_exceptions=False) as client:
        checker = AnswerChecker(client.get("/openapi.json").json())
        for seed in range(BODIES):
            path, body = fuzz_request(seed)
            answer = client.post(path, content=body, headers={"Content-Type": "application/json"})
            statuses[answer.status_code] += 1
            if fault := checker.find_fault(path, answer.status_code, answer.headers["content-type"], answer.content):
                faults.append(f"seed {seed}, {path}: {body[:300]!r}: {fault}")
    assert not faults, "\n".join(faults[:20])
    assert min(statuses[200], statuses[400]) > BODIES // 10, statuses  # both kinds of answers were held against it


def test_the_checker_finds_faults(generator: TextGenerator) -> None:
    with TestClient(create_app(generator)) as client:
        checker = AnswerChecker(client.get("/openapi.json").json())
    good = b'{"count": 1, "max_model_len": 256, "tokens": [1]}'
    assert checker.find_fault("/tokenize", 200, "application/json", good) is None
    for status, media, body in (
        (500, "application/json", b'{"error": {"message": "m", "type": "t", "param": null, "code": null}}'),
        (418, "application/json", good),
        (200, "text/plain", good),
        (200, "application/json", b'{"count": 1, "max_model_len": 256, "tokens": [-1]}'),
        (200, "application/json", b'{"count": 1, "max_model_len": 256, "tokens": [1], "more": 1}'),
    ):
        assert checker.find_fault("/tokenize", status, media, body) is not None
