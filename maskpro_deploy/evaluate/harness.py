"""A model behind the interface of lm-evaluation-harness (needs the `eval` extra).

The harness asks three things: the log-likelihood of a continuation, that of a whole text in pieces, and a continuation up to a
stop text. All three are answered from logits, so every kind of model gives the same answer to the same question. Tokenisation,
special tokens, and how contexts are cut follow the harness's own Hugging Face model, so that figures compare with it.

Rows of different lengths share a batch by padding on the right, which a causal model does not see; while generating, on the left,
which the attention mask hides. Batches are made of questions of like length, and are cut so that their logits stay in bounds.

Shapes: `B` rows, `T` tokens, `V` vocabulary.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tokenizers import Tokenizer

from maskpro_deploy.errors import CheckFailed, ConfigError, InputError
from maskpro_deploy.evaluate.protocol import Ints
from maskpro_deploy.evaluate.scores import Logits, log_probabilities
from maskpro_deploy.system.progress import SILENT, Progress

MAX_NEW_TOKENS = 256  # where a task does not say it; the harness's own default
_LOGIT_VALUES = 1 << 27  # of one batch: 512 MiB in fp32
_ROWS = 64  # positions whose log-probabilities are in memory at once, as float64


class GeneratingLM(Protocol):
    """A language model that reads whole rows, or new tokens on top of a cache."""

    def logits(self, tokens: Ints) -> Logits:
        """Logits after each token.  # (B, T) -> (B, T, V)"""

    def forward(self, tokens: Ints, cache: Any = None, attention_mask: Ints | None = None) -> tuple[Logits, Any]:
        """Logits after each new token, and the longer cache; the mask hides padding on the left."""


class Answers(Protocol):
    """Where answers are kept, and found again by a run that goes on."""

    def get(self, request: str) -> Any:
        """The answer to the request with this hash, or None."""

    def put(self, request: str, answer: Any) -> None:
        """Keep an answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HarnessConfig:
    """What the harness has to know of a model beside its logits.

    Attributes:
        max_length: the longest sequence it reads.
        end_of_text: the token that ends a text.
        begin_of_text: the token before a text without context; None takes `end_of_text`.
        add_special_tokens: whether texts get the tokenizer's own special tokens; None lets the tokenizer do as it does.
        batch_size: rows in one call, at most.
        name: of the model, for messages and for the harness's caches.
        render: messages to a prompt, for tasks that use the chat template.
    """

    max_length: int
    end_of_text: int
    begin_of_text: int | None = None
    add_special_tokens: bool | None = None
    batch_size: int = 8
    name: str = "the model"
    render: Callable[..., str] | None = None

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ConfigError(f"--batch-size {self.batch_size} is out of range: 1 or more.")
        if self.max_length < 2:
            raise ConfigError(f"max_length {self.max_length} is out of range: 2 or more.")


@dataclass(slots=True)
class _Question:
    """One row: tokens the model reads, and how many of the tokens that follow each are scored at the end."""

    tokens: list[int]
    targets: list[int]


@dataclass(slots=True)
class _Growing:
    """A text that is being generated."""

    tokens: list[int] = field(default_factory=list)
    done: bool = False


class HarnessLM(TemplateLM):  # type: ignore[misc]  # the harness ships no types
    """The adapter.

    Args:
        lm: the model.
        tokenizer: its tokenizer.
        config: special tokens, lengths, batch size.
        answers: where answers are kept as they come; None keeps none.
        progress: told after each batch.
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
        self._vocab = int(lm.logits(np.zeros((1, 2), np.int64)).shape[-1])

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
        """Tokens to generate where a task does not say it."""
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
        """What the harness's prompt cache is told of the template."""
        return self._config.name if chat_template else ""

    # scoring

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """Log-likelihood of each continuation given its context, and whether it is the likeliest one token by token."""
        answers: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=disable_tqdm)
        return answers

    def _loglikelihood_tokens(self, requests: Sequence[tuple[Any, list[int], list[int]]], **_: Any) -> list[tuple[float, bool]]:
        """Log-likelihood of each continuation, and whether it is the likeliest one token by token."""
        questions = [self._question(context, continuation) for _, context, continuation in requests]
        hashes = [_hash("loglikelihood", q.tokens, q.targets) for q in questions]
        found: dict[int, tuple[float, bool]] = {}
        for i, key in enumerate(hashes):
            if self._answers is not None and (known := self._answers.get(key)) is not None:
                found[i] = (float(known[0]), bool(known[1]))
        # choices of one token each have the same tokens to read: they share a row
        sharing: dict[tuple[int, ...], list[int]] = {}
        for i, question in enumerate(questions):
            if i not in found:
                sharing.setdefault(tuple(question.tokens), []).append(i)
        rows = list(sharing.items())
        for batch in self._batches(range(len(rows)), [len(tokens) for tokens, _ in rows]):
            for of_row, (tokens, members) in zip(self._read([rows[r][0] for r in batch]), [rows[r] for r in batch], strict=True):
                for i in members:
                    targets = questions[i].targets
                    found[i] = self._continuation(of_row[len(tokens) - len(targets) : len(tokens)], targets)
                    if self._answers is not None:
                        self._answers.put(hashes[i], list(found[i]))
            self._progress.update(len(found), len(questions))
        return [found[i] for i in range(len(questions))]

    def _question(self, context: Sequence[int], continuation: Sequence[int]) -> _Question:
        """The tokens to read, cut on the left so that the model can."""
        if len(continuation) > self.max_length:
            raise InputError(
                f"a continuation of {len(continuation)} tokens is longer than {self._config.name} reads ({self.max_length})."
            )
        whole = [*context, *continuation][-(self.max_length + 1) :]
        return _Question(tokens=whole[:-1], targets=list(continuation))

    def _batches(self, open_ones: Sequence[int], lengths: Sequence[int]) -> Iterator[list[int]]:
        """Rows of like length together, the longest first: what does not fit in memory fails at once."""
        order = sorted(open_ones, key=lambda i: -lengths[i])
        while order:
            rows = max(1, min(self.batch_size, _LOGIT_VALUES // (max(1, lengths[order[0]]) * self._vocab)))
            yield order[:rows]
            order = order[rows:]

    def _read(self, rows: Sequence[Sequence[int]]) -> Logits:
        """Logits of rows of different lengths.  # (B, T, V)"""
        padded = np.zeros((len(rows), max(map(len, rows))), np.int64)  # on the right: nothing before it sees it
        for place, row in zip(padded, rows, strict=True):
            place[: len(row)] = row
        return self._lm.logits(padded)

    def _continuation(self, logits: Logits, targets: Sequence[int]) -> tuple[float, bool]:
        """Log-likelihood of tokens, and whether each is the likeliest.  # (P, V)"""
        if np.isnan(logits).any() or np.isposinf(logits).any():
            raise CheckFailed(f"{self._config.name} gave logits that are not numbers.\nIts weights or its graph are broken.")
        total, wanted = 0.0, np.asarray(targets, np.int64)
        for start in range(0, len(wanted), _ROWS):
            part = wanted[start : start + _ROWS]
            total += float(np.take_along_axis(log_probabilities(logits[start : start + _ROWS]), part[:, None], axis=1).sum())
        return max(total, float(np.finfo(np.float64).min)), bool((logits.argmax(axis=1) == wanted).all())

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

    # generating

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """The likeliest continuation of each context, token by token, up to a stop text or so many tokens.

        Raises:
            InputError: a task wants random samples, which this adapter does not draw.
        """
        found: dict[int, str] = {}
        groups: dict[str, list[int]] = {}
        hashes = [_hash("generate_until", *request.args) for request in requests]
        for i, request in enumerate(requests):
            known = self._answers.get(hashes[i]) if self._answers is not None else None
            if known is not None:
                found[i] = str(known)
            else:
                groups.setdefault(json.dumps(request.args[1], sort_keys=True, default=str), []).append(i)
        for members in groups.values():
            stops, most = self._generation(requests[members[0]].args[1])
            prompts = {i: self.tok_encode(requests[i].args[0])[-(self.max_length - most) :] for i in members}
            lengths = [len(prompts.get(i, ())) for i in range(len(requests))]
            for batch in self._batches(members, lengths):
                texts = self._generate([prompts[i] for i in batch], stops, most)
                for i, text in zip(batch, texts, strict=True):
                    found[i] = text
                    if self._answers is not None:
                        self._answers.put(hashes[i], text)
                self._progress.update(len(found), len(requests))
        return [found[i] for i in range(len(requests))]

    def _generation(self, given: dict[str, Any]) -> tuple[list[str], int]:
        """Stop texts, and the largest number of new tokens."""
        settings = normalize_gen_kwargs(given, MAX_NEW_TOKENS)
        if settings.get("do_sample"):
            raise InputError("this task draws random samples (do_sample); only greedy generation is measured here.")
        stops = handle_stop_sequences(settings.get("until"), eos=self.tok_decode([self.eot_token_id], skip_special_tokens=False))
        most = int(settings["max_gen_toks"])
        if not 0 < most < self.max_length:
            raise InputError(f"this task generates {most} tokens, {self._config.name} reads {self.max_length} in all.")
        return stops, most

    def _generate(self, prompts: Sequence[Sequence[int]], stops: Sequence[str], most: int) -> list[str]:
        """Continue a batch of prompts together."""
        width = max(1, *(len(p) for p in prompts))
        tokens = np.zeros((len(prompts), width), np.int64)
        mask = np.zeros((len(prompts), width), np.int64)
        for i, prompt in enumerate(prompts):
            kept = list(prompt) or [self.prefix_token_id]
            tokens[i, width - len(kept) :], mask[i, width - len(kept) :] = kept, 1
        rows = [_Growing() for _ in prompts]
        cache: Any = None
        for _ in range(most):
            logits, cache = self._lm.forward(tokens, cache, mask)
            tokens = logits[:, -1].argmax(axis=1).astype(np.int64)[:, None]
            mask = np.concatenate([mask, np.ones_like(tokens)], axis=1)
            for row, token in zip(rows, tokens[:, 0], strict=True):
                self._grow(row, int(token), stops)
            if all(row.done for row in rows):
                break
        return [postprocess_generated_text(self.tok_decode(r.tokens), list(stops), None) for r in rows]

    def _grow(self, row: _Growing, token: int, stops: Sequence[str]) -> None:
        if row.done:
            return
        row.done = token == self.eot_token_id
        if not row.done:
            row.tokens.append(token)
            text = self.tok_decode(row.tokens)
            row.done = any(stop and stop in text for stop in stops)


def _hash(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()
