"""Texts as tokens and back: what POST /tokenize and /detokenize take."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from maskpro_deploy.runtime.generate.tokenizer import TextTokenizer
from maskpro_deploy.runtime.http.api.chat import Message
from maskpro_deploy.runtime.http.api.requests import Asked, Tokens

_PIECE = 1 << 14  # tokens, written within a millisecond or two


class TokenizeRequest(Asked):
    """POST /tokenize: a text, or messages for the chat template."""

    model: str | None = None
    prompt: str | None = Field(default=None, description="A text.")
    messages: Annotated[list[Message], Field(fail_fast=True)] | None = Field(
        default=None, description="Or messages for the chat template."
    )
    add_special_tokens: bool | None = Field(default=None, description="By default for texts only.")
    add_generation_prompt: bool = Field(default=True, description="Let the template begin the answer.")

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

    def answer(self, tokenizer: TextTokenizer, max_model_len: int) -> str:
        """The answer, as JSON; it may have millions of tokens, so other threads get their turn between pieces of them."""
        tokens = self.encode(tokenizer)
        pieces = [",".join(map(str, tokens[i : i + _PIECE])) for i in range(0, len(tokens), _PIECE)]
        return f'{{"count":{len(tokens)},"max_model_len":{max_model_len},"tokens":[{",".join(pieces)}]}}'


class DetokenizeRequest(Asked):
    """POST /detokenize."""

    model: str | None = None
    tokens: Tokens
