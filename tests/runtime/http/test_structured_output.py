"""Answers of a given form over HTTP, as the unmodified openai client and vLLM's users ask for them."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from enum import Enum
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from pydantic import BaseModel, Field

from maskpro_deploy.runtime import RuntimeConfig
from maskpro_deploy.runtime.generate.grammars import MAX_CHOICES, MAX_DEPTH, MAX_GRAMMAR_BYTES
from maskpro_deploy.runtime.http.config import ServeConfig
from maskpro_deploy.runtime.http.lifecycle import running_server

MODEL = "tiny"
HELLO: list[Any] = [{"role": "user", "content": "hello"}]
CHAT, COMPLETION = {"messages": HELLO}, {"prompt": "hello"}
SCHEMA = {
    "type": "object",
    "properties": {"color": {"enum": ["red", "blue"]}, "size": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["color", "size"],
    "additionalProperties": False,
}
AS_SCHEMA = {"type": "json_schema", "json_schema": {"name": "thing", "schema": SCHEMA, "strict": True}}


class Color(Enum):
    RED = "red"
    BLUE = "blue"


class Point(BaseModel):
    x: int = Field(ge=-9, le=9)
    y: int = Field(ge=-9, le=9)


class Shape(BaseModel):
    """A nested model, as users write them."""

    color: Color
    corners: list[Point] = Field(max_length=2)
    filled: bool | None


@pytest.fixture(scope="module")
def url(sparse_bundle: Path) -> Iterator[str]:
    runtime = RuntimeConfig(provider="cpu", threads=1, max_num_seqs=8)
    with running_server(sparse_bundle, ServeConfig(port=0, served_model_name=MODEL, runtime=runtime)) as served:
        yield served


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as made:
        yield made


@pytest.fixture(scope="module")
def http(url: str) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=url, timeout=60) as made:
        yield made


def ask(http: httpx2.Client, **fields: Any) -> httpx2.Response:
    path = "/v1/chat/completions" if "messages" in fields else "/v1/completions"
    return http.post(path, json={"max_tokens": 150, "seed": 1, **fields})


def texts(response: httpx2.Response) -> list[str]:
    assert response.status_code == 200, response.text
    return [c["message"]["content"] if "message" in c else c["text"] for c in response.json()["choices"]]


def is_thing(text: str) -> bool:
    value = json.loads(text)
    return value.keys() == {"color", "size"} and value["color"] in ("red", "blue") and 0 <= value["size"] <= 99


@pytest.mark.parametrize("prompt", [CHAT, COMPLETION], ids=["chat", "completion"])
@pytest.mark.parametrize(
    ("fields", "holds"),
    [
        ({"response_format": AS_SCHEMA}, is_thing),
        ({"guided_json": SCHEMA}, is_thing),
        ({"guided_json": json.dumps(SCHEMA)}, is_thing),
        ({"structured_outputs": {"json": SCHEMA}}, is_thing),
        ({"guided_regex": "[a-c]{4}"}, lambda text: re.fullmatch("[a-c]{4}", text)),
        ({"structured_outputs": {"regex": "[a-c]{4}", "backend": "xgrammar"}}, lambda text: re.fullmatch("[a-c]{4}", text)),
        ({"guided_choice": ["yes", "no"]}, lambda text: text in ("yes", "no")),
        ({"structured_outputs": {"choice": ["yes", "no"]}}, lambda text: text in ("yes", "no")),
        ({"guided_grammar": 'root ::= "a" | "b" [0-9]'}, lambda text: re.fullmatch("a|b[0-9]", text)),
        ({"structured_outputs": {"grammar": 'start: "a" /[0-9]/'}}, lambda text: re.fullmatch("a[0-9]", text)),
    ],
)
def test_every_way_of_asking_is_followed_in_both_apis(
    http: httpx2.Client, prompt: dict[str, Any], fields: dict[str, Any], holds: Any
) -> None:
    response = ask(http, **prompt, **fields, n=3)
    assert [c["finish_reason"] for c in response.json()["choices"]] == ["stop"] * 3
    assert all(holds(text) for text in texts(response))


@pytest.mark.parametrize("fields", [{"response_format": {"type": "json_object"}}, {"structured_outputs": {"json_object": True}}])
def test_any_object_will_do(http: httpx2.Client, fields: dict[str, Any]) -> None:
    for seed in range(4):
        response = ask(http, **CHAT, **fields, seed=seed)
        (text,) = texts(response)
        assert text.lstrip().startswith("{")
        if response.json()["choices"][0]["finish_reason"] == "stop":
            assert isinstance(json.loads(text), dict)


def test_nothing_is_asked_by_empty_fields(http: httpx2.Client) -> None:
    plain = texts(ask(http, **CHAT))
    empty = {"response_format": {"type": "text"}, "structured_outputs": {}, "guided_json": None}
    assert texts(ask(http, **CHAT, **empty)) == plain


def test_a_pydantic_model_is_parsed(client: openai.OpenAI) -> None:
    for seed in range(5):
        answer = client.chat.completions.parse(model=MODEL, messages=HELLO, response_format=Shape, max_tokens=238, seed=seed)
        assert isinstance(answer.choices[0].message.parsed, Shape)


def test_a_stream_of_a_pydantic_model_is_parsed(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(model=MODEL, messages=HELLO, response_format=Shape, max_tokens=238, seed=3) as stream:
        for _ in stream:
            pass
        answer = stream.get_final_completion()
    assert isinstance(answer.choices[0].message.parsed, Shape)
    whole = client.chat.completions.parse(model=MODEL, messages=HELLO, response_format=Shape, max_tokens=238, seed=3)
    assert answer.choices[0].message.content == whole.choices[0].message.content


def test_what_is_cut_short_says_so(client: openai.OpenAI) -> None:
    with pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(model=MODEL, messages=HELLO, response_format=Shape, max_tokens=5)


def test_forms_and_free_text_share_batches(http: httpx2.Client) -> None:
    jobs: list[dict[str, Any]] = [{**CHAT, "seed": i} | ({"response_format": AS_SCHEMA} if i % 2 else {}) for i in range(8)]
    alone = [texts(ask(http, **job)) for job in jobs]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda job: texts(ask(http, **job)), jobs)) == alone
    assert all(is_thing(text) for (text,) in alone[1::2])


def nest(depth: int) -> dict[str, Any]:
    return {"properties": {"a": nest(depth - 1)}} if depth else {}


@pytest.mark.parametrize(
    ("fields", "param", "said"),
    [
        ({"response_format": {"type": "xml"}}, "response_format.type", "has to be"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema", "missing"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": 3}}},
            "response_format.json_schema.schema",
            "missing",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"properties": {"a": {"type": "x"}}}}}},
            "response_format.json_schema.schema.properties.a",
            "Invalid type: x",
        ),
        ({"guided_json": nest(MAX_DEPTH)}, "guided_json", "nested"),
        ({"guided_json": {"description": "x" * MAX_GRAMMAR_BYTES}}, "guided_json", "bytes"),
        ({"guided_json": "{"}, "guided_json", "not valid JSON"),
        ({"guided_regex": "[a"}, "guided_regex", "invalid regex"),
        ({"guided_regex": "(?=a)b"}, "guided_regex", "look-around"),
        ({"guided_choice": []}, "guided_choice", "none empty"),
        ({"guided_choice": ["a"] * (MAX_CHOICES + 1)}, "guided_choice", f"{MAX_CHOICES} at most"),
        ({"guided_choice": "yes"}, "guided_choice", "valid list"),
        ({"guided_grammar": "start: foo"}, "guided_grammar", "unknown name"),
        ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs", "cannot be used together"),
        ({"structured_outputs": {"structural_tag": "x"}}, "structured_outputs.structural_tag", "none of"),
        ({"guided_regex": "a", "response_format": {"type": "json_object"}}, "guided_regex", "one form"),
    ],
)
def test_what_cannot_be_followed_is_refused_by_its_place(
    http: httpx2.Client, fields: dict[str, Any], param: str, said: str
) -> None:
    response = ask(http, **CHAT, **fields)
    error = response.json()["error"]
    assert (response.status_code, error["type"], error["param"]) == (400, "invalid_request_error", param)
    assert said in error["message"]
    assert "\n" not in error["message"]


def test_without_the_extra_the_answer_names_it(sparse_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    runtime = RuntimeConfig(provider="cpu", threads=1)
    config = ServeConfig(port=0, served_model_name=MODEL, runtime=runtime)
    with running_server(sparse_bundle, config) as served, httpx2.Client(base_url=served) as http:
        for fields in ({"response_format": AS_SCHEMA}, {"guided_regex": "a"}, {"guided_choice": ["a"]}):
            response = ask(http, **CHAT, **fields)
            assert response.status_code == 400
            assert "pip install 'maskpro-deploy[structured]'" in response.json()["error"]["message"]
        assert ask(http, **CHAT).status_code == 200
