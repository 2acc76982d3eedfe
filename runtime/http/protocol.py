"""What clients may send: OpenAI's fields, vLLM's extras, and the shape of every error.

A field that is unknown is ignored (clients send new ones all the time) and logged once. A field that is known and would change
the answer, but is not supported, is an error: it is never silently dropped.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from maskpro_deploy.errors import InputError, MaskProError
from maskpro_deploy.runtime.generate.refusals import ContextLengthError, OverloadedError
from maskpro_deploy.runtime.generate.sampling import MAX_LOGPROBS, SamplingError, SamplingParams

log = logging.getLogger(__name__)

MAX_CHOICES = 128
RETRY_AFTER_S = 1
_DEFAULT_COMPLETION_TOKENS = 16  # what OpenAI's API says

# known fields that change the answer and that this server does not do -> the values that ask for nothing
_UNSUPPORTED: dict[str, tuple[object, ...]] = {
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "structured_outputs": (),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "suffix": ("",),
    "best_of": (1,),
    "use_beam_search": (False,),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
    "prompt_embeds": (),
    "prompt_logprobs": (),
    "allowed_token_ids": ([],),
    "bad_words": ([],),
    "truncate_prompt_tokens": (),
    "continue_final_message": (False,),
    "documents": ([],),
}
# the settings that go on to sampling as they are
_SAMPLING_FIELDS = (
    "min_tokens",
    "temperature",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "ignore_eos",
    "skip_special_tokens",
)
_logged: set[str] = set()


class ApiError(Exception):
    """An answer other than 200, in OpenAI's shape."""

    def __init__(self, status: int, message: str, kind: str, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.code = code
        self.param = param

    def body(self) -> dict[str, object]:
        """The JSON body."""
        message = str(self).encode(errors="replace").decode()  # what a client sent may hold halves of surrogate pairs
        param = self.param and self.param.encode(errors="replace").decode()
        return {"error": {"message": message, "type": self.kind, "param": param, "code": self.code}}

    def headers(self) -> dict[str, str]:
        """The headers that belong to this status."""
        if self.status == 401:
            return {"WWW-Authenticate": "Bearer"}
        return {"Retry-After": str(RETRY_AFTER_S)} if self.status == 503 else {}


def api_error(error: MaskProError) -> ApiError:
    """What a library error is over HTTP."""
    message = str(error)
    match error:
        case OverloadedError():
            return ApiError(503, message, "overloaded_error", "server_overloaded")
        case ContextLengthError():
            return ApiError(400, message, "invalid_request_error", "context_length_exceeded", "max_tokens")
        case SamplingError():
            return ApiError(400, message, "invalid_request_error", "invalid_value", error.field)
        case InputError():
            return ApiError(400, message, "invalid_request_error")
    return ApiError(500, message, "server_error", "internal_error")


class StreamOptions(BaseModel):
    """What a stream carries beside the answer."""

    include_usage: bool = False


class GenerationRequest(BaseModel):
    """The fields that both ways to ask have in common; None means the default."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False, protected_namespaces=())

    model: str | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[int, float] | None = None
    n: int = Field(default=1, ge=1, le=MAX_CHOICES)
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None

    @model_validator(mode="after")
    def _check_options(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options needs stream=true")
        return self

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a count of tokens."""
        return self.stream_options is not None and self.stream_options.include_usage

    def sampling(self, max_tokens: int, logprobs: int | None, prompt_logprobs: int | None = None) -> SamplingParams:
        """The sampling settings.

        Raises:
            SamplingError: one is out of its range.
        """
        given: dict[str, Any] = {f: v for f in _SAMPLING_FIELDS if (v := getattr(self, f)) is not None}
        if self.top_k is not None:
            given["top_k"] = 0 if self.top_k == -1 else self.top_k  # vLLM's sign for all
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return SamplingParams(
            max_tokens=max_tokens,
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs,
            logit_bias=self.logit_bias or {},
            stop=tuple(stops),
            stop_token_ids=tuple(self.stop_token_ids or ()),
            **given,
        )


class CompletionRequest(GenerationRequest):
    """POST /v1/completions."""

    prompt: str | list[str] | list[int] | list[list[int]]
    echo: bool = False
    logprobs: int | None = None
    add_special_tokens: bool = True

    def answer_tokens(self, room: int) -> int:
        """How long the answer may get, given the room that the longest prompt leaves."""
        if self.max_tokens is not None:
            return self.max_tokens
        return min(_DEFAULT_COMPLETION_TOKENS, max(room, 1))


class TextPart(BaseModel):
    """One part of a message's content; only text is read."""

    type: Literal["text"]
    text: str


class Message(BaseModel):
    """One message of a conversation."""

    model_config = ConfigDict(extra="allow")

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None

    def for_template(self) -> dict[str, object]:
        """What a chat template reads."""
        content = self.content if isinstance(self.content, str) else "".join(p.text for p in self.content or ())
        return {"role": "system" if self.role == "developer" else self.role, "content": content}


class ChatRequest(GenerationRequest):
    """POST /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = None
    logprobs: bool = False
    top_logprobs: int | None = Field(default=None, ge=0, le=MAX_LOGPROBS)
    add_generation_prompt: bool = True
    add_special_tokens: bool = False
    chat_template_kwargs: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _check_logprobs(self) -> Self:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs=true")
        return self

    def answer_tokens(self, room: int) -> int:
        """How long the answer may get: as asked, else as long as there is room."""
        asked = self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens
        return asked if asked is not None else max(room, 1)


class TokenizeRequest(BaseModel):
    """POST /tokenize: a text, or messages for the chat template."""

    model: str | None = None
    prompt: str | None = None
    messages: list[Message] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool = True

    @model_validator(mode="after")
    def _check_one(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give either prompt or messages")
        return self


class DetokenizeRequest(BaseModel):
    """POST /detokenize."""

    model: str | None = None
    tokens: list[int]


R = TypeVar("R", bound=BaseModel)


def parse(kind: type[R], body: bytes) -> R:
    """Read a request.

    Raises:
        ApiError: it is no JSON object, a field has the wrong type, or an unsupported field is used.
    """
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as e:
        raise ApiError(400, f"the body is not valid JSON: {e}", "invalid_request_error", "invalid_json") from e
    if not isinstance(value, dict):
        raise ApiError(400, "the body has to be a JSON object.", "invalid_request_error", "invalid_json")
    _refuse_unsupported(value)
    try:
        request = kind.model_validate(value)
    except ValidationError as e:
        raise _validation_error(e) from e
    _log_unknown(request.model_extra or {})
    return request


def _refuse_unsupported(value: Mapping[str, object]) -> None:
    for field, harmless in _UNSUPPORTED.items():
        if value.get(field) is not None and value[field] not in harmless:
            raise ApiError(
                400, f"{field} is not supported by this server.", "invalid_request_error", "unsupported_parameter", field
            )


def _validation_error(error: ValidationError) -> ApiError:
    """The first thing that is wrong, in one line."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    # a union names its own members after the field: only the field is of use to the reader
    field = ".".join(str(part) for part in first["loc"][:3] if not _is_union_label(part)) or None
    message = first["msg"].removeprefix("Value error, ")
    return ApiError(400, f"{field}: {message}" if field else message, "invalid_request_error", "invalid_value", field)


def _is_union_label(part: object) -> bool:
    return isinstance(part, str) and (part in ("str", "int", "[key]") or part.startswith("list["))


def _log_unknown(fields: Mapping[str, object]) -> None:
    for field in fields.keys() - _logged - _UNSUPPORTED.keys():
        if len(_logged) < 100:
            _logged.add(field)
            log.info("ignoring the unknown request field %r", field[:64])
