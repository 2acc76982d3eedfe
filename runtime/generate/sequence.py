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
from maskpro_deploy.runtime.generate.grammar_compiler import CompiledGrammar
from maskpro_deploy.runtime.generate.sampling import Floats, Sampler, Score
from maskpro_deploy.runtime.generate.sampling_params import SamplingParams
from maskpro_deploy.runtime.generate.text_stream import Detokenizer, StopFilter
from maskpro_deploy.runtime.generate.tokenizer import TextTokenizer

STOP, LENGTH, ABORT = "stop", "length", "abort"


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenEvent:
    """One more token of an answer, or its end."""

    choice: int  # which answer of the request
    score: Score | None  # the token with its log-probabilities; None if the end came without one
    text: str  # what is settled of the text now; may be empty, may hold characters of earlier tokens
    finish_reason: str | None = None  # "stop", "length" or "abort" in the last event, else None

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
Sink = Callable[[Event], object]


@dataclass(slots=True)
class Times:
    """When things happened, in seconds of `time.perf_counter`; 0.0 for not yet."""

    arrived: float = field(default_factory=time.perf_counter)
    started: float = 0.0
    first_token: float = 0.0
    last_token: float = 0.0


class GenerationSequence:
    """One prompt (a token at least) with its growing answer.

    Args:
        prompt, params, shape, tokenizer: what is continued, and how.
        sink: takes the events, on the generator's thread.
        choice: number of this answer within its request (reported in events).
        draw: number of this answer among those to the same prompt (keeps their random numbers apart).
        grammar: what the answer may be; None for anything. It ends where the grammar does, whatever `ignore_eos` says.
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
        grammar: CompiledGrammar | None = None,
    ) -> None:
        self.prompt = tuple(prompt)
        self.params = params
        self.choice = choice
        self.sink = sink
        self.times = Times()
        self.tokens: list[int] = []
        self.finish_reason: str | None = None
        self.cached_tokens = 0  # tokens of the prompt that need not be read, because they were kept
        self.broken = False  # whether its logits were unusable
        self.prompt_scores: list[Score] = []
        eos = () if params.ignore_eos else shape.eos_token_ids
        self._end_tokens = frozenset((*eos, *params.stop_token_ids, *(grammar.end_tokens if grammar else ())))
        banned = frozenset((*shape.eos_token_ids, *params.stop_token_ids)) if params.min_tokens else frozenset()
        self._sampler = Sampler(params, prompt, shape.vocab_size, banned, draw)
        self._detokenizer = Detokenizer(tokenizer, skip_special_tokens=params.skip_special_tokens)
        self._stops = StopFilter(params.stop)
        self._grammar = grammar.start() if grammar else None

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
            StuckError: the grammar got too complex.
        """
        chosen = self._sampler.sample(logits, self._grammar.allowed() if self._grammar else None)
        complete = self._grammar is not None and self._grammar.accept(chosen.token)
        self.times.last_token = time.perf_counter()
        if not self.tokens:
            self.times.first_token = self.times.last_token
        self.tokens.append(chosen.token)
        if chosen.token in self._end_tokens:
            return self.finish(STOP, chosen, self._stops.add(self._detokenizer.flush())[0] + self._stops.flush())
        piece = self._detokenizer.add(chosen.token)
        text, stopped = self._filter_stops(piece)
        if stopped:
            return self.finish(STOP, chosen, text)
        if complete or len(self.tokens) >= self.params.max_tokens:
            tail, stopped = self._filter_stops(self._detokenizer.flush())
            return self.finish(
                STOP if stopped or complete else LENGTH, chosen, text + tail + ("" if stopped else self._stops.flush())
            )
        return TokenEvent(choice=self.choice, score=chosen, text=text)

    def _filter_stops(self, piece: str) -> tuple[str, bool]:
        """Text through the stop filter; before `min_tokens` no stop text counts."""
        if len(self.tokens) <= self.params.min_tokens and self.params.min_tokens:
            return piece, False
        return self._stops.add(piece)

    def finish(self, reason: str, chosen: Score | None = None, text: str = "") -> TokenEvent:
        """The end: ABORT if nobody wants the rest, LENGTH if only the prompt was to be read."""
        self.finish_reason = reason
        return TokenEvent(choice=self.choice, score=chosen, text=text, finish_reason=reason)


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """A finished answer."""

    text: str  # the answer
    tokens: tuple[int, ...]  # its tokens, with the one that ended it
    finish_reason: str  # "stop", "length" or "abort"
    prompt_tokens: int  # length of the prompt
    scores: tuple[Score, ...]  # log-probabilities of `tokens`, if asked for
    prompt_scores: tuple[Score, ...] = ()  # the same of the prompt, if asked for


def build_completion(prompt_tokens: int, events: Sequence[Event]) -> Completion:
    """A finished answer from all its events."""
    steps = [e for e in events if isinstance(e, TokenEvent)]
    scores = tuple(e.score for e in steps if e.score is not None)
    return Completion(
        text="".join(e.text for e in steps),
        tokens=tuple(s.token for s in scores),
        finish_reason=steps[-1].finish_reason or ABORT,
        prompt_tokens=prompt_tokens,
        scores=scores,
        prompt_scores=next((e.scores for e in events if isinstance(e, PromptEvent)), ()),
    )
