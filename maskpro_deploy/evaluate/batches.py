"""Rows of different lengths through a model: read together, and continued together.

Rows share a batch by padding on the right, which a causal model does not see; while generating, on the left, which the attention
mask hides. Batches hold rows of like length, and are cut so that their logits stay in bounds.

Shapes: `B` rows, `T` tokens, `V` vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np

from maskpro_deploy.evaluate.protocol import Ints
from maskpro_deploy.evaluate.scores import Logits

_LOGIT_VALUES = 1 << 27  # of one batch: 512 MiB in fp32

T = TypeVar("T")


class GeneratingLM(Protocol):
    """A language model that reads whole rows, or new tokens on top of a cache."""

    def logits(self, tokens: Ints) -> Logits:
        """Logits after each token.  # (B, T) -> (B, T, V)"""

    def forward(self, tokens: Ints, cache: Any = None, attention_mask: Ints | None = None) -> tuple[Logits, Any]:
        """Logits after each new token, and the longer cache; the mask hides padding on the left."""


def vocabulary_size(lm: GeneratingLM) -> int:
    """The number of logits after a token."""
    return int(lm.logits(np.zeros((1, 2), np.int64)).shape[-1])


def cut_batches(lengths: Mapping[T, int], most_rows: int, vocabulary: int) -> Iterator[list[T]]:
    """Rows of like length together, the longest first: what does not fit in memory fails at once.

    Args:
        lengths: row -> its length in tokens.
        most_rows: of a batch.
        vocabulary: logits after each token.
    """
    order = sorted(lengths, key=lambda row: -lengths[row])
    while order:
        rows = max(1, min(most_rows, _LOGIT_VALUES // (max(1, lengths[order[0]]) * vocabulary)))
        yield order[:rows]
        order = order[rows:]


def read_rows(lm: GeneratingLM, rows: Sequence[Sequence[int]]) -> Logits:
    """Logits of rows of different lengths.  # (B, T, V)"""
    padded = np.zeros((len(rows), max(map(len, rows))), np.int64)  # on the right: nothing before it sees it
    for place, row in zip(padded, rows, strict=True):
        place[: len(row)] = row
    return lm.logits(padded)


def continue_rows(
    lm: GeneratingLM, prompts: Sequence[Sequence[int]], most: int, extend: Callable[[list[int], int], bool]
) -> list[list[int]]:
    """Continue prompts with the likeliest tokens, together.

    Args:
        lm: the model.
        prompts: tokens of each, at least one.
        most: tokens at most.
        extend: takes the tokens of a row so far and the next one, and may append it; whether the row continues.

    Returns:
        The new tokens of each row.
    """
    width = max(map(len, prompts))
    tokens = np.zeros((len(prompts), width), np.int64)
    mask = np.zeros((len(prompts), width), np.int64)
    for i, prompt in enumerate(prompts):
        tokens[i, width - len(prompt) :], mask[i, width - len(prompt) :] = prompt, 1
    rows: list[list[int]] = [[] for _ in prompts]
    growing = list(range(len(rows)))
    cache: Any = None
    for _ in range(most):
        logits, cache = lm.forward(tokens, cache, mask)
        tokens = logits[:, -1].argmax(axis=1).astype(np.int64)[:, None]
        mask = np.concatenate([mask, np.ones_like(tokens)], axis=1)
        growing = [i for i in growing if extend(rows[i], int(tokens[i, 0]))]
        if not growing:
            break
    return rows
