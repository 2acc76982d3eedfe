"""One answer in the making: its tokens, its text, and the events that its owner sees.

A request for `n` answers to one prompt is `n` sequences. A sequence is touched by the generator's thread only.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from maskpro_deploy.errors import MaskProError
from maskpro_deploy.manifest import ModelShape
from maskpro_deploy.runtime.generate.sampling import Floats, Sampler, Score, score
from maskpro_deploy.runtime.generate.sampling_params import SamplingParams
from maskpro_deploy.runtime.generate.streaming_text import Detokenizer, StopFilter
from maskpro_deploy.runtime.generate.tokenizer import TextTokenizer

STOP, LENGTH, ABORT = "stop", "length", "abort"


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenEvent:
    """One more token of an answer, or its end.

    Attributes:
        choice: which answer of the request.
        score: the token with its log-probabilities; None if the end came without one.
        text: what is settled of the text now; may be empty, may hold characters of earlier tokens.
        finish_reason: "stop", "length" or "abort" in the last event, else None.
    """

    choice: int
    score: Score | None
    text: str
    finish_reason: str | None = None

    @property
    def last(self) -> bool:
        """Whether nothing follows for this choice."""
        return self.finish_reason is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptEvent:
    """Log-probabilities of the prompt's own tokens; the first has none. Comes before the first token, if asked for."""

    choice: int
    scores: tuple[Score, ...]
    last: ClassVar[bool] = False


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureEvent:
    """The answer cannot be finished; nothing follows."""

    choice: int
    error: MaskProError
    last: ClassVar[bool] = True


Event = TokenEvent | PromptEvent | FailureEvent
Sink = Callable[[Event], None]


@dataclass(slots=True)
class Times:
    """When things happened, in seconds of `time.perf_counter`; 0.0 for not yet."""

    arrived: float = field(default_factory=time.perf_counter)
    started: float = 0.0
    first_token: float = 0.0
    last_token: float = 0.0


class GenerationSequence:
    """One prompt with its growing answer.

    Args:
        prompt: its tokens, at least one.
        params: how to continue it.
        shape: the model's sizes and special tokens.
        tokenizer: turns tokens into text.
        choice: number of this answer within its request (reported in events).
        draw: number of this answer among those to the same prompt (keeps their random numbers apart).
        sink: takes the events, on the generator's thread.
    """

    def __init__(
        self,
        prompt: Sequence[int],
        params: SamplingParams,
        shape: ModelShape,
        tokenizer: TextTokenizer,
        sink: Sink,
        *,
        choice: int = 0,
        draw: int = 0,
    ) -> None:
        self.prompt = tuple(prompt)
        self.params = params
        self.choice = choice
        self.sink = sink
        self.times = Times()
        self.tokens: list[int] = []
        self.finish_reason: str | None = None
        self.prompt_scores: list[Score] = []
        eos = () if params.ignore_eos else shape.eos_token_ids
        self._end_tokens = frozenset((*eos, *params.stop_token_ids))
        banned = frozenset((*shape.eos_token_ids, *params.stop_token_ids)) if params.min_tokens else frozenset()
        self._sampler = Sampler(params, prompt, shape.vocab_size, banned, draw)
        self._detokenizer = Detokenizer(tokenizer, skip_special_tokens=params.skip_special_tokens)
        self._stops = StopFilter(params.stop)

    @property
    def finished(self) -> bool:
        """Whether the answer is complete."""
        return self.finish_reason is not None

    @property
    def context(self) -> tuple[int, ...]:
        """Everything that the model reads before the next token."""
        return (*self.prompt, *self.tokens)

    @property
    def length(self) -> int:
        """Length of the context."""
        return len(self.prompt) + len(self.tokens)

    def extend(self, logits: Floats) -> TokenEvent:
        """Choose the next token from `logits (V,)` and say what became of it.

        Raises:
            NumericError: the logits are unusable.
        """
        chosen = self._sampler.sample(logits)
        self.times.last_token = time.perf_counter()
        if not self.tokens:
            self.times.first_token = self.times.last_token
        self.tokens.append(chosen.token)
        if chosen.token in self._end_tokens:
            return self._finish(STOP, chosen, self._stops.add(self._detokenizer.flush())[0] + self._stops.flush())
        piece = self._detokenizer.add(chosen.token)
        text, stopped = self._filter_stops(piece)
        if stopped:
            return self._finish(STOP, chosen, text)
        if len(self.tokens) >= self.params.max_tokens:
            tail, stopped = self._filter_stops(self._detokenizer.flush())
            return self._finish(STOP if stopped else LENGTH, chosen, text + tail + ("" if stopped else self._stops.flush()))
        return TokenEvent(choice=self.choice, score=chosen, text=text)

    def finish_reading(self) -> TokenEvent:
        """The end of a sequence that was only to read its prompt."""
        return self._finish(LENGTH, None, "")

    def abort(self) -> TokenEvent:
        """The end of a sequence that nobody wants."""
        return self._finish(ABORT, None, "")

    def score_prompt(self, logits: Floats, first: int) -> None:
        """Record the prompt's own log-probabilities.

        Args:
            logits: after the prompt's tokens `first`, `first + 1`, ...: each scores the token after it. `# (S, V)`
            first: position of the first of them in the prompt.
        """
        if not self.prompt_scores:
            self.prompt_scores.append(Score(self.prompt[0]))
        for row, token in zip(logits, self.prompt[first + 1 :], strict=False):
            self.prompt_scores.append(score(row, token, self.params.prompt_logprobs))

    def _filter_stops(self, piece: str) -> tuple[str, bool]:
        """Text through the stop filter; before `min_tokens` no stop text counts."""
        if len(self.tokens) <= self.params.min_tokens and self.params.min_tokens:
            return piece, False
        return self._stops.add(piece)

    def _finish(self, reason: str, chosen: Score | None, text: str) -> TokenEvent:
        self.finish_reason = reason
        return TokenEvent(choice=self.choice, score=chosen, text=text, finish_reason=reason)


# MERGED runtime/generate/completion.py
@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """A finished answer.

    Attributes:
        text: the answer.
        tokens: its tokens, with the one that ended it.
        finish_reason: "stop", "length" or "abort".
        prompt_tokens: length of the prompt.
        scores: log-probabilities of `tokens`, if asked for.
        prompt_scores: the same of the prompt, if asked for.
    """

    text: str
    tokens: tuple[int, ...]
    finish_reason: str
    prompt_tokens: int
    scores: tuple[Score, ...]
    prompt_scores: tuple[Score, ...] = ()


class Collector:
    """Builds one answer from its events."""

    def __init__(self, prompt_tokens: int) -> None:
        self._prompt_tokens = prompt_tokens
        self._text: list[str] = []
        self._scores: list[Score] = []
        self._prompt_scores: tuple[Score, ...] = ()
        self._finish_reason = ABORT

    def add(self, event: Event) -> None:
        """Take an event.

        Raises:
            MaskProError: the answer failed.
        """
        if isinstance(event, FailureEvent):
            raise event.error
        if isinstance(event, PromptEvent):
            self._prompt_scores = event.scores
            return
        self._text.append(event.text)
        if event.score is not None:
            self._scores.append(event.score)
        if event.finish_reason is not None:
            self._finish_reason = event.finish_reason

    def completion(self) -> Completion:
        """The answer so far."""
        return Completion(
            text="".join(self._text),
            tokens=tuple(s.token for s in self._scores),
            finish_reason=self._finish_reason,
            prompt_tokens=self._prompt_tokens,
            scores=tuple(self._scores),
            prompt_scores=self._prompt_scores,
        )
