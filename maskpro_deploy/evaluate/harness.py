"""A model behind the interface of lm-evaluation-harness (needs the `eval` extra).

The harness asks three things: the log-likelihood of a continuation, that of a whole text in pieces, and a continuation up to a
stop text. All three are answered from logits, so every kind of model gives the same answer to the same question. Tokenisation,
special tokens, and how contexts are cut follow the harness's own Hugging Face model, so that figures compare with it.

Shapes: `P` scored positions, `V` vocabulary.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tokenizers import Tokenizer

from maskpro_deploy.errors import InputError, check_range
from maskpro_deploy.evaluate.batches import GeneratingLM, continue_rows, cut_batches, read_rows, vocabulary_size
from maskpro_deploy.evaluate.scores import check_logits, log_likelihood
from maskpro_deploy.system.progress import SILENT, Progress

MAX_NEW_TOKENS = 256  # where a task sets none; the harness's own default


class Answers(Protocol):
    """Where answers are kept, for a run that resumes."""

    def get(self, request: str) -> Any:
        """The answer to the request with this hash, or None."""

    def put(self, request: str, answer: Any) -> None:
        """Keep an answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HarnessConfig:
    """What the harness has to know of a model in addition to its logits."""

    max_length: int  # the longest sequence it reads
    end_of_text: int  # the token that ends a text
    begin_of_text: int | None = None  # the token before a text without context; None takes `end_of_text`
    # whether texts get the tokenizer's own special tokens; None leaves it to the tokenizer
    add_special_tokens: bool | None = None
    batch_size: int = 8  # rows in one call, at most
    name: str = "the model"  # of the model, for messages and for the harness's caches
    render: Callable[..., str] | None = None  # messages to a prompt, for tasks that use the chat template

    def __post_init__(self) -> None:
        check_range("--batch-size", self.batch_size, least=1)
        check_range("max_length", self.max_length, least=2)


@dataclass(slots=True)
class _Question:
    """One row: tokens the model reads, and how many of the tokens that follow each are scored at the end."""

    tokens: tuple[int, ...]
    targets: list[int]


class HarnessLM(TemplateLM):  # type: ignore[misc]  # the harness ships no types
    """The adapter.

    Args:
        lm: the model.
        tokenizer: its tokenizer.
        config: special tokens, lengths, batch size.
        answers: where answers are kept as they come; None keeps none.
        progress: updated after each answer.
    """

    def __init__(
        self,
        lm: GeneratingLM,
        tokenizer: Tokenizer,
        config: HarnessConfig,
        answers: Answers | None = None,
        progress: Progress = SILENT,
    ) -> None:
        super().__init__()
        self._lm, self._text, self._config = lm, tokenizer, config
        self._answers, self._progress = answers, progress
        self._vocabulary = vocabulary_size(lm)

    # what the harness asks of any model

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return self._config.end_of_text

    @property
    def prefix_token_id(self) -> int:
        """The token before a text without context."""
        begin = self._config.begin_of_text
        return self._config.end_of_text if begin is None else begin

    @property
    def max_length(self) -> int:
        """The longest sequence the model reads."""
        return self._config.max_length

    @property
    def max_gen_toks(self) -> int:
        """Tokens to generate where a task sets no number."""
        return MAX_NEW_TOKENS

    @property
    def batch_size(self) -> int:
        """Rows in one call, at most."""
        return self._config.batch_size

    @property
    def tokenizer_name(self) -> str:
        """Name for the harness's cache of prompts."""
        return self._config.name.replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Tokens of a text, with the tokenizer's special tokens unless it begins with one already."""
        if add_special_tokens is None:
            add_special_tokens = self._config.add_special_tokens
            if string.startswith(self._text.decode([self.prefix_token_id], skip_special_tokens=False) or "\0"):
                add_special_tokens = False
        ids: list[int] = self._text.encode(string, add_special_tokens=add_special_tokens is not False).ids
        return ids

    def tok_decode(self, tokens: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text of tokens."""
        text: str = self._text.decode(list(tokens), skip_special_tokens=skip_special_tokens)
        return text

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Messages as the model's own prompt."""
        if self._config.render is None:
            raise InputError(f"{self._config.name} has no chat template.")
        return self._config.render(chat_history, add_generation_prompt=add_generation_prompt)

    def chat_template(self, chat_template: bool | str = False) -> str:
        """The template's name in the harness's prompt cache."""
        return self._config.name if chat_template else ""

    # scoring

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """Log-likelihood of each continuation given its context, and whether it is the likeliest one token by token."""
        answers: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=disable_tqdm)
        return answers

    def _loglikelihood_tokens(self, requests: Sequence[tuple[Any, list[int], list[int]]], **_: Any) -> list[tuple[float, bool]]:
        """The same for tokens: (anything, context, continuation)."""
        questions = [self._question(context, continuation) for _, context, continuation in requests]
        keys = [_hash("loglikelihood", q.tokens, q.targets) for q in questions]
        answers = self._answer(keys, lambda missing: self._score({i: questions[i] for i in missing}))
        return [(float(likelihood), bool(likeliest)) for likelihood, likeliest in answers]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of whole texts, in windows of the model's full length that do not overlap."""
        pieces: list[tuple[None, list[int], list[int]]] = []
        counts = []
        for request in requests:
            windows = get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            before = len(pieces)
            pieces += [(None, *make_disjoint_window(window)) for window in windows]
            counts.append(len(pieces) - before)
        values = iter(self._loglikelihood_tokens(pieces))
        return [sum(next(values)[0] for _ in range(count)) for count in counts]

    def _question(self, context: Sequence[int], continuation: Sequence[int]) -> _Question:
        """The tokens to read, cut on the left so that the model can."""
        if len(continuation) > self.max_length:
            raise InputError(
                f"a continuation of {len(continuation)} tokens is longer than {self._config.name} reads ({self.max_length})."
            )
        whole = [*context, *continuation][-(self.max_length + 1) :]
        return _Question(tokens=tuple(whole[:-1]), targets=list(continuation))

    def _score(self, questions: Mapping[int, _Question]) -> Iterator[tuple[int, list[float | bool]]]:
        """Each question's log-likelihood, and whether its targets are the likeliest tokens."""
        sharing: dict[tuple[int, ...], list[int]] = {}  # choices of one token each have the same tokens to read: one row
        for i, question in questions.items():
            sharing.setdefault(question.tokens, []).append(i)
        for rows in cut_batches({tokens: len(tokens) for tokens in sharing}, self.batch_size, self._vocabulary):
            for row, logits in zip(rows, read_rows(self._lm, rows), strict=True):
                for i in sharing[row]:
                    targets = np.asarray(questions[i].targets, np.int64)
                    scored = logits[len(row) - len(targets) : len(row)]  # (P, V)
                    check_logits(scored, self._config.name)
                    likelihood = max(log_likelihood(scored, targets), float(np.finfo(np.float64).min))
                    yield i, [likelihood, bool((scored.argmax(axis=1) == targets).all())]

    # generating

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """The likeliest continuation of each context, token by token, up to a stop text or so many tokens.

        Raises:
            InputError: a task wants random samples, which this adapter does not draw.
        """
        keys = [_hash("generate_until", *request.args) for request in requests]
        answers = self._answer(keys, lambda missing: self._generate({i: requests[i].args for i in missing}))
        return [str(answer) for answer in answers]

    def _generate(self, requests: Mapping[int, tuple[str, dict[str, Any]]]) -> Iterator[tuple[int, str]]:
        """The text that answers each request: a context and settings."""
        groups: dict[str, list[int]] = {}
        for i, (_, settings) in requests.items():
            groups.setdefault(json.dumps(settings, sort_keys=True, default=str), []).append(i)
        for members in groups.values():
            stops, most = self._generation_limits(requests[members[0]][1])
            prompts = {i: self.tok_encode(requests[i][0])[-(self.max_length - most) :] for i in members}
            lengths = {i: len(tokens) for i, tokens in prompts.items()}
            for batch in cut_batches(lengths, self.batch_size, self._vocabulary):
                rows = [prompts[i] or [self.prefix_token_id] for i in batch]
                tokens = continue_rows(self._lm, rows, most, partial(self._extend, stops=stops))
                for i, own in zip(batch, tokens, strict=True):
                    yield i, postprocess_generated_text(self.tok_decode(own), list(stops), None)

    def _generation_limits(self, given: dict[str, Any]) -> tuple[list[str], int]:
        """Stop texts, and the largest number of new tokens."""
        settings = normalize_gen_kwargs(given, MAX_NEW_TOKENS)
        if settings.get("do_sample"):
            raise InputError("this task draws random samples (do_sample); only greedy generation is measured here.")
        stops = handle_stop_sequences(settings.get("until"), eos=self.tok_decode([self.eot_token_id], skip_special_tokens=False))
        most = int(settings["max_gen_toks"])
        if not 0 < most < self.max_length:
            raise InputError(f"this task generates {most} tokens, {self._config.name} reads {self.max_length} in all.")
        return stops, most

    def _extend(self, tokens: list[int], token: int, stops: Sequence[str]) -> bool:
        """Append a token unless it ends the text; whether the text continues."""
        if token == self.eot_token_id:
            return False
        tokens.append(token)
        text = self.tok_decode(tokens)
        return not any(stop and stop in text for stop in stops)

    # keeping

    def _answer(self, keys: Sequence[str], compute: Callable[[list[int]], Iterator[tuple[int, Any]]]) -> list[Any]:
        """The answer to each request: a kept one, or as `compute` gives them, which are kept as they come."""
        kept = self._answers
        answers = {} if kept is None else {i: a for i, key in enumerate(keys) if (a := kept.get(key)) is not None}
        for i, answer in compute([i for i in range(len(keys)) if i not in answers]):
            answers[i] = answer
            if kept is not None:
                kept.put(keys[i], answer)
            self._progress.update(len(answers), len(keys))
        return [answers[i] for i in range(len(keys))]


def _hash(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()
