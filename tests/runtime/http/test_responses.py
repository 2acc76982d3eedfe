"""/v1/responses, driven by the unmodified openai client over a real connection."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from openai.types.responses import Response

from maskpro_deploy.runtime import RuntimeConfig
from maskpro_deploy.runtime.http.config import ServeConfig
from maskpro_deploy.runtime.http.lifecycle import running_server

MODEL = "tiny"
GREEDY: dict[str, Any] = {"model": MODEL, "temperature": 0, "max_output_tokens": 6, "extra_body": {"ignore_eos": True}}
LOGPROBS: Any = ["message.output_text.logprobs"]


@pytest.fixture(scope="module")
def url(sparse_bundle: Path) -> Iterator[str]:
    runtime = RuntimeConfig(provider="cpu", threads=1, max_num_seqs=4)
    with running_server(sparse_bundle, ServeConfig(port=0, served_model_name=MODEL, runtime=runtime)) as served:
        yield served


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as made:
        yield made


@pytest.fixture(scope="module")
def stop(client: openai.OpenAI) -> str:
    """A text that greedy answers to "hello" come to early."""
    return client.responses.create(input="hello", **GREEDY).output_text[1:2]


def refusal(client: openai.OpenAI, **settings: Any) -> dict[str, Any]:
    """The error of a request that has to be the client's fault."""
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(**{"input": "hello", "model": MODEL, **settings})
    assert isinstance(caught.value.body, dict)
    return caught.value.body


def test_a_response_says_the_same_as_a_chat(client: openai.OpenAI) -> None:
    messages: Any = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello"}]
    chat = client.chat.completions.create(
        model=MODEL, messages=messages, temperature=0, max_tokens=6, extra_body={"ignore_eos": True}
    )
    response = client.responses.create(input="hello", instructions="Be brief.", metadata={"a": "b"}, **GREEDY)
    assert response.output_text == chat.choices[0].message.content
    assert (response.object, response.model, response.status) == ("response", MODEL, "incomplete")
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"
    assert (response.instructions, response.metadata, response.max_output_tokens) == ("Be brief.", {"a": "b"}, 6)
    assert (response.temperature, response.top_p, response.error) == (0, 1, None)
    assert chat.usage is not None
    assert response.usage is not None
    used = (response.usage.input_tokens, response.usage.output_tokens, response.usage.total_tokens)
    assert used == (chat.usage.prompt_tokens, 6, chat.usage.total_tokens)
    assert response.usage.output_tokens_details.reasoning_tokens == 0


def test_an_answer_that_ends_is_completed(client: openai.OpenAI, stop: str) -> None:
    extra = {"extra_body": {"stop": stop, "ignore_eos": True}}
    response = client.responses.create(input="hello", **GREEDY | extra)
    assert (response.status, response.incomplete_details) == ("completed", None)
    assert response.completed_at is not None


def test_a_conversation_is_read_in_every_spelling(client: openai.OpenAI) -> None:
    first = client.responses.create(input="hello", **GREEDY)
    plain: list[Any] = [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": first.output_text},
        {"role": "user", "content": "more"},
    ]
    parts: list[Any] = [
        {
            "type": "message",
            "role": "user",
            "content": [{"type": "input_text", "text": "hel"}, {"type": "input_text", "text": "lo"}],
        },
        first.output[0].model_dump(),
        {"role": "user", "content": "more"},
    ]
    answers = [client.responses.create(input=spelling, **GREEDY) for spelling in (plain, parts)]
    assert answers[0].output_text == answers[1].output_text
    tokens = [(answer.usage.input_tokens, answer.usage.output_tokens) for answer in answers if answer.usage is not None]
    assert tokens[0] == tokens[1]
    cached = [answer.usage.input_tokens_details.cached_tokens for answer in answers if answer.usage is not None]
    assert cached[1] >= cached[0] > 0  # what the second asks has been read just before


def events_of(client: openai.OpenAI, **settings: Any) -> list[Any]:
    return list(client.responses.create(input="hello", stream=True, **settings))


def test_a_stream_tells_everything_in_order_and_adds_up(client: openai.OpenAI) -> None:
    whole = client.responses.create(input="hello", **GREEDY)
    events = events_of(client, **GREEDY)
    assert [e.sequence_number for e in events] == list(range(len(events)))
    kinds = [e.type.removeprefix("response.") for e in events]
    opened = ["created", "in_progress", "output_item.added", "content_part.added"]
    closed = ["output_text.done", "content_part.done", "output_item.done", "incomplete"]
    assert kinds[:4] == opened
    assert kinds[-4:] == closed
    deltas = events[4:-4]
    assert {e.type for e in deltas} == {"response.output_text.delta"}
    assert "".join(e.delta for e in deltas) == events[-4].text == whole.output_text
    last: Response = events[-1].response
    assert len({e.response.id for e in events if hasattr(e, "response")}) == 1
    assert {e.item_id for e in deltas} == {last.output[0].id}
    unique = {"id", "created_at", "output"}
    assert last.model_dump(exclude=unique) == whole.model_dump(exclude=unique)
    assert last.output[0].model_dump(exclude={"id"}) == whole.output[0].model_dump(exclude={"id"})


def test_the_clients_own_stream_collects_the_response(client: openai.OpenAI, stop: str) -> None:
    settings = GREEDY | {"extra_body": {"stop": stop, "ignore_eos": True}}
    with client.responses.stream(input="hello", **settings) as stream:
        snapshots = [event.snapshot for event in stream if event.type == "response.output_text.delta"]
        final = stream.get_final_response()
    assert final.status == "completed"
    assert final.output_text == snapshots[-1] == client.responses.create(input="hello", **settings).output_text


def test_events_are_called_by_their_types_and_end_without_a_sign(url: str) -> None:
    body = {"input": "hello", "max_output_tokens": 3, "stream": True}
    lines = httpx2.post(f"{url}/v1/responses", json=body).text.split("\n\n")
    assert lines[-1] == ""
    for event in lines[:-1]:
        name, data = event.split("\n")
        assert name == f"event: {json.loads(data.removeprefix('data: '))['type']}"


def test_log_probabilities_come_if_they_are_included(client: openai.OpenAI) -> None:
    settings = GREEDY | {"include": LOGPROBS, "top_logprobs": 2}
    response = client.responses.create(input="hello", **settings)
    (part,) = response.output[0].content  # type: ignore[union-attr]
    assert part.type == "output_text"  # type: ignore[union-attr]
    scores = part.logprobs  # type: ignore[union-attr]
    assert scores is not None
    assert len(scores) == 6
    assert all(s.logprob == max(t.logprob for t in s.top_logprobs) and len(s.top_logprobs) == 2 for s in scores)
    streamed = [s for e in events_of(client, **settings) if e.type == "response.output_text.delta" for s in e.logprobs]
    assert [s.logprob for s in streamed] == [s.logprob for s in scores]
    assert client.responses.create(input="hello", **GREEDY).output[0].content[0].logprobs == []  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "settings",
    [
        {"previous_response_id": "resp_1"},
        {"conversation": "conv_1"},
        {"background": True},
        {"truncation": "auto"},
        {"reasoning": {"effort": "high"}},
        {"tools": [{"type": "web_search"}]},
        {"prompt": {"id": "pmpt_1"}},
        {"text": {"verbosity": "low"}},
        {"extra_body": {"max_tokens": 5}},
        {"extra_body": {"n": 2}},
    ],
    ids=lambda settings: next(iter(settings.get("extra_body", settings))),
)
def test_what_is_not_done_here_is_refused_by_name(client: openai.OpenAI, settings: dict[str, Any]) -> None:
    error = refusal(client, **settings)
    name = next(iter(settings.get("extra_body", settings)))
    assert error["code"] == "unsupported_parameter"
    assert error["param"].split(".")[0] == name
    assert name in error["message"]


def test_the_text_has_the_form_that_was_asked_for(client: openai.OpenAI) -> None:
    schema = {"type": "object", "properties": {"colour": {"enum": ["red", "green"]}}, "required": ["colour"]}
    wanted: Any = {"format": {"type": "json_schema", "name": "paint", "schema": {**schema, "additionalProperties": False}}}
    response = client.responses.create(input="hello", model=MODEL, text=wanted, max_output_tokens=60)
    assert json.loads(response.output_text)["colour"] in ("red", "green")
    assert response.status == "completed"
    assert response.text is not None
    assert response.text.format is not None
    assert response.text.format.type == "json_schema"
    missing = refusal(client, text={"format": {"type": "json_schema", "name": "paint"}})
    assert missing["param"] == "text.format.schema"
    twice = refusal(client, text=wanted, extra_body={"guided_choice": ["a", "b"]})
    assert str(twice["param"]).startswith("text.format")


def test_what_asks_for_nothing_is_welcome(client: openai.OpenAI) -> None:
    harmless: dict[str, Any] = {
        "store": True, "background": False, "truncation": "disabled", "tools": [], "tool_choice": "auto",
        "text": {"format": {"type": "text"}},
        "parallel_tool_calls": True, "previous_response_id": None, "include": ["reasoning.encrypted_content"],
        "reasoning": {"effort": None}, "service_tier": "auto",
    }  # fmt: skip
    response = client.responses.create(input="hello", **GREEDY, **harmless)
    assert (response.tools, response.tool_choice, response.truncation) == ([], "auto", "disabled")
    assert (response.model_extra or {})["store"] is False


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ([], "input"),
        (5, "input"),
        ([{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}], "images are not supported"),
        ([{"type": "function_call_output", "call_id": "c", "output": "x"}], "'function_call_output'"),
        ([{"type": "item_reference", "id": "msg_1"}], "'item_reference'"),
        ([{"role": "nobody", "content": "x"}], "role"),
        ([{"role": "user"}], "content"),
    ],
)
def test_input_that_cannot_be_read_is_named(client: openai.OpenAI, given: Any, named: str) -> None:
    assert named in refusal(client, input=given)["message"]


@pytest.mark.parametrize(
    ("settings", "param"),
    [
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"top_logprobs": 99}, "top_logprobs"),
        ({"metadata": {"a": 5}}, "metadata.a"),
        ({"metadata": {str(i): "" for i in range(17)}}, "metadata"),
        ({"temperature": 9}, "temperature"),
    ],
)
def test_values_out_of_range_are_named(client: openai.OpenAI, settings: dict[str, Any], param: str) -> None:
    assert refusal(client, **settings)["param"] == param


def test_longer_than_the_context_is_refused_before_a_stream_begins(client: openai.OpenAI) -> None:
    assert refusal(client, input="word " * 2000, stream=True)["type"] == "invalid_request_error"
