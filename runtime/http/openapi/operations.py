"""Every route that is part of the API: what it takes and what it answers. A new route is one more entry."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pydantic import BaseModel

from maskpro_deploy.runtime.http.api.chat import ChatRequest
from maskpro_deploy.runtime.http.api.completions import CompletionRequest
from maskpro_deploy.runtime.http.api.responses import ResponsesRequest
from maskpro_deploy.runtime.http.api.tokens import DetokenizeRequest, TokenizeRequest
from maskpro_deploy.runtime.http.openapi import answers, response_answers

# statuses -> when
STATUSES = {
    400: "The request cannot be served as it is; `param` names the field.",
    401: "The API key is missing or wrong.",
    404: "The model is not served here.",
    408: "The body did not arrive in time.",
    413: "The request is too long.",
    500: "The server made an error; its log says which.",
    503: "The server is full, loading or shutting down: try again after `Retry-After` seconds.",
    504: "The answer was not finished within the time that the operator allows.",
}
_ASKING = (400, 404, 408, 413, 500, 503)


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One route with one method."""

    method: str
    path: str
    tag: str
    summary: str
    answer: type[BaseModel] | None  # None for plain text
    request: type[BaseModel] | None = None
    example: Mapping[str, object] = field(default_factory=dict)  # of a request
    events: tuple[type[BaseModel], ...] = ()  # of the stream that it may answer with; none if it does not stream
    stream: str = ""  # how a stream goes, in words
    typed_events: bool = False  # whether events have names; otherwise "[DONE]" is the last one, or an error
    errors: tuple[int, ...] = ()  # statuses other than 200
    unready: type[BaseModel] = answers.ErrorAnswer  # what 503 answers
    guarded: bool = True  # whether it asks for a key, where there is one


_DONE = (
    "One event for each token; `data: [DONE]` is the last one. An error in between is an event with `error`, and the last one."
)
_TEXT, _TOKENS, _SERVER = "Text", "Tokens and models", "Server"

OPERATIONS = (
    Operation(
        method="post", path="/v1/chat/completions", tag=_TEXT, summary="Answer a conversation.",
        request=ChatRequest, example={"messages": [{"role": "user", "content": "Why is the sky blue?"}], "max_tokens": 64},
        answer=answers.ChatCompletion, events=(answers.ChatCompletionChunk,), stream=_DONE, errors=(*_ASKING, 504),
    ),
    Operation(
        method="post", path="/v1/responses", tag=_TEXT,
        summary="Answer a text or a conversation, in the form of the Responses API. Nothing is stored.",
        request=ResponsesRequest, example={"input": "Why is the sky blue?", "max_output_tokens": 64},
        answer=response_answers.Response, events=response_answers.EVENTS, typed_events=True, errors=(*_ASKING, 504),
        stream="Typed events, numbered by `sequence_number`; the last one is `response.completed`, `.incomplete` or `.failed`.",
    ),
    Operation(
        method="post", path="/v1/completions", tag=_TEXT, summary="Continue texts or tokens.",
        request=CompletionRequest, example={"prompt": "Once upon a time", "max_tokens": 32},
        answer=answers.TextCompletion, events=(answers.TextCompletion,), stream=_DONE, errors=(*_ASKING, 504),
    ),
    Operation(
        method="get", path="/v1/models", tag=_TOKENS, summary="List every name of the model.",
        answer=answers.ModelList, errors=(500, 503),
    ),
    Operation(
        method="get", path="/v1/models/{name}", tag=_TOKENS, summary="Describe the model of one name.",
        answer=answers.ModelCard, errors=(404, 500, 503),
    ),
    Operation(
        method="post", path="/tokenize", tag=_TOKENS, summary="Turn a text, or messages through the chat template, into tokens.",
        request=TokenizeRequest, example={"prompt": "Once upon a time"}, answer=answers.Tokens, errors=_ASKING,
    ),
    Operation(
        method="post", path="/detokenize", tag=_TOKENS, summary="Turn tokens into a text.",
        request=DetokenizeRequest, example={"tokens": [1, 2, 3]}, answer=answers.Text, errors=_ASKING,
    ),
    Operation(
        method="get", path="/health", tag=_SERVER, summary="Whether requests are taken (readiness).",
        answer=answers.Status, errors=(503,), guarded=False,
    ),
    Operation(
        method="get", path="/live", tag=_SERVER, summary="Whether the server works (liveness).",
        answer=answers.Status, errors=(503,), unready=answers.Status, guarded=False,
    ),
    Operation(method="get", path="/version", tag=_SERVER, summary="The version.", answer=answers.Version, guarded=False),
    Operation(
        method="get", path="/metrics", tag=_SERVER, summary="What was counted, in Prometheus' text form.",
        answer=None, guarded=False,
    ),
)  # fmt: skip
