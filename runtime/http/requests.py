"""What clients may ask: OpenAI's fields and vLLM's extras, and what each request means for the generator.

The sampling parameters are fields of every generation request, under the names and with the types of `SamplingParams`.
"""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from typing import Annotated, Any, Literal, Self, TypeVar, get_type_hints

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictInt, StrictStr, create_model, model_validator

from maskpro_deploy.runtime.generate.sampling_params import MAX_LOGPROBS, SamplingParams
from maskpro_deploy.runtime.generate.tokenizer import TextTokenizer
from maskpro_deploy.runtime.http.api_errors import invalid_request

MAX_CHOICES = 128
_DEFAULT_COMPLETION_TOKENS = 16  # what OpenAI's API says

# parameters that each API asks for in its own way
_ASKED_OTHERWISE = ("max_tokens", "logprobs", "prompt_logprobs")
SAMPLING_FIELDS = {f.name: f for f in dataclasses.fields(SamplingParams) if f.name not in _ASKED_OTHERWISE}
# other spellings that clients use
_SPELLINGS = {
    "top_k": lambda value: 0 if value == -1 else value,  # vLLM's sign for all
    "stop": lambda value: [value] if isinstance(value, str) else value,
}

# lists whose validation stops at the first error
Texts = Annotated[list[StrictStr], Field(fail_fast=True)]
Tokens = Annotated[list[StrictInt], Field(fail_fast=True)]
_RESERVED = ("messages", "tools", "documents", "bos_token", "eos_token")  # what a template gets from elsewhere

R = TypeVar("R", bound=BaseModel)


def accept_sampling_parameters(request: type[R]) -> type[R]:
    """A class decorator: the request has a field for each sampling parameter; None means the default."""
    types: dict[str, Any] = get_type_hints(SamplingParams)
    fields: dict[str, Any] = {}
    for name, parameter in SAMPLING_FIELDS.items():
        kind = types[name] | None
        if name in _SPELLINGS:
            kind = Annotated[kind, BeforeValidator(_SPELLINGS[name])]
        fields[name] = (kind, Field(default=None, description=parameter.metadata["help"]))
    return create_model(request.__name__, __base__=request, __module__=request.__module__, __doc__=request.__doc__, **fields)


class Asked(BaseModel):
    """What a client sends; a field that is null has its default."""

    @model_validator(mode="before")
    @classmethod
    def _omit_nulls(cls, value: Any) -> Any:
        return {k: v for k, v in value.items() if v is not None} if isinstance(value, dict) else value


class StreamOptions(Asked):
    """What a stream carries in addition to the answer."""

    include_usage: bool = False


@accept_sampling_parameters
class GenerationRequest(Asked):
    """What both APIs have in common; None means the default."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False, protected_namespaces=())

    model: str | None = None
    max_tokens: int | None = None
    n: int = Field(default=1, ge=1, le=MAX_CHOICES)
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

    @abstractmethod
    def encode_prompts(self, tokenizer: TextTokenizer, most: int) -> list[list[int]]:
        """The tokens of each prompt, of which there may be so many.

        Raises:
            ApiError: one is empty.
            InputError: one cannot be turned into tokens, or has more.
        """

    @abstractmethod
    def answer_tokens(self, room: int, default: int | None) -> int:
        """How long the answer may get, given the room that the longest prompt leaves; `default` is of chats that do not say."""

    @property
    @abstractmethod
    def wanted_logprobs(self) -> tuple[int | None, int | None]:
        """How many of the likeliest tokens to report, for the answer and for the prompt; None for nothing."""

    @property
    def repeats_prompt(self) -> bool:
        """Whether answers begin with their prompts."""
        return False

    def sampling(self, room: int, *, limit: int | None = None, default: int | None = None) -> SamplingParams:
        """The sampling parameters, given the room that the longest prompt leaves.

        `limit` is the most tokens of an answer, `default` those of a chat that does not say. A SamplingError if a parameter is
        out of its range.
        """
        given: dict[str, Any] = {name: value for name in SAMPLING_FIELDS if (value := getattr(self, name)) is not None}
        logprobs, prompt_logprobs = self.wanted_logprobs
        tokens = self.answer_tokens(room, default)
        tokens = tokens if limit is None else min(tokens, limit)
        return SamplingParams(max_tokens=tokens, logprobs=logprobs, prompt_logprobs=prompt_logprobs, **given)


class CompletionRequest(GenerationRequest):
    """POST /v1/completions."""

    prompt: Annotated[str | Texts | Tokens | Annotated[list[Tokens], Field(fail_fast=True)], Field(union_mode="left_to_right")]
    echo: bool = False
    logprobs: int | None = None
    add_special_tokens: bool = True

    def encode_prompts(self, tokenizer: TextTokenizer, most: int) -> list[list[int]]:
        """The prompt comes in one of four forms."""
        given = [self.prompt] if isinstance(self.prompt, str) else self.prompt
        if not given:
            raise invalid_request("the prompt is empty.", "invalid_value", "prompt")
        if isinstance(given[0], int):  # the list is one prompt's tokens
            return [[t for t in given if isinstance(t, int)]]
        if isinstance(given[0], str):
            texts = [text for text in given if isinstance(text, str)]
            prompts = tokenizer.encode_all(texts, add_special_tokens=self.add_special_tokens, most=most)
        else:
            prompts = [tokens for tokens in given if isinstance(tokens, list)]
        if not all(prompts):
            raise invalid_request("a prompt is empty: it has no tokens.", "invalid_value", "prompt")
        return prompts

    def answer_tokens(self, room: int, default: int | None) -> int:
        return min(_DEFAULT_COMPLETION_TOKENS, max(room, 1)) if self.max_tokens is None else self.max_tokens

    @property
    def wanted_logprobs(self) -> tuple[int | None, int | None]:
        return self.logprobs, self.logprobs if self.echo else None

    @property
    def repeats_prompt(self) -> bool:
        return self.echo


class TextPart(Asked):
    """One part of a message's content; only text is read."""

    type: Literal["text"]
    text: str

    @model_validator(mode="before")
    @classmethod
    def _refuse_others(cls, value: Any) -> Any:
        kind = value.get("type") if isinstance(value, dict) else None
        if isinstance(kind, str) and kind != "text":
            raise ValueError(f"{_name_medium(kind)} are not supported: this model reads text")
        return value


def _name_medium(kind: str) -> str:
    """What parts of a kind are, in a word: "images" for `image_url` and `input_image`."""
    return next((f"{medium}s" for medium in ("image", "video", "file") if medium in kind), f"parts of the type {kind[:40]!r}")


class Message(Asked):
    """One message of a conversation; what it says of tools goes to the template."""

    model_config = ConfigDict(extra="allow")

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Annotated[list[TextPart], Field(fail_fast=True)] | None = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None

    def for_template(self) -> dict[str, object]:
        """What a chat template reads."""
        content = self.content if isinstance(self.content, str) else "".join(p.text for p in self.content or ())
        more = {"name": self.name, "tool_calls": self.tool_calls, "tool_call_id": self.tool_call_id}
        role = "system" if self.role == "developer" else self.role
        return {"role": role, "content": content} | {key: value for key, value in more.items() if value}


class ChatRequest(GenerationRequest):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(fail_fast=True)] = Field(min_length=1)
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
        if taken := [name for name in _RESERVED if name in (self.chat_template_kwargs or {})]:
            raise ValueError(f"chat_template_kwargs may not name {taken[0]}, which the template gets from elsewhere")
        return self

    def encode_prompts(self, tokenizer: TextTokenizer, most: int) -> list[list[int]]:
        """The conversation is one prompt."""
        variables = {"add_generation_prompt": self.add_generation_prompt, **(self.chat_template_kwargs or {})}
        text = tokenizer.render([m.for_template() for m in self.messages], variables)
        return tokenizer.encode_all([text], add_special_tokens=self.add_special_tokens, most=most)

    def answer_tokens(self, room: int, default: int | None) -> int:
        """Without a wish, the default, or as long as there is room."""
        wanted = self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens
        if wanted is not None:
            return wanted
        return max(room, 1) if default is None else max(min(room, default), 1)

    @property
    def wanted_logprobs(self) -> tuple[int | None, int | None]:
        return ((self.top_logprobs or 0) if self.logprobs else None), None


class TokenizeRequest(Asked):
    """POST /tokenize: a text, or messages for the chat template."""

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[Message], Field(fail_fast=True)] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool = True

    @model_validator(mode="after")
    def _check_one(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give either prompt or messages")
        return self

    def encode(self, tokenizer: TextTokenizer) -> list[int]:
        """The tokens; an InputError if the text or the messages cannot be turned into them.

        There is no limit but that of a body: they are counted, not read.
        """
        text = self.prompt or ""
        if self.messages is not None:
            messages = [m.for_template() for m in self.messages]
            text = tokenizer.render(messages, {"add_generation_prompt": self.add_generation_prompt})
        # a template writes its own special tokens
        special = self.add_special_tokens if self.add_special_tokens is not None else self.messages is None
        return tokenizer.encode(text, add_special_tokens=special)


class DetokenizeRequest(Asked):
    """POST /detokenize."""

    model: str | None = None
    tokens: Tokens
