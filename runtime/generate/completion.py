"""Finished answers, built from their events."""

from __future__ import annotations

from dataclasses import dataclass

from maskpro_deploy.runtime.generate.sampling import Score
from maskpro_deploy.runtime.generate.sequence import ABORT, Event, FailureEvent, PromptEvent


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
