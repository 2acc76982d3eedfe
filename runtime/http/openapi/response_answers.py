"""The shapes of responses and of the events that stream them; as in `answers`."""

from __future__ import annotations

from typing import Any, Literal

from maskpro_deploy.runtime.http.openapi.answers import Answer, CachedTokens, Count, TokenLogprob


class OutputText(Answer):
    """The text of a message."""

    type: Literal["output_text"]
    text: str
    annotations: list[Any]
    logprobs: list[TokenLogprob]


class OutputMessage(Answer):
    """The one output item of a response."""

    id: str
    type: Literal["message"]
    status: Literal["in_progress", "completed", "incomplete"]
    role: Literal["assistant"]
    content: list[OutputText]


class ReasoningTokens(Answer):
    """Tokens of a reasoning; there is none."""

    reasoning_tokens: Count


class ResponseUsage(Answer):
    """Token counts."""

    input_tokens: Count
    input_tokens_details: CachedTokens
    output_tokens: Count
    output_tokens_details: ReasoningTokens
    total_tokens: Count


class IncompleteDetails(Answer):
    """Why a response is not complete."""

    reason: Literal["max_output_tokens"]


class ResponseError(Answer):
    """Why a response failed."""

    code: Literal["server_error"]
    message: str


class Reasoning(Answer):
    """Settings of a reasoning; there is none."""

    effort: None
    summary: None


class PlainText(Answer):
    """The form of the text."""

    type: Literal["text"]


class TextForm(Answer):
    """What the text is like."""

    format: PlainText


class Response(Answer):
    """A response, with what its request asked for."""

    id: str
    object: Literal["response"]
    created_at: Count
    completed_at: Count | None
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    error: ResponseError | None
    incomplete_details: IncompleteDetails | None
    model: str
    output: list[OutputMessage]
    usage: ResponseUsage | None
    background: Literal[False]
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: None
    metadata: dict[str, str]
    parallel_tool_calls: bool
    previous_response_id: None
    reasoning: Reasoning
    service_tier: str
    store: Literal[False]
    temperature: float
    text: TextForm
    tool_choice: Literal["none", "auto"]
    tools: list[Any]
    top_logprobs: Count
    top_p: float
    truncation: Literal["disabled"]
    user: str | None


class StateEvent(Answer):
    """The response as a whole has come to another state."""

    type: Literal[
        "response.created", "response.in_progress", "response.completed", "response.incomplete", "response.failed"
    ]  # fmt: skip
    sequence_number: Count
    response: Response


class ItemEvent(Answer):
    """The message was begun, or is done."""

    type: Literal["response.output_item.added", "response.output_item.done"]
    sequence_number: Count
    output_index: Count
    item: OutputMessage


class PartEvent(Answer):
    """The part of the message was begun, or is done."""

    type: Literal["response.content_part.added", "response.content_part.done"]
    sequence_number: Count
    item_id: str
    output_index: Count
    content_index: Count
    part: OutputText


class DeltaEvent(Answer):
    """A piece of the text."""

    type: Literal["response.output_text.delta"]
    sequence_number: Count
    item_id: str
    output_index: Count
    content_index: Count
    delta: str
    logprobs: list[TokenLogprob]


class TextEvent(Answer):
    """The text is done."""

    type: Literal["response.output_text.done"]
    sequence_number: Count
    item_id: str
    output_index: Count
    content_index: Count
    text: str
    logprobs: list[TokenLogprob]


EVENTS: tuple[type[Answer], ...] = (StateEvent, ItemEvent, PartEvent, DeltaEvent, TextEvent)
