"""Chats: what POST /v1/chat/completions takes and answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, PrivateAttr, model_validator

from maskpro_deploy.runtime.generate.grammar_compiler import GrammarCompiler
from maskpro_deploy.runtime.generate.grammars import Grammar
from maskpro_deploy.runtime.generate.sampling import Score
from maskpro_deploy.runtime.generate.sampling_params import MAX_LOGPROBS, SamplingParams
from maskpro_deploy.runtime.generate.sequence import Completion, Event, TokenEvent
from maskpro_deploy.runtime.generate.tokenizer import TextTokenizer
from maskpro_deploy.runtime.http.api.formats import Format, Json
from maskpro_deploy.runtime.http.api.requests import Asked, GenerationRequest, tokens_of_turn
from maskpro_deploy.runtime.http.api.tool_use import ToolUse, calls_for_template, collect_calls, stream_calls
from maskpro_deploy.runtime.tools.reader import CallReader

_RESERVED = ("messages", "tools", "documents", "bos_token", "eos_token")  # what a template gets from elsewhere


class TextPart(Asked):
    """One part of a message's content; only text is read."""

    type: Literal["text"]
    text: str

    @model_validator(mode="before")
    @classmethod
    def _refuse_others(cls, value: Any) -> Any:
        kind = value.get("type") if isinstance(value, dict) else None
        if isinstance(kind, str) and kind != "text":
            raise ValueError(f"{name_medium(kind)} are not supported: this model reads text")
        return value


def name_medium(kind: str) -> str:
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
        calls = calls_for_template(self.tool_calls or [])
        more = {"name": self.name, "tool_calls": calls, "tool_call_id": self.tool_call_id}
        role = "system" if self.role == "developer" else self.role
        return {"role": role, "content": content} | {key: value for key, value in more.items() if value}


class ChatRequest(GenerationRequest):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(fail_fast=True)] = Field(min_length=1, description="The conversation so far.")
    max_completion_tokens: int | None = Field(
        default=None, description="Most tokens of an answer.", json_schema_extra={"minimum": 0}
    )
    logprobs: bool = Field(default=False, description="Report log-probabilities.")
    top_logprobs: int | None = Field(
        default=None, ge=0, le=MAX_LOGPROBS, description="And those of so many of the likeliest tokens; needs logprobs."
    )
    add_generation_prompt: bool = Field(default=True, description="Let the template begin the answer.")
    add_special_tokens: bool = Field(default=False, description="Add the tokenizer's special tokens to the template's.")
    chat_template_kwargs: dict[str, Any] | None = Field(default=None, description="Further variables of the template.")
    tools: list[dict[str, Any]] | None = Field(default=None, description="Functions that the model may call.")
    tool_choice: str | dict[str, Any] | None = Field(
        default=None, description='"auto", "none", "required", or the function that has to be called.'
    )
    parallel_tool_calls: bool = Field(default=True, description="Whether an answer may have several calls.")
    _tool_use: ToolUse | None = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _check_logprobs(self) -> Self:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs=true")
        if taken := [name for name in _RESERVED if name in (self.chat_template_kwargs or {})]:
            raise ValueError(f"chat_template_kwargs may not name {taken[0]}, which the template gets from elsewhere")
        return self

    def encode_prompts(self, tokenizer: TextTokenizer, most: int) -> list[list[int]]:
        """The conversation is one prompt."""
        self._tool_use = ToolUse.find(self.tools, self.tool_choice, tokenizer, parallel=self.parallel_tool_calls)
        variables = {"add_generation_prompt": self.add_generation_prompt, **(self.chat_template_kwargs or {})}
        tools = self._tool_use.offer.definitions if self._tool_use else ()
        text = tokenizer.render([m.for_template() for m in self.messages], variables, tools)
        return tokenizer.encode_all([text], add_special_tokens=self.add_special_tokens, most=most)

    def find_grammar(self, tokenizer: TextTokenizer, compiler: GrammarCompiler) -> Grammar | None:
        form = super().find_grammar(tokenizer, compiler)
        return form if self._tool_use is None else self._tool_use.find_grammar(compiler, form)

    def finish_sampling(self, params: SamplingParams) -> SamplingParams:
        return params if self._tool_use is None else self._tool_use.show_marker(params)

    @property
    def format_options(self) -> dict[str, Any]:
        return {"tool_use": self._tool_use}

    def answer_tokens(self, room: int, default: int | None, model: int | None) -> int:
        wanted = self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens
        return tokens_of_turn(wanted, room, default, model)

    @property
    def wanted_logprobs(self) -> tuple[int | None, int | None]:
        return ((self.top_logprobs or 0) if self.logprobs else None), None


@dataclass(kw_only=True)
class ChatFormat(Format):
    """Answers of /v1/chat/completions; the first chunk of each choice names the role."""

    tool_use: ToolUse | None = None  # the functions that answers may call
    _started: set[int] = field(default_factory=set)
    _readers: dict[int, CallReader] = field(default_factory=dict)  # of each choice, where it may call functions

    id_prefix = "chatcmpl"
    object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def _chunk_choice(self, event: Event) -> Json | None:
        assert isinstance(event, TokenEvent)
        delta, reason = self._read_calls(event) if self.tool_use else ({"content": event.text}, event.finish_reason)
        if event.choice not in self._started:
            self._started.add(event.choice)
            delta = {"role": "assistant", "content": None, **delta}
        elif not (delta or reason or self.logprobs):
            return None
        return self._choice(event.choice, {"delta": delta}, [event.score] if event.score else [], reason)

    def _read_calls(self, event: TokenEvent) -> tuple[Json, str | None]:
        """What is new of an answer that may call functions, and why it ended."""
        assert self.tool_use is not None
        reader = self._readers.setdefault(event.choice, self.tool_use.reader())
        return stream_calls(reader, event.text, event.finish_reason)

    def _whole_choice(self, index: int, answer: Completion) -> Json:
        message: Json = {"role": "assistant", "content": answer.text, "refusal": None}
        reason = answer.finish_reason
        if self.tool_use is not None:
            delta, reason = collect_calls(self.tool_use.reader(), answer.text, reason)
            message |= delta
        return self._choice(index, {"message": message}, answer.scores, reason)

    def _choice(self, index: int, content: Json, scores: Sequence[Score], finish_reason: str | None) -> Json:
        logprobs = self._logprobs(scores) if self.logprobs else None
        return {"index": index, **content, "logprobs": logprobs, "finish_reason": finish_reason}

    def _logprobs(self, scores: Sequence[Score]) -> Json:
        entry = self.score_entry
        return {
            "content": [entry(s.token, s.logprob) | {"top_logprobs": [entry(t, lp) for t, lp in s.top]} for s in scores],
            "refusal": None,
        }
