"""Scores of windows of tokens, by one or several models, window by window.

All models read one window before any reads the next, so a reference runs once per window however many models are compared with
it, and results come window by window.

Shapes: `W` windows, `T` tokens in a window, `V` vocabulary, `P` scored positions of a window.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from maskpro_deploy.errors import CheckFailed, ConfigError, InputError
from maskpro_deploy.evaluate.protocol import Ints, scored_tokens
from maskpro_deploy.system.progress import SILENT, Progress


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowScore:
    """What one model made of one window.

    Attributes:
        tokens: scored tokens.
        nll: sum of their negative log-likelihoods, in nats.
        kl: sum over the scored positions of KL(reference || model), in nats; None without a reference.
        agreed: scored positions where model and reference have the same likeliest token; None without a reference.
    """

    tokens: int
    nll: float
    kl: float | None = None
    agreed: int | None = None


class Record(Protocol):
    """Where scores are kept as they come, for a run that resumes."""

    def get(self, model: str, window: int) -> WindowScore | None:
        """The score, or None if there is none yet."""

    def put(self, model: str, window: int, score: WindowScore) -> None:
        """Keep a score."""


def score_windows(
    lms: Mapping[str, CausalLM],
    windows: npt.NDArray[np.integer[Any]],
    progress: Progress = SILENT,
    *,
    reference: str | None = None,
    stride: int | None = None,
    record: Record | None = None,
) -> dict[str, list[WindowScore]]:
    """Score windows with each model.

    Args:
        lms: name -> model.
        windows: tokens. `# (W, T)`
        progress: updated after each model and window.
        reference: the name of the model that the others are compared with.
        stride: tokens from one window to the next, which says what is scored in each (see `protocol`); None for T.
        record: where scores are kept as they come. Windows that it has are not run again, but for the reference where another
            model still needs it.

    Returns:
        The scores of all windows, by name.

    Raises:
        ConfigError: there is no window, or windows are shorter than 2 tokens.
        InputError: the vocabularies differ, or a token is in none of them.
        CheckFailed: a model gave logits that are not numbers, or rules out a token of the text.
    """
    if windows.ndim != 2 or windows.shape[0] == 0 or windows.shape[1] < 2:
        raise ConfigError(f"perplexity needs windows of 2 tokens or more, not shape {windows.shape}.")
    _check_vocabularies(lms, int(windows.max()))
    scores: dict[str, list[WindowScore]] = {name: [] for name in lms}
    order = sorted(lms, key=lambda name: name != reference)  # the reference first, else as given
    for w, window in enumerate(windows.astype(np.int64)):
        known = {name: record.get(name, w) if record is not None else None for name in order}
        scored = scored_tokens(w, windows.shape[1], stride or windows.shape[1])
        kept: Logits | None = None
        for i, name in enumerate(order):
            score = known[name]
            if score is None or (name == reference and None in known.values()):
                logits = _scored_logits(lms[name], name, window, scored, w)
                fresh = _score(logits, window[-scored:], kept, name, w)
                kept = logits if name == reference else kept
                if score is None and record is not None:
                    record.put(name, w, fresh)
                score = score or fresh
                progress.update(w * len(lms) + i + 1, len(windows) * len(lms))  # counts what is run: a kept score is no work
            scores[name].append(score)
    return scores


def _check_vocabularies(lms: Mapping[str, CausalLM], largest: int) -> None:
    """Ask each model for two tokens' logits, so that a wrong vocabulary shows before anything long has run."""
    sizes = {name: lm.logits(np.zeros((1, 2), dtype=np.int64)).shape[-1] for name, lm in lms.items()}
    first = next(iter(sizes))
    for name, size in sizes.items():
        if largest >= size:
            raise InputError(
                f"token {largest} is not in the vocabulary of {name}, which has {size}.\n"
                "The tokenizer does not belong to this model."
            )
        if size != sizes[first]:
            raise InputError(f"{name} has a vocabulary of {size}, {first} one of {sizes[first]}: they cannot be compared.")


def _scored_logits(lm: CausalLM, name: str, window: Ints, scored: int, number: int) -> Logits:
    """Logits of the scored positions of one window.  # (T,) -> (P, V)"""
    logits: Logits = lm.logits(window[None])[0]
    if logits.shape[0] != len(window):
        raise CheckFailed(f"{name} gave {logits.shape[0]} logits for {len(window)} tokens.")
    wanted: Logits = logits[-1 - scored : -1]
    check_logits(wanted, name, f" in window {number}")
    return wanted


def _score(logits: Logits, targets: Ints, reference: Logits | None, name: str, number: int) -> WindowScore:
    """The score of one window.  # (P, V), (P,), (P, V)"""
    nll = -log_likelihood(logits, targets)
    if not math.isfinite(nll):
        raise CheckFailed(f"{name} gives a token of window {number} no probability at all: its perplexity is infinite.")
    if reference is None:
        return WindowScore(tokens=len(targets), nll=nll)
    kl = kl_divergence(reference, logits)
    if not math.isfinite(kl):
        raise CheckFailed(f"KL is infinite in window {number}: {name} rules out tokens that the reference allows.")
    agreed = int((reference.argmax(axis=1) == logits.argmax(axis=1)).sum())
    return WindowScore(tokens=len(targets), nll=nll, kl=kl, agreed=agreed)


# MERGED maskpro_deploy/evaluate/likelihoods.py
Floats = npt.NDArray[np.float64]
Logits = npt.NDArray[np.float32]
_ROWS = 64  # positions whose log-probabilities are in memory at once, as float64


class CausalLM(Protocol):
    """A language model that scores whole rows of tokens."""

    def logits(self, tokens: Ints) -> Logits:
        """Logits after each token.  # (B, T) -> (B, T, V)"""


def log_probabilities(logits: npt.NDArray[Any]) -> Floats:
    """Log-softmax over the last axis in float64.  # (..., V)"""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return shifted


def check_logits(logits: Logits, name: str, place: str = "") -> None:
    """Refuse logits that are not numbers (minus infinity is allowed); the message names the model and the place.

    Raises:
        CheckFailed: there is one.
    """
    if np.isnan(logits).any() or np.isposinf(logits).any():
        raise CheckFailed(f"{name} gave logits that are not numbers{place}.\nIts weights or its graph are broken.")


def log_likelihood(logits: Logits, targets: Ints) -> float:
    """Sum of the log-probabilities of the targets.  # (P, V), (P,)"""
    total = 0.0
    for start in range(0, len(targets), _ROWS):
        rows = log_probabilities(logits[start : start + _ROWS])
        total += float(np.take_along_axis(rows, targets[start : start + _ROWS, None], axis=1).sum())
    return total


def kl_divergence(reference: Logits, logits: Logits) -> float:
    """KL(reference || model) summed over positions.  # both (P, V)"""
    total = 0.0
    for start in range(0, len(logits), _ROWS):
        p = log_probabilities(reference[start : start + _ROWS])
        q = log_probabilities(logits[start : start + _ROWS])
        possible = np.isfinite(p)  # where the reference gives no probability, the term is 0, whatever the model says
        total += float(np.sum(np.exp(p) * np.subtract(p, q, where=possible, out=np.zeros_like(p))))
    return max(0.0, total)  # rounding may leave -1e-17
