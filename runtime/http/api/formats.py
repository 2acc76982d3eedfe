"""What clients get back, whole or as the parts of a stream.

The APIs say the same in different shapes; an `AnswerFormat` turns events and finished answers into one of them. Completions and
chats share more: a `Format` has a choice for each answer.
"""

from __future__ import annotations

import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from maskpro_deploy.runtime.generate.sequence import Completion, Event
from maskpro_deploy.runtime.generate.tokenizer import TextTokenizer

Json = dict[str, object]


def usage(prompt_tokens: int, completion_tokens: int, cached_tokens: int = 0) -> Json:
    """Token counts; `cached_tokens` of the prompts were not read, because they were kept."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": cached_tokens},
    }


@dataclass(kw_only=True)
class AnswerFormat(ABC):
    """The shape of one API's answers."""

    model: str  # the name that clients use
    tokenizer: TextTokenizer  # gives the text of single tokens
    n: int = 1  # answers to each prompt
    logprobs: bool = False  # whether log-probabilities were asked for
    include_usage: bool = False  # whether chunks carry a `usage` field
    echo: Sequence[str] | None = None  # the prompts' texts, to be put before each answer; None without echo
    repeated: Json = field(default_factory=dict)  # what an answer says of its request
    id: str = field(init=False)
    created: int = field(init=False)

    ends_with_done: ClassVar[bool] = True  # whether "[DONE]" follows a stream's last part

    @abstractmethod
    def whole(self, answers: Sequence[Completion], counts: Json) -> Json:
        """The answer to a request without stream."""

    def opening(self) -> Iterator[Json]:
        """What a stream says before anything is generated."""
        return iter(())

    @abstractmethod
    def pieces(self, event: Event) -> Iterator[Json]:
        """What a stream says of one event."""

    @abstractmethod
    def closing(self, counts: Json) -> Iterator[Json]:
        """What a stream says after the last event."""

    def failure(self, error: Json) -> Iterator[Json]:
        """What a stream says instead, if the answer cannot be finished."""
        return iter((error,))

    def score_entry(self, token: int, logprob: float | None) -> Json:
        """One token with its log-probability."""
        return {"token": self.tokenizer.piece(token), "logprob": logprob, "bytes": list(self.tokenizer.token_bytes(token))}


@dataclass(kw_only=True)
class Format(AnswerFormat):
    """The shape of answers with choices."""

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

    def pieces(self, event: Event) -> Iterator[Json]:
        """One chunk at most."""
        if (chunk := self.chunk(event)) is not None:
            yield chunk

    def closing(self, counts: Json) -> Iterator[Json]:
        """The token counts, if asked for."""
        if self.include_usage:
            yield self.usage_chunk(counts)

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
