"""What clients get back: completions and chat completions, whole or as the chunks of a stream.

Both APIs say the same in different shapes; a `Format` turns events and finished answers into one of them.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from maskpro_deploy.runtime.generate.completion import Completion
from maskpro_deploy.runtime.generate.sampling import Score
from maskpro_deploy.runtime.generate.sequence import Event, PromptEvent, TokenEvent
from maskpro_deploy.runtime.generate.tokenizer import TextTokenizer

Json = dict[str, object]


def usage(prompt_tokens: int, completion_tokens: int) -> Json:
    """Token counts."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


class Format(Protocol):
    """The shape of one API's answers."""

    def chunk(self, event: Event) -> Json | None:
        """One event of a stream; None if it has nothing to say."""

    def usage_chunk(self, counts: Json) -> Json:
        """The last chunk of a stream that was asked for its token counts."""

    def whole(self, answers: Sequence[Completion], counts: Json) -> Json:
        """The answer to a request without stream."""


@dataclass(kw_only=True)
class _Answer:
    """What all answers carry.

    Attributes:
        model: the name that clients use.
        tokenizer: gives the text of single tokens.
        n: answers to each prompt.
        logprobs: whether log-probabilities were asked for.
        include_usage: whether chunks carry a `usage` field.
    """

    model: str
    tokenizer: TextTokenizer
    n: int = 1
    logprobs: bool = False
    include_usage: bool = False
    id: str
    object: str
    created: int = field(default_factory=lambda: int(time.time()))

    def envelope(self, kind: str, choices: list[Json], *, chunk: bool) -> Json:
        value: Json = {"id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": choices}
        if chunk and self.include_usage:
            value["usage"] = None
        return value


@dataclass(kw_only=True)
class CompletionFormat(_Answer):
    """Answers of /v1/completions.

    Attributes:
        echo: the prompts' texts, to be put before each answer; None without echo.
    """

    id: str = field(default_factory=lambda: f"cmpl-{uuid.uuid4().hex}")
    object: str = "text_completion"
    echo: Sequence[str] | None = None
    _offsets: dict[int, int] = field(default_factory=dict)  # characters given out by choice
    _prompt_scores: dict[int, tuple[Score, ...]] = field(default_factory=dict)

    def chunk(self, event: Event) -> Json | None:
        """See `Format.chunk`."""
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
        choice: Json = {
            "index": event.choice,
            "text": text,
            "logprobs": self._logprobs(scores, offset) if self.logprobs else None,
            "finish_reason": event.finish_reason,
        }
        self._offsets[event.choice] = offset + len(text)
        return self.envelope(self.object, [choice], chunk=True)

    def usage_chunk(self, counts: Json) -> Json:
        """See `Format.usage_chunk`."""
        return self.envelope(self.object, [], chunk=True) | {"usage": counts}

    def whole(self, answers: Sequence[Completion], counts: Json) -> Json:
        """See `Format.whole`."""
        choices: list[Json] = [
            {
                "index": index,
                "text": self._echo(index) + answer.text,
                "logprobs": self._logprobs([*answer.prompt_scores, *answer.scores], 0) if self.logprobs else None,
                "finish_reason": answer.finish_reason,
            }
            for index, answer in enumerate(answers)
        ]
        return self.envelope(self.object, choices, chunk=False) | {"usage": counts}

    def _echo(self, choice: int) -> str:
        return self.echo[choice // self.n] if self.echo is not None else ""

    def _logprobs(self, scores: Sequence[Score], offset: int) -> Json:
        pieces = [self.tokenizer.piece(s.token) for s in scores]
        offsets: list[int] = []
        for piece in pieces:
            offsets.append(offset)
            offset += len(piece)
        tops = [{self.tokenizer.piece(t): lp for t, lp in s.top} if s.logprob is not None else None for s in scores]
        return {
            "tokens": pieces,
            "token_logprobs": [s.logprob for s in scores],
            "top_logprobs": tops,
            "text_offset": offsets,
        }


@dataclass(kw_only=True)
class ChatFormat(_Answer):
    """Answers of /v1/chat/completions."""

    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    object: str = "chat.completion"
    _started: set[int] = field(default_factory=set)

    def chunk(self, event: Event) -> Json | None:
        """See `Format.chunk`; the first chunk of each choice names the role."""
        assert isinstance(event, TokenEvent)
        delta: Json = {"content": event.text}
        if event.choice not in self._started:
            self._started.add(event.choice)
            delta = {"role": "assistant", **delta}
        choice: Json = {
            "index": event.choice,
            "delta": delta,
            "logprobs": self._logprobs([event.score] if event.score else []) if self.logprobs else None,
            "finish_reason": event.finish_reason,
        }
        return self.envelope(f"{self.object}.chunk", [choice], chunk=True)

    def usage_chunk(self, counts: Json) -> Json:
        """See `Format.usage_chunk`."""
        return self.envelope(f"{self.object}.chunk", [], chunk=True) | {"usage": counts}

    def whole(self, answers: Sequence[Completion], counts: Json) -> Json:
        """See `Format.whole`."""
        choices: list[Json] = [
            {
                "index": index,
                "message": {"role": "assistant", "content": answer.text, "refusal": None},
                "logprobs": self._logprobs(answer.scores) if self.logprobs else None,
                "finish_reason": answer.finish_reason,
            }
            for index, answer in enumerate(answers)
        ]
        return self.envelope(self.object, choices, chunk=False) | {"usage": counts}

    def _logprobs(self, scores: Sequence[Score]) -> Json:
        def entry(token: int, logprob: float | None) -> Json:
            return {
                "token": self.tokenizer.piece(token),
                "logprob": logprob,
                "bytes": list(self.tokenizer.token_bytes(token)),
            }

        return {
            "content": [entry(s.token, s.logprob) | {"top_logprobs": [entry(t, lp) for t, lp in s.top]} for s in scores],
            "refusal": None,
        }
