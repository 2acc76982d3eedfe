"""Calls of functions over HTTP, as the unmodified openai client makes and reads them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import httpx2
import openai
import pytest
from pydantic import BaseModel, Field
from tool_models import tool_bundle

from maskpro_deploy.runtime import RuntimeConfig
from maskpro_deploy.runtime.http.config import ServeConfig
from maskpro_deploy.runtime.http.lifecycle import running_server
from maskpro_deploy.runtime.tools.formats import TOOL_FORMATS

MODEL = "tiny"
HELLO: list[Any] = [{"role": "user", "content": "hello"}]


class Look(BaseModel):
    """Look at a place."""

    place: Literal["here", "there"]
    a: int = Field(ge=0, le=9)


class Wait(BaseModel):
    """Wait for a while."""

    seconds: int = Field(ge=0, le=99)


TOOLS: list[Any] = [openai.pydantic_function_tool(Look), openai.pydantic_function_tool(Wait)]
MODELS: dict[str, type[BaseModel]] = {"Look": Look, "Wait": Wait}
LOOSE: list[Any] = [{"type": "function", "function": {"name": "Look", "parameters": Look.model_json_schema()}}]


def serve(folder: Path, name: str) -> Any:
    runtime = RuntimeConfig(provider="cpu", threads=1, max_num_seqs=8)
    return running_server(tool_bundle(folder, name), ServeConfig(port=0, served_model_name=MODEL, runtime=runtime))


@pytest.fixture(scope="module", params=[form.name for form in TOOL_FORMATS])
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serve(tmp_path_factory.mktemp(request.param), request.param) as served:
        yield served


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as made:
        yield made


def settings(**more: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": HELLO, "tools": TOOLS, "max_tokens": 600, **more}


def check_calls(calls: Any) -> None:
    assert calls
    assert len({call.id for call in calls}) == len(calls)
    for call in calls:
        assert call.type == "function"
        MODELS[call.function.name].model_validate_json(call.function.arguments)


@pytest.mark.parametrize("seed", range(3))
def test_required_calls_are_valid(client: openai.OpenAI, seed: int) -> None:
    choices = client.chat.completions.create(**settings(tool_choice="required", seed=seed, n=2)).choices
    for choice in choices:
        assert choice.message.content is None
        check_calls(choice.message.tool_calls)
        assert choice.finish_reason == "tool_calls"


def test_a_named_function_is_called_once(client: openai.OpenAI) -> None:
    named = {"type": "function", "function": {"name": "Wait"}}
    for seed in range(3):
        (choice,) = client.chat.completions.create(**settings(tool_choice=named, seed=seed)).choices
        (call,) = choice.message.tool_calls or ()
        check_calls([call])
        assert call.function.name == "Wait"  # type: ignore[union-attr]


def test_calls_one_at_a_time_are_one(client: openai.OpenAI) -> None:
    for seed in range(4):
        (choice,) = client.chat.completions.create(
            **settings(tool_choice="required", parallel_tool_calls=False, seed=seed)
        ).choices
        assert len(choice.message.tool_calls or ()) == 1


def test_arguments_of_strict_functions_are_parsed(client: openai.OpenAI) -> None:
    answer = client.chat.completions.parse(**settings(tool_choice="required", seed=5))
    for call in answer.choices[0].message.tool_calls or ():
        assert isinstance(call.function.parsed_arguments, MODELS[call.function.name])


def test_streamed_calls_are_those_of_the_whole(client: openai.OpenAI) -> None:
    asked = settings(tool_choice="required", seed=7)
    whole = client.chat.completions.create(**asked).choices[0]
    found: dict[int, list[str]] = {}
    pieces = 0
    reasons = []
    for chunk in client.chat.completions.create(**asked, stream=True):
        (choice,) = chunk.choices
        assert not choice.delta.content
        reasons.append(choice.finish_reason)
        for call in choice.delta.tool_calls or ():
            pieces += 1
            assert call.function is not None
            if call.id is not None:
                assert call.type == "function"
                assert call.function.name is not None
                found[call.index] = [call.function.name, ""]
            found[call.index][1] += call.function.arguments or ""
    assert list(found) == list(range(len(whole.message.tool_calls or ())))
    assert [tuple(f) for f in found.values()] == [(c.function.name, c.function.arguments) for c in whole.message.tool_calls or ()]  # type: ignore[union-attr]
    assert pieces > len(found)
    assert reasons == [None] * (len(reasons) - 1) + ["tool_calls"]


def test_the_clients_own_stream_gathers_the_calls(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(**settings(tool_choice="required", seed=2)) as stream:
        kinds = {event.type for event in stream}
        answer = stream.get_final_completion()
    assert "tool_calls.function.arguments.delta" in kinds
    assert all(isinstance(c.function.parsed_arguments, BaseModel) for c in answer.choices[0].message.tool_calls or ())


def test_a_call_that_is_cut_short_says_so_and_keeps_its_text(client: openai.OpenAI) -> None:
    seen = 0
    for most in range(1, 64, 3):
        (choice,) = client.chat.completions.create(**settings(tool_choice="required", seed=7, max_tokens=most)).choices
        assert choice.finish_reason == "length"
        assert choice.message.content or choice.message.tool_calls
        seen += bool(choice.message.tool_calls)
    assert seen


def test_an_answer_without_a_call_is_content(client: openai.OpenAI) -> None:
    asked = settings(tools=LOOSE, max_tokens=20, seed=1)
    (choice,) = client.chat.completions.create(**asked).choices
    assert choice.message.tool_calls is None
    assert choice.message.content
    assert choice.finish_reason in ("length", "stop")
    streamed = "".join(c.choices[0].delta.content or "" for c in client.chat.completions.create(**asked, stream=True))
    assert streamed == choice.message.content


def test_a_schema_or_a_strict_call(client: openai.OpenAI) -> None:
    for seed in range(4):
        answer = client.chat.completions.parse(**settings(response_format=Wait, seed=seed))
        message = answer.choices[0].message
        if message.tool_calls:
            check_calls(message.tool_calls)
        else:
            assert isinstance(message.parsed, Wait)


def test_earlier_calls_and_results_reach_the_template(client: openai.OpenAI, url: str) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "Look", "arguments": '{"a": 7}'}}
    messages = [
        *HELLO,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "a tree"},
    ]
    with httpx2.Client(base_url=url) as http:
        tokens = http.post("/tokenize", json={"messages": messages}).json()["tokens"]
        text = http.post("/detokenize", json={"tokens": tokens}).json()["prompt"]
    assert "CALLED Look 7<|end|>" in text
    assert "tool\na tree FOR call_1<|end|>" in text
    answer = client.chat.completions.create(model=MODEL, messages=messages, tools=TOOLS, max_tokens=5)  # type: ignore[arg-type]
    assert answer.usage is not None
    assert answer.usage.prompt_tokens > len(tokens)  # the functions are in it, too


def test_tools_that_are_not_to_be_used_are_not_read(client: openai.OpenAI) -> None:
    with_none = client.chat.completions.create(**settings(tool_choice="none", max_tokens=5))
    without = client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=5)
    assert with_none.usage is not None
    assert without.usage is not None
    assert with_none.usage.prompt_tokens == without.usage.prompt_tokens


def test_what_is_not_in_order_is_refused_by_its_place(client: openai.OpenAI) -> None:
    bad_schema = [{"type": "function", "function": {"name": "f", "parameters": {"properties": {"a": {"type": "x"}}}}}]
    for more, param in (
        ({"tools": [{"type": "web_search"}]}, "tools.0"),
        ({"tool_choice": "always"}, "tool_choice"),
        ({"tools": bad_schema, "tool_choice": "required"}, "tools.0.function.parameters.properties.a"),
        ({"extra_body": {"guided_regex": "a"}}, "guided_regex"),
    ):
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(**settings(**more))  # type: ignore[arg-type]
        assert caught.value.param == param


def test_a_preferred_special_marker_leads_to_a_strict_call(tmp_path: Path) -> None:
    """With "auto", the text before a call is free, and the call is not."""
    with serve(tmp_path, "mistral") as url, openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        for seed in range(3):
            (choice,) = client.chat.completions.create(**settings(logit_bias={"0": 12}, seed=seed)).choices
            assert choice.finish_reason == "tool_calls"
            check_calls(choice.message.tool_calls)


def test_a_model_that_reads_no_tools_says_so(sparse_bundle: Path, tmp_path: Path) -> None:
    runtime = RuntimeConfig(provider="cpu", threads=1)
    with running_server(sparse_bundle, ServeConfig(port=0, runtime=runtime)) as url, httpx2.Client(base_url=url) as http:
        response = http.post("/v1/chat/completions", json={"messages": HELLO, "tools": TOOLS})
        assert response.status_code == 400
        assert "does not read them" in response.json()["error"]["message"]
        response = http.post("/v1/completions", json={"prompt": "x", "tools": TOOLS})
        assert (response.status_code, response.json()["error"]["param"]) == (400, "tools")
    with serve(tmp_path, "unknown") as url, httpx2.Client(base_url=url) as http:
        response = http.post("/v1/chat/completions", json={"messages": HELLO, "tools": TOOLS})
        assert response.status_code == 400
        assert json.loads(response.text)["error"]["message"].count("known here") == 1
