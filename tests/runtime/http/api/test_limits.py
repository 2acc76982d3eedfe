"""What is too large is refused by its size alone: in a moment, whatever it holds."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from pydantic import BaseModel

from maskpro_deploy.runtime.http.api.chat import ChatRequest
from maskpro_deploy.runtime.http.api.completions import CompletionRequest
from maskpro_deploy.runtime.http.api.errors import ApiError
from maskpro_deploy.runtime.http.api.limits import RequestLimits
from maskpro_deploy.runtime.http.api.parsing import parse
from maskpro_deploy.runtime.http.api.tokens import DetokenizeRequest

LIMITS = RequestLimits(prompts=80, tokens=8192)
HELLO = [{"role": "user", "content": "hello"}]
MOMENT_S = 0.5  # of processor time, on a slow machine

SIZE = LIMITS.body_bytes
FLOODS: dict[str, tuple[type[BaseModel], str]] = {
    "empty objects for prompts": (CompletionRequest, '{"prompt":[' + ",".join(["{}"] * (SIZE // 3)) + "]}"),
    "empty objects for few prompts": (CompletionRequest, '{"prompt":[' + ",".join(["{}"] * 80) + "]}"),
    "a million prompts": (CompletionRequest, '{"prompt":[' + ",".join(['"x"'] * (SIZE // 4)) + "]}"),
    "objects for one prompt, as many as may be": (CompletionRequest, '{"prompt":[[' + ",".join(["{}"] * 131_000) + "]]}"),
    "lists in one prompt": (CompletionRequest, '{"prompt":[[' + ",".join(["[]"] * (SIZE // 3)) + "]]}"),
    "texts for tokens": (CompletionRequest, '{"prompt":[[' + ",".join(['"1"'] * 8000) + "]]}"),
    "one odd token": (CompletionRequest, '{"prompt":[' + "1," * 8000 + "true]}"),
    "numbers beyond all": (CompletionRequest, '{"prompt":[' + ",".join(["1e400"] * (SIZE // 6)) + "]}"),
    "a number of a million digits": (CompletionRequest, '{"prompt":"x","seed":' + "9" * (SIZE - 100) + "}"),
    "deep lists": (CompletionRequest, '{"prompt":' + "[" * (SIZE // 2) + "]" * (SIZE // 2) + "}"),
    "empty messages": (ChatRequest, '{"messages":[' + ",".join(["{}"] * (SIZE // 3)) + "]}"),
    "empty messages within the limit": (ChatRequest, '{"messages":[' + ",".join(["{}"] * 8192) + "]}"),
    "valid messages": (ChatRequest, json.dumps({"messages": HELLO * (SIZE // 50)})),
    "empty parts": (ChatRequest, '{"messages":[{"role":"user","content":[' + ",".join(["{}"] * (SIZE // 3)) + "]}]}"),
    "unknown fields": (CompletionRequest, json.dumps({"prompt": "x", **{f"field{i}": i for i in range(SIZE // 25)}})),
    "stop texts": (CompletionRequest, json.dumps({"prompt": "x", "stop": ["y"] * (SIZE // 5)})),
    "biases": (CompletionRequest, json.dumps({"prompt": "x", "logit_bias": {str(i): 1 for i in range(SIZE // 14)}})),
    "tokens to turn into text": (DetokenizeRequest, '{"tokens":[' + ",".join(["1"] * (SIZE // 2)) + "]}"),
}


@pytest.mark.parametrize("name", FLOODS)
def test_a_flood_is_refused_in_a_moment(name: str) -> None:
    kind, body = FLOODS[name]
    assert len(body) <= SIZE + 100
    started = time.process_time()
    with pytest.raises(ApiError) as caught:
        parse(kind, body.encode(), LIMITS)
    assert time.process_time() - started < MOMENT_S
    assert caught.value.status == 400
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("prompt", "kept"),
    [
        ("text", "text"),
        (["a", "b"], ["a", "b"]),
        ([1, 2, 3], [1, 2, 3]),
        ([[1, 2], [3]], [[1, 2], [3]]),
        (["x"] * 80, ["x"] * 80),
        ([7] * 8192, [7] * 8192),
    ],
)
def test_what_fits_is_taken_as_it_is(prompt: Any, kept: Any) -> None:
    assert parse(CompletionRequest, json.dumps({"prompt": prompt}).encode(), LIMITS).prompt == kept


@pytest.mark.parametrize("prompt", [["x"] * 81, [7] * 8193, [[7] * 8193], [[1]] * 81])
def test_one_too_many_is_not(prompt: Any) -> None:
    with pytest.raises(ApiError, match="at most") as caught:
        parse(CompletionRequest, json.dumps({"prompt": prompt}).encode(), LIMITS)
    assert caught.value.code == "too_many_items"


@pytest.mark.parametrize("kind", [CompletionRequest, ChatRequest])
def test_null_is_the_default_of_every_optional_field(kind: type[BaseModel]) -> None:
    needed: dict[str, Any] = {"prompt": "x"} if kind is CompletionRequest else {"messages": HELLO}
    plain = kind.model_validate(needed)
    nulls = {name: None for name in kind.model_fields if name not in needed}
    asked = parse(kind, json.dumps({**needed, **nulls}).encode(), LIMITS)
    assert asked == plain
    nested = {"stream": True, "stream_options": {"include_usage": None}}
    assert parse(kind, json.dumps({**needed, **nested}).encode(), LIMITS).include_usage is False  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([{"type": "image_url", "image_url": {"url": "data:"}}], "images are not supported"),
        ([{"type": "text", "text": "see"}, {"type": "input_image"}], "images are not supported"),
        ([{"type": "input_audio", "input_audio": {}}], "parts of the type 'input_audio' are not supported"),
        ([{"type": "video_url"}], "videos are not supported"),
    ],
)
def test_parts_that_are_no_text_are_named(content: list[dict[str, Any]], message: str) -> None:
    body = json.dumps({"messages": [{"role": "user", "content": content}]}).encode()
    with pytest.raises(ApiError, match=message):
        parse(ChatRequest, body, LIMITS)


def test_tools_are_of_chats_only() -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    chat = parse(ChatRequest, json.dumps({"messages": HELLO, "tools": tools}).encode(), LIMITS)
    assert chat.tools == tools
    unused = parse(ChatRequest, json.dumps({"messages": HELLO, "tools": tools, "tool_choice": "none"}).encode(), LIMITS)
    assert unused.tools is None
    with pytest.raises(ApiError, match="tools is not supported"):
        parse(CompletionRequest, json.dumps({"prompt": "x", "tools": tools}).encode(), LIMITS)


@pytest.mark.parametrize("name", ["messages", "tools", "bos_token"])
def test_a_template_cannot_be_given_what_it_gets_from_elsewhere(name: str) -> None:
    body = json.dumps({"messages": HELLO, "chat_template_kwargs": {name: []}}).encode()
    with pytest.raises(ApiError, match=f"may not name {name}"):
        parse(ChatRequest, body, LIMITS)


def test_a_template_sees_what_messages_say_of_tools() -> None:
    calls = [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}]
    told = {"role": "tool", "content": "4", "tool_call_id": "c1"}
    messages = [{"role": "assistant", "content": None, "tool_calls": calls}, told]
    asked = parse(ChatRequest, json.dumps({"messages": messages}).encode(), LIMITS)
    read = [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": {"a": 1}}}]
    assert [m.for_template() for m in asked.messages] == [{"role": "assistant", "content": "", "tool_calls": read}, told]
