"""Responses: what POST /v1/responses takes. Nothing is stored, whatever `store` says: each request has its whole conversation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, StrictStr, model_validator

from maskpro_deploy.runtime.generate.grammar_compiler import GrammarCompiler
from maskpro_deploy.runtime.generate.grammars import Grammar, GrammarError
from maskpro_deploy.runtime.generate.sampling_params import MAX_LOGPROBS, SamplingParams
from maskpro_deploy.runtime.generate.tokenizer import TextTokenizer
from maskpro_deploy.runtime.http.api.chat import name_medium
from maskpro_deploy.runtime.http.api.errors import ApiError, invalid_request
from maskpro_deploy.runtime.http.api.formats import Json
from maskpro_deploy.runtime.http.api.requests import Asked, GenerationRequest, tokens_of_turn
from maskpro_deploy.runtime.http.api.structured import read_text_format

INCLUDE_LOGPROBS = "message.output_text.logprobs"
_STORED = "nothing is stored here: send the whole conversation as input"
# fields that ask for what this server does not do -> the values that ask for nothing, and what to do instead
REFUSED: dict[str, tuple[tuple[object, ...], str]] = {
    "previous_response_id": ((), _STORED),
    "conversation": ((), _STORED),
    "prompt": ((), "no prompts are stored here: send input and instructions"),
    "background": ((False,), "wait for the answer, or stream it"),
    "truncation": (("disabled",), "send what fits the context"),
    "reasoning": (({},), "the model answers without a separate reasoning"),
    "tools": (([],), "the model cannot call them"),
    "tool_choice": (("none", "auto"), "the model cannot call tools"),
    "n": ((1,), "a response is one answer"),
    "max_tokens": ((), "it is max_output_tokens here"),
    "logprobs": ((False,), f'ask for them with include: ["{INCLUDE_LOGPROBS}"]'),
}  # fmt: skip


class InputPart(Asked):
    """One part of a message's content; only text is read."""

    type: Literal["input_text", "output_text", "text"]
    text: str

    @model_validator(mode="before")
    @classmethod
    def _refuse_others(cls, value: Any) -> Any:
        kind = value.get("type") if isinstance(value, dict) else None
        if isinstance(kind, str) and kind not in ("input_text", "output_text", "text"):
            raise ValueError(f"{name_medium(kind)} are not supported: this model reads text")
        return value


class InputMessage(Asked):
    """One message of a conversation, also one of an earlier answer's `output`."""

    model_config = ConfigDict(extra="allow")

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[InputPart], Field(fail_fast=True)]

    @model_validator(mode="before")
    @classmethod
    def _refuse_others(cls, value: Any) -> Any:
        kind = value.get("type") if isinstance(value, dict) else None
        if isinstance(kind, str) and kind != "message":
            raise ValueError(f"items of the type {kind[:40]!r} are not supported: this server reads messages")
        return value

    def for_template(self) -> dict[str, object]:
        """What a chat template reads."""
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": content}


class TextFormat(Asked):
    """How the text of an answer is shaped."""

    model_config = ConfigDict(extra="allow")

    type: str = "text"


class TextSettings(Asked):
    """What the text of an answer is to be like."""

    format: TextFormat | None = None
    verbosity: str | None = None


def _omit_refused(schema: dict[str, Any]) -> None:
    """What every other request has and this one refuses."""
    for name in ("max_tokens", "n"):
        del schema["properties"][name]


class ResponsesRequest(GenerationRequest):
    """POST /v1/responses."""

    model_config = ConfigDict(json_schema_extra=_omit_refused)

    input: str | Annotated[list[InputMessage], Field(fail_fast=True, min_length=1)] = Field(
        description="A text, or the conversation so far."
    )
    instructions: str | None = Field(default=None, description="A system message that comes first.")
    max_output_tokens: int | None = Field(default=None, ge=1, description="Most tokens of the answer.")
    text: TextSettings | None = None
    metadata: dict[Annotated[str, Field(max_length=64)], Annotated[StrictStr, Field(max_length=512)]] | None = Field(
        default=None, max_length=16, description="Pairs that the response repeats."
    )
    include: Annotated[list[StrictStr], Field(fail_fast=True)] | None = Field(
        default=None, max_length=64, description=f"With {INCLUDE_LOGPROBS}, report log-probabilities."
    )
    top_logprobs: int | None = Field(
        default=None, ge=0, le=MAX_LOGPROBS, description="And those of so many of the likeliest tokens."
    )
    store: bool | None = Field(default=None, description="Nothing is stored, whatever it says.")
    parallel_tool_calls: bool | None = Field(default=None, description="Not used.")
    tool_choice: Literal["none", "auto"] | None = Field(default=None, description="Not used: the model cannot call tools.")

    @model_validator(mode="before")
    @classmethod
    def _refuse_unsupported(cls, value: Any) -> Any:
        if isinstance(value, dict):
            refuse_unsupported(value)
        return value

    @model_validator(mode="after")
    def _check_text(self) -> Self:
        if self.text is not None and self.text.verbosity not in (None, "medium"):
            raise _unsupported("text.verbosity is not supported by this server: ask for short or long answers in words.", "text")
        return self

    def find_grammar(self, tokenizer: TextTokenizer, compiler: GrammarCompiler) -> Grammar | None:
        form = super().find_grammar(tokenizer, compiler)
        asked = None if self.text is None or self.text.format is None else read_text_format(self.text.format.model_dump())
        if form is not None and asked is not None:
            raise GrammarError(f"an answer has one form: it cannot be used with {form.field}.", asked.field)
        return form or asked

    def encode_prompts(self, tokenizer: TextTokenizer, most: int) -> list[list[int]]:
        """Instructions and input are one prompt, in the form of the model's chats."""
        messages: list[dict[str, object]] = []
        if self.instructions is not None:
            messages.append({"role": "system", "content": self.instructions})
        if isinstance(self.input, str):
            messages.append({"role": "user", "content": self.input})
        else:
            messages += [message.for_template() for message in self.input]
        # a template writes its own special tokens
        return tokenizer.encode_all([tokenizer.render(messages)], add_special_tokens=False, most=most)

    def answer_tokens(self, room: int, default: int | None, model: int | None) -> int:
        return tokens_of_turn(self.max_output_tokens, room, default, model)

    @property
    def wanted_logprobs(self) -> tuple[int | None, int | None]:
        return ((self.top_logprobs or 0) if INCLUDE_LOGPROBS in (self.include or ()) else None), None

    @property
    def _text_format(self) -> Json:
        return {"type": "text"} if self.text is None or self.text.format is None else self.text.format.model_dump()

    def repeat(self, params: SamplingParams) -> Json:
        """What a response says of its request."""
        return {
            "background": False, "instructions": self.instructions, "max_output_tokens": self.max_output_tokens,
            "max_tool_calls": None, "metadata": self.metadata or {}, "parallel_tool_calls": self.parallel_tool_calls is not False,
            "previous_response_id": None, "reasoning": {"effort": None, "summary": None}, "service_tier": "default",
            "store": False, "temperature": params.temperature, "text": {"format": self._text_format},
            "tool_choice": self.tool_choice or "auto", "tools": [], "top_logprobs": self.top_logprobs or 0,
            "top_p": params.top_p, "truncation": "disabled", "user": self.user,
        }  # fmt: skip


def refuse_unsupported(fields: Mapping[str, Any]) -> None:
    """Refuse what this server does not do (ApiError); a field that is null, or asks for nothing, is welcome."""
    for field, (harmless, instead) in REFUSED.items():
        value = fields.get(field)
        if field == "reasoning" and isinstance(value, dict):
            value = {key: wish for key, wish in value.items() if wish not in (None, "none")}
        if value is not None and value not in harmless:
            raise _unsupported(f"{field} is not supported by this server: {instead}.", field)


def _unsupported(message: str, param: str) -> ApiError:
    return invalid_request(message, "unsupported_parameter", param)
