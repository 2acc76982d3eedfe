"""Completions: what POST /v1/completions takes and answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

from pydantic import Field

from maskpro_deploy.runtime.generate.sampling import Score
from maskpro_deploy.runtime.generate.sampling_params import MAX_LOGPROBS
from maskpro_deploy.runtime.generate.sequence import Completion, Event, PromptEvent, TokenEvent
from maskpro_deploy.runtime.generate.tokenizer import TextTokenizer
from maskpro_deploy.runtime.http.api.errors import invalid_request
from maskpro_deploy.runtime.http.api.formats import Format, Json
from maskpro_deploy.runtime.http.api.requests import GenerationRequest, Texts, Tokens

_DEFAULT_TOKENS = 16  # what OpenAI's API says


class CompletionRequest(GenerationRequest):
    """POST /v1/completions."""

    prompt: Annotated[str | Texts | Tokens | Annotated[list[Tokens], Field(fail_fast=True)], Field(union_mode="left_to_right")]
    echo: bool = Field(default=False, description="Begin answers with their prompts.")
    logprobs: int | None = Field(
        default=None,
        description="Report so many of the likeliest tokens with the chosen one.",
        json_schema_extra={"minimum": 0, "maximum": MAX_LOGPROBS},
    )
    add_special_tokens: bool = Field(default=True, description="Add the tokenizer's special tokens to texts.")

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

    def answer_tokens(self, room: int, default: int | None, model: int | None) -> int:
        return min(model or _DEFAULT_TOKENS, max(room, 1)) if self.max_tokens is None else self.max_tokens

    @property
    def wanted_logprobs(self) -> tuple[int | None, int | None]:
        return self.logprobs, self.logprobs if self.echo else None

    @property
    def repeats_prompt(self) -> bool:
        return self.echo


@dataclass(kw_only=True)
class CompletionFormat(Format):
    """Answers of /v1/completions."""

    _offsets: dict[int, int] = field(default_factory=dict)  # characters given out by choice
    _prompt_scores: dict[int, tuple[Score, ...]] = field(default_factory=dict)

    id_prefix = "cmpl"
    object = "text_completion"
    chunk_object = "text_completion"

    def _chunk_choice(self, event: Event) -> Json | None:
        assert isinstance(event, TokenEvent | PromptEvent)
        if isinstance(event, PromptEvent):  # goes out with the first token
            self._prompt_scores[event.choice] = event.scores
            return None
        text, scores = event.text, [event.score] if event.score else []
        offset = self._offsets.get(event.choice)
        if offset is None:
            offset = 0
            text = self._echo(event.choice) + text
            scores = [*self._prompt_scores.pop(event.choice, ()), *scores]
        self._offsets[event.choice] = offset + len(text)
        return self._choice(event.choice, text, scores, offset, event.finish_reason)

    def _whole_choice(self, index: int, answer: Completion) -> Json:
        scores = [*answer.prompt_scores, *answer.scores]
        return self._choice(index, self._echo(index) + answer.text, scores, 0, answer.finish_reason)

    def _choice(self, index: int, text: str, scores: Sequence[Score], offset: int, finish_reason: str | None) -> Json:
        logprobs = self._logprobs(scores, offset) if self.logprobs else None
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}

    def _echo(self, choice: int) -> str:
        return self.echo[choice // self.n] if self.echo is not None else ""

    def _logprobs(self, scores: Sequence[Score], offset: int) -> Json:
        named = {t for s in scores for t in (s.token, *(likely for likely, _ in s.top))}
        piece_of = {token: self.tokenizer.piece(token) for token in named}
        pieces = [piece_of[s.token] for s in scores]
        offsets: list[int] = []
        for piece in pieces:
            offsets.append(offset)
            offset += len(piece)
        tops = [{piece_of[t]: lp for t, lp in s.top} if s.logprob is not None else None for s in scores]
        return {"tokens": pieces, "token_logprobs": [s.logprob for s in scores], "top_logprobs": tops, "text_offset": offsets}
