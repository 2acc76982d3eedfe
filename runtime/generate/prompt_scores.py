"""Log-probabilities of prompts: reduced chunk by chunk to a few numbers for each token, and counted.

Logits are of a chunk only, and gone when it is read; what stays is a `Score` for each token and answer, about 2 kB with twenty
of the likeliest tokens. `ScoreBudget` bounds that: the tokens of one request, and those of all that run and wait.

Shapes: `S` tokens of a chunk, `V` vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from maskpro_deploy.errors import InputError
from maskpro_deploy.runtime.generate.sampling import Floats, Score, score
from maskpro_deploy.runtime.generate.sequence import GenerationSequence

OPTION = "--max-prompt-logprobs-tokens"
_REQUESTS = 4  # as many requests of the largest size may run and wait at once


def wants_scores(sequence: GenerationSequence) -> bool:
    """Whether the log-probabilities of its prompt are still to be found; an answer that was given up has them already."""
    return sequence.params.prompt_logprobs is not None and not sequence.tokens and not sequence.finished


def score_prompt(sequences: Sequence[GenerationSequence], logits: Floats, first: int) -> None:
    """Record the log-probabilities of a prompt that several sequences may share; each token is scored once.

    Args:
        sequences: those that wait for the prompt; who does not want them gets none.
        logits: what the model says after the prompt's tokens from `first` on, each of which scores the next one.  # (S, V)
        first: place of the first of these tokens in the prompt.
    """
    wanting = [s for s in sequences if wants_scores(s)]
    if not wanting:
        return
    most = max(s.params.prompt_logprobs or 0 for s in wanting)
    prompt = wanting[0].prompt
    scores = [score(row, token, most) for row, token in zip(logits, prompt[first + 1 :], strict=False)]
    for sequence in wanting:
        if not sequence.prompt_scores:
            sequence.prompt_scores.append(Score(prompt[0]))
        own = sequence.params.prompt_logprobs or 0
        sequence.prompt_scores += scores if own == most else [Score(s.token, s.logprob, s.top[:own]) for s in scores]


@dataclass(frozen=True, slots=True)
class ScoreBudget:
    """How many tokens of prompts may have log-probabilities; `most` is for one request, None for no bound."""

    most: int | None

    def check(self, tokens: int) -> None:
        """Refuse a request for so many, counted for each answer (InputError)."""
        if self.most is not None and tokens > self.most:
            raise InputError(
                f"log-probabilities of {tokens} prompt tokens were asked for, counted for each answer; this server gives "
                f"{self.most} at most ({OPTION})."
            )

    def has_room(self, live: Iterable[GenerationSequence], tokens: int) -> bool:
        """Whether so many more fit next to the sequences that run and wait."""
        if self.most is None or not tokens:
            return True
        return count_scored(live) + tokens <= _REQUESTS * self.most


def count_scored(sequences: Iterable[GenerationSequence]) -> int:
    """Prompt tokens that these have log-probabilities of, or wait for."""
    return sum(len(s.prompt) for s in sequences if s.params.prompt_logprobs is not None)
