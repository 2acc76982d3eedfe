"""How the next token is chosen from the logits.

The order is fixed: logit bias, penalties, what a grammar allows and what is banned, temperature, then the filters top-k, min-p
and top-p, then one draw.
Each choice of each request owns a generator, and a draw takes exactly one number from it, over the candidates in token order:
the answer depends on the seed and the logits alone, never on who else is in the batch. Log-probabilities are those of the model
itself, before any of this, so under a grammar those of the unrestricted model.

Shapes: `V` vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from maskpro_deploy.errors import MaskProError
from maskpro_deploy.runtime.generate.sampling_params import SamplingParams

Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]

_BLOCK = 256  # scores that share a maximum in `likeliest`; strided, which numpy reads faster
GREEDY_BELOW = 1e-5  # a temperature this low is greedy
_RUN = 256  # tokens whose probabilities are summed up together


class NumericError(MaskProError):
    """The model gave no usable numbers (NaN logits)."""


@dataclass(frozen=True, slots=True)
class Score:
    """A token, its log-probability under the model, and the likeliest tokens in its place, best first."""

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class Sampler:
    """Chooses the tokens of one answer; remembers them for the penalties.

    `end_tokens` end an answer, and are banned before `min_tokens`. Each of several answers to one prompt has its own number
    `choice`, and so draws its own numbers from one seed.
    """

    def __init__(
        self, params: SamplingParams, prompt: Sequence[int], vocab_size: int, end_tokens: Collection[int] = (), choice: int = 0
    ) -> None:
        self._params = params
        self._rng = np.random.default_rng(None if params.seed is None else [params.seed % 2**64, choice])
        self._counts = np.zeros(vocab_size, np.int32)  # (V,)
        self._seen = np.zeros(vocab_size, np.bool_)  # (V,)
        self._seen[list(prompt)] = True
        self._bias = np.array(list(params.logit_bias.items()), np.float64).reshape(-1, 2)
        self._end_tokens = sorted(end_tokens)
        self._penalises = bool(
            params.logit_bias or params.repetition_penalty != 1.0 or params.presence_penalty or params.frequency_penalty
        )
        self._drawn = 0

    def sample(self, logits: Floats, allowed: Bools | None = None) -> Score:
        """Choose the next token from the model's logits, of those `allowed` (one at least); a NumericError for NaN.  # (V,)"""
        params, scores = self._params, logits
        if self._penalises or allowed is not None or self._drawn < params.min_tokens:
            _refuse_nan(np.isnan(logits).any())  # a banned token's would not be seen below
            scores = self._penalise(logits, allowed)
        if params.temperature < GREEDY_BELOW:
            token = int(scores.argmax())  # NaN counts as the largest
            _refuse_nan(np.isnan(scores[token]))
        else:
            token = draw(scores, params.temperature, params.top_k, params.top_p, params.min_p, float(self._rng.random()))
        if self._penalises:
            self._counts[token] += 1
            self._seen[token] = True
        self._drawn += 1
        return score(logits, token, params.logprobs)

    def _penalise(self, logits: Floats, allowed: Bools | None) -> Floats:
        params = self._params
        scores = logits.astype(np.float32, copy=True)
        if len(self._bias):
            scores[self._bias[:, 0].astype(np.intp)] += self._bias[:, 1].astype(np.float32)
        if params.repetition_penalty != 1.0:
            seen = scores[self._seen]
            scores[self._seen] = np.where(seen > 0, seen / params.repetition_penalty, seen * params.repetition_penalty)
        if params.presence_penalty or params.frequency_penalty:
            scores -= params.presence_penalty * (self._counts > 0) + params.frequency_penalty * self._counts
        if allowed is not None:
            scores[~allowed] = -np.inf
        if self._drawn < params.min_tokens:
            ends = scores[self._end_tokens]
            scores[self._end_tokens] = -np.inf
            if allowed is not None and not (scores > -np.inf).any():  # the grammar is at its end
                scores[self._end_tokens] = ends
        return scores


def _refuse_nan(found: object) -> None:
    if found:
        raise NumericError("the model gave NaN logits: its weights or its float type are at fault.")


def draw(scores: Floats, temperature: float, top_k: int, top_p: float, min_p: float, u: float) -> int:
    """Draw a token from softmax(scores / temperature) after the filters of `SamplingParams`; `u` is uniform in [0, 1).  # (V,)

    A NumericError if a score is NaN.
    """
    largest = scores.max()  # NaN if any is
    _refuse_nan(np.isnan(largest))
    scaled = scores - largest  # (V,), largest 0
    scaled /= np.float32(temperature)
    if not top_k and not min_p and top_p == 1:
        return _invert(np.exp(scaled, out=scaled), u)
    keep = scaled >= (math.log(min_p) if min_p > 0 else np.finfo(np.float32).min)  # drops banned tokens too
    if top_k:
        keep &= top_k_mask(scaled, top_k)
    tokens = np.flatnonzero(keep)
    probabilities = np.exp(scaled[tokens])  # relative to the likeliest; single floats do, only their sums want more
    if top_p < 1:
        nucleus = top_p_mask(probabilities / probabilities.sum(dtype=np.float64), top_p)
        tokens, probabilities = tokens[nucleus], probabilities[nucleus]
    return int(tokens[_invert(probabilities, u)])


def _invert(weights: Floats, u: float) -> int:
    """The first index at which the weights so far are more than `u` of all; never one without weight.  # (C,)

    They are summed up in runs first: a running sum over a whole vocabulary would take most of the time of a draw.
    """
    runs = np.cumsum(np.add.reduceat(weights, _run_starts(len(weights)), dtype=np.float64))
    wanted = u * runs[-1]
    run = min(int(np.searchsorted(runs, wanted, side="right")), len(runs) - 1)
    inside = weights[run * _RUN : (run + 1) * _RUN]
    before = runs[run - 1] if run else 0.0
    at = int(np.searchsorted(np.cumsum(inside, dtype=np.float64), wanted - before, side="right"))
    if at == len(inside):  # the two ways to sum up round differently
        at = int(np.flatnonzero(inside)[-1])
    return run * _RUN + at


@lru_cache(maxsize=8)
def _run_starts(length: int) -> npt.NDArray[np.intp]:
    return np.arange(0, length, _RUN)


def top_k_mask(scores: npt.NDArray[np.floating[Any]], k: int) -> npt.NDArray[np.bool_]:
    """True at the k largest; of equal ones at the edge the lower tokens stay. k = 0 keeps all. `# (V,)`."""
    if k == 0 or k >= len(scores):
        return np.ones(len(scores), np.bool_)
    edge = np.partition(scores, -k)[-k]
    keep: npt.NDArray[np.bool_] = scores > edge
    keep[np.flatnonzero(scores == edge)[: k - int(keep.sum())]] = True
    return keep


def top_p_mask(probabilities: npt.NDArray[np.float64], p: float) -> npt.NDArray[np.bool_]:
    """True at the smallest set of likeliest tokens whose probabilities reach p; never empty."""
    # all tokens below this share together hold less than 1 - p: the set is complete without them, and sorting few is fast
    share = min((1 - p) / len(probabilities), probabilities.max())
    tokens = np.flatnonzero(probabilities >= share)
    order = tokens[np.argsort(-probabilities[tokens], kind="stable")]
    count = int(np.searchsorted(np.cumsum(probabilities[order]), p)) + 1
    keep = np.zeros(len(probabilities), np.bool_)
    keep[order[:count]] = True
    return keep


def score(logits: Floats, token: int, top: int | None) -> Score:
    """The log-probability of `token` under the model and of the `top` likeliest; nothing for None. `logits (V,)`."""
    if top is None:
        return Score(token)
    shifted = logits - logits.max()
    log_sum = math.log(np.exp(shifted).sum(dtype=np.float64))
    best = likeliest(shifted, top).tolist() if top else []
    return Score(token, float(shifted[token]) - log_sum, tuple((t, float(shifted[t]) - log_sum) for t in best))


def likeliest(scores: Floats, k: int) -> npt.NDArray[np.intp]:
    """The tokens of the k largest scores, the largest first, of equal ones the lower token.  # (V,) -> (k,)"""
    whole = len(scores) // _BLOCK
    if whole > k:  # no score below the k-th largest maximum of a block is among the k largest
        edge = np.partition(scores[: whole * _BLOCK].reshape(_BLOCK, whole).max(axis=0), -k)[-k]
        tokens = np.flatnonzero(scores >= edge)
    else:
        tokens = np.arange(len(scores))
    return tokens[np.lexsort((tokens, -scores[tokens]))[:k]]
