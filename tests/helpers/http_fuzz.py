"""Requests that nobody would send, made by changing good ones; and whether the answers are as the API's description says."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping
from copy import deepcopy
from functools import cache
from typing import Any

import jsonschema_rs

from maskpro_deploy.runtime.http.openapi.document import EVENTS, read_event_schema

TALK = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": [{"type": "text", "text": "hello"}]}]
SETTINGS = {"temperature": 0.7, "top_p": 0.9, "top_k": 5, "min_p": 0.1, "seed": 1, "stop": ["."], "logit_bias": {"5": -3}, "n": 2}
# path, a good body
GOOD: tuple[tuple[str, dict[str, Any]], ...] = (
    ("/v1/completions", {"prompt": "Once", "max_tokens": 3, "echo": True, "logprobs": 2, **SETTINGS}),
    ("/v1/completions", {"prompt": [[1, 2], [3]], "stream": True, "stream_options": {"include_usage": True}, "max_tokens": 2}),
    ("/v1/completions", {"prompt": ["a", "b"], "max_tokens": 0, "echo": True, "logprobs": 1, "min_tokens": 0}),
    ("/v1/chat/completions", {"messages": TALK, "max_tokens": 3, "logprobs": True, "top_logprobs": 3, **SETTINGS}),
    ("/v1/chat/completions", {"messages": TALK, "stream": True, "max_tokens": 2, "chat_template_kwargs": {"mode": "short"}}),
    ("/v1/chat/completions", {"messages": [{"role": "tool", "content": "x", "tool_call_id": "1"}], "min_tokens": 2}),
    ("/v1/responses", {"input": "hello", "max_output_tokens": 2, "instructions": "Be brief.", "metadata": {"a": "b"}}),
    ("/v1/responses", {"input": [{"role": "user", "content": [{"type": "input_text", "text": "x"}]}], "stream": True,
                       "max_output_tokens": 3, "include": ["message.output_text.logprobs"], "top_logprobs": 2}),
    ("/tokenize", {"messages": TALK, "add_generation_prompt": False}),
    ("/tokenize", {"prompt": "héllo", "add_special_tokens": True}),
    ("/detokenize", {"tokens": [1, 2, 3]}),
)  # fmt: skip
ODD: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 20, 21, 1e308, -1e-308, 0.5, 10**12, 2**63, 10**40, "", "0", "x" * 300, "\0", "\ufffe", "😀",
    "\ud800", "<|end|>", "{{ 7 * 7 }}", [], {}, [[]], [None], [0], ["x"], [True], [1.5], {"type": "text"}, {"": {}},
    [{"role": "user"}], [2**31], [-1], {"0": 100}, {"999": 1}, {"x": 1}, {"type": "image_url"}, {"role": "user", "content": None},
)  # fmt: skip


def fuzz_request(seed: int) -> tuple[str, bytes]:
    """The path and the body of one request; the same for the same seed."""
    rng = random.Random(seed)
    path, body = rng.choice(GOOD)
    value: Any = json.loads(json.dumps(body))
    for _ in range(rng.choice((0, 1, 1, 1, 2, 3, 6))):
        _change(rng, value)
    data = json.dumps(value, ensure_ascii=rng.random() < 0.7).encode(errors="surrogatepass")
    return (rng.choice(GOOD)[0] if rng.random() < 0.05 else path), _damage(rng, data) if rng.random() < 0.15 else data


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container with every key or index in it."""
    for key in value if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], (dict, list)):
            yield from _places(value[key])


def _change(rng: random.Random, value: Any) -> None:
    """Change one place."""
    places = list(_places(value))
    if not places:
        return
    container, key = rng.choice(places)
    kind = rng.randrange(6)
    if kind < 3:
        container[key] = deepcopy(rng.choice(ODD))  # a later change is in the copy
    elif kind == 3:
        del container[key]
    elif kind == 4:
        container[key] = [container[key]] * rng.choice((1, 2, 5))
    elif isinstance(container, dict):
        fields = [name for _, body in GOOD for name in body]
        container[rng.choice((*fields, "unknown", "tools", "response_format", "reasoning"))] = deepcopy(rng.choice(ODD))


def _damage(rng: random.Random, data: bytes) -> bytes:
    """Bytes that are hardly JSON any more."""
    place = rng.randrange(len(data) + 1)
    return rng.choice((
        data[:place], data[:place] + bytes([rng.randrange(256)]) + data[place + 1 :], data + data, b"\xef\xbb\xbf" + data,
        data.decode(errors="replace").encode("utf-16"), data.replace(b"3", b"NaN"), data.replace(b'"', b"'"), b"", b"[" * 500,
    ))  # fmt: skip


class AnswerChecker:
    """Holds answers against an OpenAPI document."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self._document = document
        self._validator = cache(self._make_validator)

    def find_fault(self, path: str, status: int, media: str, body: bytes) -> str | None:
        """What is wrong with an answer to a POST; None if it is as described."""
        responses = self._document["paths"][path]["post"]["responses"]
        if status >= 500 or str(status) not in responses:
            return f"status {status}: {body[:300]!r}"
        content = responses[str(status)]["content"]
        media = media.partition(";")[0]
        if media not in content:
            return f"media type {media}"
        shape = content[media]["schema"] if media != EVENTS else read_event_schema(content[media]["schema"])
        validator = self._validator(json.dumps(shape))
        for part in _read_events(body) if media == EVENTS else [json.loads(body)]:
            if error := next(iter(validator.iter_errors(part)), None):
                return f"{error.message[:300]} in {str(part)[:300]}"
        return None

    def _make_validator(self, schema: str) -> Any:
        return jsonschema_rs.validator_for({**json.loads(schema), "components": self._document["components"]})


def _read_events(body: bytes) -> Iterator[Any]:
    for event in body.decode().removesuffix("\n\n").split("\n\n"):
        data = event.split("data: ", 1)[1]
        if data != "[DONE]":
            yield json.loads(data)
