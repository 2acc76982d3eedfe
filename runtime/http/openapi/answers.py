"""The shapes of answers, as the description of the API has them; nothing is checked against them but in tests.

A field without a default is always there; none but those named ever are.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Count = Annotated[int, Field(ge=0)]
FinishReason = Literal["stop", "length"]
ChatFinishReason = Literal["stop", "length", "tool_calls"]


class Answer(BaseModel):
    """A part of an answer."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class Error(Answer):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(Answer):
    """Every answer other than 200."""

    error: Error


class ModelCard(Answer):
    """One name of the model; `root` is the bundle's own."""

    id: str
    object: Literal["model"]
    created: Count
    owned_by: str
    root: str
    max_model_len: Count


class ModelList(Answer):
    """Every name of the model."""

    object: Literal["list"]
    data: list[ModelCard]


class CachedTokens(Answer):
    """Tokens of the input that were computed before."""

    cached_tokens: Count


class Usage(Answer):
    """Token counts; of several answers, all together."""

    prompt_tokens: Count
    prompt_tokens_details: CachedTokens
    completion_tokens: Count
    total_tokens: Count


class TopLogprob(Answer):
    """A token that could have been chosen, its log-probability and its bytes."""

    token: str
    logprob: float
    bytes: list[Annotated[int, Field(ge=0, le=255)]]


class TokenLogprob(TopLogprob):
    """The token that was chosen, and the likeliest ones."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(Answer):
    """Log-probabilities of a chat's answer."""

    content: list[TokenLogprob]
    refusal: None


class CalledFunction(Answer):
    """A function, and its arguments as JSON."""

    name: str
    arguments: str


class ToolCall(Answer):
    """A function that the model calls."""

    id: str
    type: Literal["function"]
    function: CalledFunction


class AssistantMessage(Answer):
    """The answer of a chat; one that only calls functions has no content."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    tool_calls: list[ToolCall] | None = None


class ChatChoice(Answer):
    """One answer."""

    index: Count
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: ChatFinishReason


class ChatCompletion(Answer):
    """Answers of a chat."""

    id: str
    object: Literal["chat.completion"]
    created: Count
    model: str
    choices: list[ChatChoice]
    usage: Usage


class FunctionDelta(Answer):
    """The name of a function, and a piece of its arguments."""

    name: str | None = None
    arguments: str


class ToolCallDelta(Answer):
    """What is new in a call; the first piece names it."""

    index: Count
    id: str | None = None
    type: Literal["function"] | None = None
    function: FunctionDelta


class Delta(Answer):
    """What is new in a chat's answer."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    tool_calls: list[ToolCallDelta] | None = None


class ChatChunkChoice(Answer):
    """What is new in one answer; the last one says why it ended."""

    index: Count
    delta: Delta
    logprobs: ChatLogprobs | None
    finish_reason: ChatFinishReason | None


class ChatCompletionChunk(Answer):
    """One event of a streamed chat."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: Count
    model: str
    choices: list[ChatChunkChoice]
    usage: Usage | None = None


class CompletionLogprobs(Answer):
    """Log-probabilities of a completion; the first token of a prompt has none."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[Count]


class CompletionChoice(Answer):
    """One answer, or what is new in it."""

    index: Count
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason | None


class TextCompletion(Answer):
    """Answers to prompts, or one event of a stream of them."""

    id: str
    object: Literal["text_completion"]
    created: Count
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = None


class Tokens(Answer):
    """A text as tokens."""

    count: Count
    max_model_len: Count
    tokens: list[Count]


class Text(Answer):
    """Tokens as a text."""

    prompt: str


class Status(Answer):
    """What the server is doing."""

    status: Literal["ready", "loading", "draining", "stopped", "dead"]


class Version(Answer):
    """The version of maskpro-deploy."""

    version: str
