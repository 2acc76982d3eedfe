"""What clients may ask: OpenAI's fields and vLLM's extras, and what each request means for the generator.

The sampling parameters are fields of every generation request, under the names and with the types of `SamplingParams`.
"""

from __future__ import annotations

import dataclasses
import math
from abc import abstractmethod
from typing import Annotated, Any, Self, TypeVar, get_type_hints

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictInt, StrictStr, create_model, model_validator

from maskpro_deploy.runtime.generate.grammar_compiler import GrammarCompiler
from maskpro_deploy.runtime.generate.grammars import Grammar
from maskpro_deploy.runtime.generate.model_defaults import ModelDefaults
from maskpro_deploy.runtime.generate.sampling_params import Range, SamplingParams
from maskpro_deploy.runtime.generate.tokenizer import TextTokenizer
from maskpro_deploy.runtime.http.api.structured import StructuredFields, find_grammar

MAX_CHOICES = 128

# parameters that each API asks for in its own way
_ASKED_OTHERWISE = ("max_tokens", "logprobs", "prompt_logprobs")
SAMPLING_FIELDS = {f.name: f for f in dataclasses.fields(SamplingParams) if f.name not in _ASKED_OTHERWISE}
# other spellings that clients use, and what is taken then
_SPELLINGS = {
    # vLLM's sign for all
    "top_k": BeforeValidator(
        lambda value: 0 if value == -1 else value, json_schema_input_type=Annotated[int, Field(ge=-1)] | None
    ),
    "stop": BeforeValidator(
        lambda value: [value] if isinstance(value, str) else value, json_schema_input_type=str | list[str] | None
    ),
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
            kind = Annotated[kind, _SPELLINGS[name]]
        limits = {} if name in _SPELLINGS else _describe_range(parameter.metadata["range"])
        fields[name] = (kind, Field(default=None, description=parameter.metadata["help"], json_schema_extra=limits))
    return create_model(request.__name__, __base__=request, __module__=request.__module__, __doc__=request.__doc__, **fields)


def _describe_range(allowed: Range | None) -> dict[str, Any]:
    """A range as JSON schemas have it; `SamplingParams` checks it."""
    if allowed is None:
        return {}
    least = {"exclusiveMinimum" if allowed.open_low else "minimum": allowed.low}
    return least if allowed.high == math.inf else {**least, "maximum": allowed.high}


class Asked(BaseModel):
    """What a client sends; a field that is null has its default."""

    @model_validator(mode="before")
    @classmethod
    def _omit_nulls(cls, value: Any) -> Any:
        return {k: v for k, v in value.items() if v is not None} if isinstance(value, dict) else value


class StreamOptions(Asked):
    """What a stream carries in addition to the answer."""

    include_usage: bool = Field(default=False, description="End with the token counts.")


@accept_sampling_parameters
class GenerationRequest(StructuredFields, Asked):
    """What both APIs have in common; None means the default."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False, protected_namespaces=())

    model: str | None = Field(default=None, description="Name of the model; whatever is served without it.")
    max_tokens: int | None = Field(default=None, description="Most tokens of an answer.", json_schema_extra={"minimum": 0})
    n: int = Field(default=1, ge=1, le=MAX_CHOICES, description="Answers to each prompt.")
    stream: bool | None = Field(default=None, description="Answer with server-sent events.")
    stream_options: StreamOptions | None = Field(default=None, description="What a stream carries; needs stream.")
    user: str | None = Field(default=None, description="Not used.")

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
    def answer_tokens(self, room: int, default: int | None, model: int | None) -> int:
        """How long the answer may get, given the room that the longest prompt leaves.

        Of requests that do not say, `default` is the operator's wish for chats, `model` the model's own.
        """

    @property
    @abstractmethod
    def wanted_logprobs(self) -> tuple[int | None, int | None]:
        """How many of the likeliest tokens to report, for the answer and for the prompt; None for nothing."""

    def repeat(self, params: SamplingParams) -> dict[str, object]:
        """What an answer says of its request; `params` are what it was answered with."""
        return {}

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

    def sampling(
        self, room: int, *, limit: int | None = None, default: int | None = None, model: ModelDefaults | None = None
    ) -> SamplingParams:
        """The sampling parameters, given the room that the longest prompt leaves.

        `limit` is the most tokens of an answer, `default` those of a chat that does not say, `model` what counts where neither
        does. A SamplingError if a parameter is out of its range.
        """
        model = model or ModelDefaults()
        given: dict[str, Any] = {name: value for name in SAMPLING_FIELDS if (value := getattr(self, name)) is not None}
        given = {**model.sampling, **given}
        logprobs, prompt_logprobs = self.wanted_logprobs
        tokens = self.answer_tokens(room, default, model.max_tokens)
        tokens = tokens if limit is None else min(tokens, limit)
        return SamplingParams(max_tokens=tokens, logprobs=logprobs, prompt_logprobs=prompt_logprobs, **given)


def tokens_of_turn(wanted: int | None, room: int, default: int | None, model: int | None) -> int:
    """How long a turn of a conversation may get: as it wishes, else the first default there is, or as long as there is room."""
    if wanted is not None:
        return wanted
    first = default if default is not None else model
    return max(room if first is None else min(room, first), 1)
