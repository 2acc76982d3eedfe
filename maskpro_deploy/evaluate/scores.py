"""Log-likelihoods of windows of tokens; perplexity, and how far a model is from a reference.

All models read one window before any reads the next, so that a reference runs once per window however many models stand beside
it, and results come window by window. Log-likelihoods are computed in float64 by log-sum-exp. The mean is taken over all scored
tokens; perplexity is the exponential of the mean negative log-likelihood. Standard errors treat the windows as the sample.

Shapes: `B` rows, `W` windows, `T` tokens in a window, `V` vocabulary, `P` scored positions of a window.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from maskpro_deploy.errors import CheckFailed, ConfigError, InputError
from maskpro_deploy.evaluate.protocol import Ints, scored_tokens
from maskpro_deploy.system.progress import SILENT, Progress

Floats = npt.NDArray[np.float64]
Logits = npt.NDArray[np.float32]
_ROWS = 64  # positions whose log-probabilities are in memory at once, as float64


class CausalLM(Protocol):
    """A language model that scores whole rows of tokens."""

    def logits(self, tokens: Ints) -> Logits:
        """Logits after each token.  # (B, T) -> (B, T, V)"""


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
    """Where scores are kept as they come, and found again by a run that goes on."""

    def get(self, model: str, window: int) -> WindowScore | None:
        """The score, or None if there is none yet."""

    def put(self, model: str, window: int, score: WindowScore) -> None:
        """Keep a score."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Perplexity:
    """Perplexity of one model.

    Attributes:
        perplexity: exp of the mean negative log-likelihood.
        stderr: its standard error over windows (delta method); None for a single window.
        nll: mean negative log-likelihood in nats per token.
        nll_stderr: its standard error over windows; None for a single window.
        bits_per_token: the mean in bits.
        windows, tokens: how many windows, and tokens scored in them.
        window_nll: mean negative log-likelihood of each window.
    """

    perplexity: float
    stderr: float | None
    nll: float
    nll_stderr: float | None
    bits_per_token: float
    windows: int
    tokens: int
    window_nll: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A model beside a reference, on the same windows.

    Attributes:
        model, reference: the perplexity of each.
        ratio: the model's perplexity over the reference's.
        ratio_stderr: its standard error, paired over windows; None for a single window.
        kl: mean KL(reference || model) over positions, in nats.
        kl_stderr: its standard error over windows; None for a single window.
        top1_agreement: part of the positions where both have the same likeliest token.
    """

    model: Perplexity
    reference: Perplexity
    ratio: float
    ratio_stderr: float | None
    kl: float
    kl_stderr: float | None
    top1_agreement: float


def log_probabilities(logits: npt.NDArray[Any]) -> Floats:
    """Log-softmax over the last axis in float64.  # (..., V)"""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return shifted


def perplexity(
    lm: CausalLM, windows: npt.NDArray[np.integer[Any]], progress: Progress = SILENT, *, stride: int | None = None
) -> Perplexity:
    """Measure a model's perplexity; see `score_windows` for the arguments and what can go wrong."""
    return perplexity_of(score_windows({"the model": lm}, windows, progress, stride=stride)["the model"])


def compare(
    lm: CausalLM,
    reference: CausalLM,
    windows: npt.NDArray[np.integer[Any]],
    progress: Progress = SILENT,
    *,
    stride: int | None = None,
) -> Comparison:
    """Measure a model beside a reference; see `compare_all`."""
    return compare_all({"the model": lm}, reference, windows, progress, stride=stride)[1]["the model"]


def compare_all(
    lms: Mapping[str, CausalLM],
    reference: CausalLM,
    windows: npt.NDArray[np.integer[Any]],
    progress: Progress = SILENT,
    *,
    stride: int | None = None,
) -> tuple[Perplexity, dict[str, Comparison]]:
    """Measure several models beside one reference, which runs once per window.

    Args:
        lms: name -> model.
        reference: what they are compared with, such as the dense model.
        windows: tokens. `# (W, T)`
        progress: told after each model and window.
        stride: see `score_windows`, also for what can go wrong.
    """
    name = "the reference"
    while name in lms:
        name += "_"
    found = score_windows({name: reference, **lms}, windows, progress, reference=name, stride=stride)
    own = found.pop(name)
    return perplexity_of(own), {key: comparison_of(scores, own) for key, scores in found.items()}


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
        progress: told after each model and window.
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
        raise ConfigError(f"perplexity needs windows of 2 tokens or more, found shape {windows.shape}.")
    _check_vocabularies(lms, int(windows.max()))
    found: dict[str, list[WindowScore]] = {name: [] for name in lms}
    order = sorted(lms, key=lambda name: name != reference)  # the reference first, else as given
    for w, window in enumerate(windows.astype(np.int64)):
        known = {name: record.get(name, w) if record is not None else None for name in order}
        scored = scored_tokens(w, windows.shape[1], stride or windows.shape[1])
        kept: Logits | None = None
        for i, name in enumerate(order):
            score = known[name]
            if score is None or (name == reference and None in known.values()):
                logits = _logits(lms[name], name, window, scored, w)
                fresh = _score(logits, window[-scored:], kept, name, w)
                kept = logits if name == reference else kept
                if score is None and record is not None:
                    record.put(name, w, fresh)
                score = score or fresh
                progress.update(w * len(lms) + i + 1, len(windows) * len(lms))  # of what is run: found again is no work
            found[name].append(score)
    return found


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


def _logits(lm: CausalLM, name: str, window: Ints, scored: int, number: int) -> Logits:
    """Logits of the scored positions of one window.  # (T,) -> (P, V)"""
    logits: Logits = lm.logits(window[None])[0]
    if logits.shape[0] != len(window):
        raise CheckFailed(f"{name} gave {logits.shape[0]} logits for {len(window)} tokens.")
    wanted: Logits = logits[-1 - scored : -1]
    if np.isnan(wanted).any() or np.isposinf(wanted).any():
        raise CheckFailed(f"{name} gave logits that are not numbers in window {number}.\nIts weights or its graph are broken.")
    return wanted


def _score(logits: Logits, targets: Ints, reference: Logits | None, name: str, number: int) -> WindowScore:
    """The score of one window.  # (P, V), (P,), (P, V)"""
    nll = 0.0
    for start in range(0, len(targets), _ROWS):
        rows = log_probabilities(logits[start : start + _ROWS])
        nll -= float(np.take_along_axis(rows, targets[start : start + _ROWS, None], axis=1).sum())
    if not math.isfinite(nll):
        raise CheckFailed(f"{name} gives a token of window {number} no probability at all: its perplexity is infinite.")
    if reference is None:
        return WindowScore(tokens=len(targets), nll=nll)
    kl = _kl(reference, logits)
    if not math.isfinite(kl):
        raise CheckFailed(f"KL is infinite in window {number}: {name} rules out tokens that the reference allows.")
    agreed = int((reference.argmax(axis=1) == logits.argmax(axis=1)).sum())
    return WindowScore(tokens=len(targets), nll=nll, kl=kl, agreed=agreed)


def _kl(reference: Logits, logits: Logits) -> float:
    """KL(reference || model) summed over positions.  # both (P, V)"""
    total = 0.0
    for start in range(0, len(logits), _ROWS):
        p = log_probabilities(reference[start : start + _ROWS])
        q = log_probabilities(logits[start : start + _ROWS])
        possible = np.isfinite(p)  # where the reference gives no probability, the term is 0, whatever the model says
        total += float(np.sum(np.exp(p) * np.subtract(p, q, where=possible, out=np.zeros_like(p))))
    return max(0.0, total)  # rounding may leave -1e-17


def perplexity_of(scores: Sequence[WindowScore]) -> Perplexity:
    """The perplexity that the scores of all windows make.

    Raises:
        CheckFailed: it is beyond all bounds.
    """
    tokens = [s.tokens for s in scores]
    nll, error = _mean([s.nll for s in scores], tokens)
    if nll > 700:
        raise CheckFailed(f"the mean negative log-likelihood is {nll:.0f} nats per token: the model is broken.")
    return Perplexity(
        perplexity=math.exp(nll),
        stderr=None if error is None else math.exp(nll) * error,
        nll=nll,
        nll_stderr=error,
        bits_per_token=nll / math.log(2),
        windows=len(scores),
        tokens=sum(tokens),
        window_nll=tuple(s.nll / s.tokens for s in scores),
    )


def comparison_of(scores: Sequence[WindowScore], reference: Sequence[WindowScore]) -> Comparison:
    """A model beside the reference, from the scores of both."""
    tokens = [s.tokens for s in scores]
    difference, error = _mean([s.nll - r.nll for s, r in zip(scores, reference, strict=True)], tokens)
    kl, kl_error = _mean([s.kl for s in scores if s.kl is not None], tokens)
    ratio = math.exp(difference)
    return Comparison(
        model=perplexity_of(scores),
        reference=perplexity_of(reference),
        ratio=ratio,
        ratio_stderr=None if error is None else ratio * error,
        kl=kl,
        kl_stderr=kl_error,
        top1_agreement=sum(s.agreed for s in scores if s.agreed is not None) / sum(tokens),
    )


def _mean(sums: Sequence[float], tokens: Sequence[int]) -> tuple[float, float | None]:
    """Mean over tokens of what was summed per window, and its standard error over windows (a ratio estimator's)."""
    total, n = sum(tokens), len(sums)
    mean = float(np.sum(sums)) / total
    if n < 2:
        return mean, None
    residuals = np.asarray(sums) - mean * np.asarray(tokens)
    return mean, math.sqrt(n / (n - 1) * float(np.sum(residuals**2))) / total
