"""What clients may ask: OpenAI's fields and vLLM's extras, and what each request means for the generator.

The sampling parameters are fields of every generation request, under the names and with the types of `SamplingParams`.
"""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from typing import Annotated, Any, Self, TypeVar, get_type_hints

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictInt, StrictStr, create_model, model_validator

from maskpro_deploy.runtime.generate.grammar_compiler import GrammarCompiler
from maskpro_deploy.runtime.generate.grammars import Grammar
from maskpro_deploy.runtime.generate.sampling_params import SamplingParams
from maskpro_deploy.runtime.generate.tokenizer import TextTokenizer
from maskpro_deploy.runtime.http.api.structured import StructuredFields, find_grammar

MAX_CHOICES = 128

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
class GenerationRequest(StructuredFields, Asked):
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

    def find_grammar(self, tokenizer: TextTokenizer, compiler: GrammarCompiler) -> Grammar | None:
        """What the answers may be; None for anything. A GrammarError if what was asked is no form of answers."""
        return find_grammar(self)

    def finish_sampling(self, params: SamplingParams) -> SamplingParams:
        """The sampling parameters, as what was asked besides them needs them."""
        return params

    @property
    def format_options(self) -> dict[str, Any]:
        """What the shape of the answers needs to know in addition."""
        return {}

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
