"""What clients get back: completions and chat completions, whole or as the chunks of a stream.

Both APIs say the same in different shapes; a `Format` turns events and finished answers into one of them.
"""

from __future__ import annotations

import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from maskpro_deploy.runtime.generate.sampling import Score
from maskpro_deploy.runtime.generate.sequence import Completion, Event, PromptEvent, TokenEvent
from maskpro_deploy.runtime.generate.tokenizer import TextTokenizer

Json = dict[str, object]


def usage(prompt_tokens: int, completion_tokens: int) -> Json:
    """Token counts."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


@dataclass(kw_only=True)
class Format(ABC):
    """The shape of one API's answers."""

    model: str  # the name that clients use
    tokenizer: TextTokenizer  # gives the text of single tokens
    n: int = 1  # answers to each prompt
    logprobs: bool = False  # whether log-probabilities were asked for
    include_usage: bool = False  # whether chunks carry a `usage` field
    echo: Sequence[str] | None = None  # the prompts' texts, to be put before each answer; None without echo
    id: str = field(init=False)
    created: int = field(init=False)

    id_prefix: ClassVar[str]
    object: ClassVar[str]
    chunk_object: ClassVar[str]

    def __post_init__(self) -> None:
        self.id = f"{self.id_prefix}-{uuid.uuid4().hex}"
        self.created = int(time.time())

    def chunk(self, event: Event) -> Json | None:
        """One event of a stream; None if it has nothing to say."""
        choice = self._chunk_choice(event)
        return None if choice is None else self._chunk([choice])

    def usage_chunk(self, counts: Json) -> Json:
        """The last chunk of a stream that was asked for its token counts."""
        return self._chunk([]) | {"usage": counts}

    def whole(self, answers: Sequence[Completion], counts: Json) -> Json:
        """The answer to a request without stream."""
        choices = [self._whole_choice(index, answer) for index, answer in enumerate(answers)]
        return self._envelope(self.object, choices) | {"usage": counts}

    @abstractmethod
    def _chunk_choice(self, event: Event) -> Json | None:
        """The choice of one event; None if it has nothing to say."""

    @abstractmethod
    def _whole_choice(self, index: int, answer: Completion) -> Json:
        """The choice of one finished answer."""

    def _chunk(self, choices: list[Json]) -> Json:
        value = self._envelope(self.chunk_object, choices)
        if self.include_usage:
            value["usage"] = None
        return value

    def _envelope(self, kind: str, choices: list[Json]) -> Json:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": choices}


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
        pieces = [self.tokenizer.piece(s.token) for s in scores]
        offsets: list[int] = []
        for piece in pieces:
            offsets.append(offset)
            offset += len(piece)
        tops = [{self.tokenizer.piece(t): lp for t, lp in s.top} if s.logprob is not None else None for s in scores]
        return {"tokens": pieces, "token_logprobs": [s.logprob for s in scores], "top_logprobs": tops, "text_offset": offsets}


@dataclass(kw_only=True)
class ChatFormat(Format):
    """Answers of /v1/chat/completions; the first chunk of each choice names the role."""

    _started: set[int] = field(default_factory=set)

    id_prefix = "chatcmpl"
    object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def _chunk_choice(self, event: Event) -> Json:
        assert isinstance(event, TokenEvent)
        delta: Json = {"content": event.text}
        if event.choice not in self._started:
            self._started.add(event.choice)
            delta = {"role": "assistant", **delta}
        return self._choice(event.choice, {"delta": delta}, [event.score] if event.score else [], event.finish_reason)

    def _whole_choice(self, index: int, answer: Completion) -> Json:
        message = {"role": "assistant", "content": answer.text, "refusal": None}
        return self._choice(index, {"message": message}, answer.scores, answer.finish_reason)

    def _choice(self, index: int, content: Json, scores: Sequence[Score], finish_reason: str | None) -> Json:
        logprobs = self._logprobs(scores) if self.logprobs else None
        return {"index": index, **content, "logprobs": logprobs, "finish_reason": finish_reason}

    def _logprobs(self, scores: Sequence[Score]) -> Json:
        def entry(token: int, logprob: float | None) -> Json:
            return {"token": self.tokenizer.piece(token), "logprob": logprob, "bytes": list(self.tokenizer.token_bytes(token))}

        return {
            "content": [entry(s.token, s.logprob) | {"top_logprobs": [entry(t, lp) for t, lp in s.top]} for s in scores],
            "refusal": None,
        }
