"""Routes that are not served are refused in OpenAI's form, with what to use."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest
from starlette.testclient import TestClient

from maskpro_deploy.runtime import TextGenerator
from maskpro_deploy.runtime.http.api.refused import REFUSED
from maskpro_deploy.runtime.http.config import ServeConfig
from maskpro_deploy.runtime.http.lifecycle import running_server
from maskpro_deploy.runtime.http.server import create_app


@pytest.fixture(scope="module")
def http(generator: TextGenerator) -> Iterator[TestClient]:
    with TestClient(create_app(generator), raise_server_exceptions=False) as client:
        yield client


def error_of(answer: Any, status: int) -> dict[str, Any]:
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/json"
    error: dict[str, Any] = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


@pytest.mark.parametrize("path", REFUSED)
def test_what_others_serve_is_refused_with_what_to_use(http: TestClient, path: str) -> None:
    for method, tried in (("POST", f"{path}/x"), ("DELETE", f"{path}/x/y"), ("GET", f"{path}/x")):
        error = error_of(http.request(method, tried), 404)
        assert (error["type"], error["code"]) == ("not_found_error", "unsupported_endpoint")
        assert REFUSED[path] in error["message"]


def test_unknown_routes_say_what_there_is(http: TestClient) -> None:
    for path in ("/", "/v1", "/v2/models", "/v1/embeddingsx", "/v1/completions/"):
        error = error_of(http.post(path), 404)
        assert error["code"] == "unknown_endpoint"
        assert "/v1/chat/completions" in error["message"]
    long = error_of(http.get("/" + "x" * 5000), 404)
    assert len(long["message"]) < 500


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "TRACE", "FOO"])
def test_wrong_methods_say_which_are_right(http: TestClient, method: str) -> None:
    for path, right in (("/v1/completions", {"POST"}), ("/v1/responses", {"POST"}), ("/tokenize", {"POST"})):
        answer = http.request(method, path)
        assert {m.strip() for m in answer.headers["allow"].split(",")} == right
        error = error_of(answer, 405)
        assert error["code"] == "method_not_allowed"
        assert "POST" in error["message"]


def test_the_client_sees_its_own_class_and_does_not_try_again(sparse_bundle: Any) -> None:
    with (
        running_server(sparse_bundle, ServeConfig(port=0)) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=2) as client,
    ):
        with pytest.raises(openai.NotFoundError, match="no embeddings"):
            client.embeddings.create(model="x", input="hello")
        with pytest.raises(openai.NotFoundError, match="stores nothing"):
            client.responses.retrieve("resp_1")
