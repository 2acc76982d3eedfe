"""Quality of a language model: perplexity, and how far it is from a reference.

Works on anything that yields logits, so that a torch checkpoint and an ONNX bundle are measured by the same code on the same
tokens. The protocol is stated with the figures, since a perplexity without it compares with nothing:

- the text becomes one stream of tokens: document by document with an end-of-text token after each (`JOIN_SEPARATOR`), or all
  documents joined by blank lines and tokenised at once (`JOIN_BLANK_LINE`, as is customary for WikiText-2);
- the stream is cut into windows of `T` tokens that do not overlap (stride = window); the rest is dropped;
- in each window the tokens 2 to T are scored, each given those before it in the window: T - 1 per window;
- no begin-of-text token, or one at the very start of the stream (`bos`).

Log-likelihoods are computed in float64 by log-sum-exp. Perplexity is exp of their negative mean over all scored tokens.

Shapes: `B` rows, `W` windows, `T` tokens in a window, `V` vocabulary, `P = T - 1` scored positions.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from maskpro_deploy import data
from maskpro_deploy.errors import CheckFailed, ConfigError, InputError
from maskpro_deploy.progress import SILENT, Progress

Floats = npt.NDArray[np.float64]
Logits = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

JOIN_SEPARATOR, JOIN_BLANK_LINE = "separator", "blank-line"
BOS_NONE, BOS_FIRST = "none", "first"
_ROWS = 64  # positions whose log-probabilities are in memory at once, as float64


class CausalLM(Protocol):
    """A language model that scores whole rows of tokens."""

    def logits(self, tokens: Ints) -> Logits:
        """Logits after each token.  # (B, T) -> (B, T, V)"""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalProtocol:
    """How text becomes windows; see the module's docstring.

    Attributes:
        window: tokens in a window; windows do not overlap.
        joining: JOIN_SEPARATOR or JOIN_BLANK_LINE.
        bos: BOS_NONE or BOS_FIRST.
        max_windows: take the first so many; None takes all.
    """

    window: int = 512
    joining: str = JOIN_SEPARATOR
    bos: str = BOS_NONE
    max_windows: int | None = None

    def __post_init__(self) -> None:
        if self.window < 2:
            raise ConfigError(f"--window {self.window} is out of range: 2 or more (the first token of a window is not scored).")
        if self.joining not in (JOIN_SEPARATOR, JOIN_BLANK_LINE):
            raise ConfigError(f"--joining {self.joining!r} is unknown: {JOIN_SEPARATOR} or {JOIN_BLANK_LINE}.")
        if self.bos not in (BOS_NONE, BOS_FIRST):
            raise ConfigError(f"--bos {self.bos!r} is unknown: {BOS_NONE} or {BOS_FIRST}.")
        if self.max_windows is not None and self.max_windows < 1:
            raise ConfigError(f"--max-windows {self.max_windows} is out of range: 1 or more.")

    def to_json(self) -> dict[str, Any]:
        """The protocol as it stands beside a figure."""
        return {**dataclasses.asdict(self), "stride": self.window, "scored_tokens_per_window": self.window - 1}

    def windows(self, text: data.Text, tokenizer: Tokenizer, *, separator: int | None, bos_token: int | None) -> Ints:
        """Cut a text into windows.  # (W, T)

        Args:
            text: the documents.
            tokenizer: the model's.
            separator: token after each document, for JOIN_SEPARATOR.
            bos_token: the model's begin-of-text token, for BOS_FIRST.

        Raises:
            ConfigError: the text is shorter than one window, or BOS_FIRST is asked for and the model has no such token.
        """
        if self.joining == JOIN_SEPARATOR:
            stream = data.token_stream(text.documents, tokenizer, separator)
        else:
            stream = data.token_stream(["\n\n".join(text.documents)], tokenizer, None)
        if self.bos == BOS_FIRST:
            if bos_token is None:
                raise ConfigError("--bos first: this model has no begin-of-text token.\nUse --bos none.")
            stream = np.concatenate([np.asarray([bos_token], dtype=stream.dtype), stream])
        return data.windows(stream, self.window, text.name)[: self.max_windows].astype(np.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Perplexity:
    """Perplexity of one model.

    Attributes:
        perplexity: exp of the mean negative log-likelihood.
        stderr: its standard error over windows (delta method); None for a single window.
        nll: mean negative log-likelihood in nats per token.
        bits_per_token: the same in bits.
        windows, tokens: how many windows, and tokens scored in them.
        window_nll: mean negative log-likelihood of each window.
    """

    perplexity: float
    stderr: float | None
    nll: float
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


def perplexity(lm: CausalLM, windows: npt.NDArray[np.integer[Any]], progress: Progress = SILENT) -> Perplexity:
    """Measure a model's perplexity.

    Args:
        lm: the model.
        windows: tokens.  # (W, T)
        progress: told after each window.

    Raises:
        ConfigError: there is no window, or windows are shorter than 2 tokens.
        InputError: a token is not in the model's vocabulary.
        CheckFailed: the model gave logits that are not numbers.
    """
    found, _ = _run({"the model": lm}, None, windows, progress)
    return found["the model"]


def compare(lm: CausalLM, reference: CausalLM, windows: npt.NDArray[np.integer[Any]], progress: Progress = SILENT) -> Comparison:
    """Measure a model beside a reference; see `compare_all`."""
    return compare_all({"the model": lm}, reference, windows, progress)[1]["the model"]


def compare_all(
    lms: Mapping[str, CausalLM],
    reference: CausalLM,
    windows: npt.NDArray[np.integer[Any]],
    progress: Progress = SILENT,
) -> tuple[Perplexity, dict[str, Comparison]]:
    """Measure several models beside one reference, which runs once per window.

    Args:
        lms: name -> model.
        reference: what they are compared with, such as the dense model.
        windows: tokens.  # (W, T)
        progress: told after each model and window.

    Raises:
        ConfigError: there is no window, or windows are shorter than 2 tokens.
        InputError: the vocabularies differ, or a token is in none of them.
        CheckFailed: a model gave logits that are not numbers.
    """
    name = "the reference"
    while name in lms:
        name += "_"
    found, distances = _run({name: reference, **lms}, name, windows, progress)
    own = found.pop(name)
    return own, {key: _comparison(found[key], own, distances[key]) for key in lms}


@dataclass(slots=True)
class _Distance:
    """Sums over windows: KL per window, and agreements."""

    window_kl: list[float]
    agreed: int = 0


def _run(
    lms: Mapping[str, CausalLM], reference: str | None, windows: npt.NDArray[np.integer[Any]], progress: Progress
) -> tuple[dict[str, Perplexity], dict[str, _Distance]]:
    """All models over all windows, one window at a time; distances to `reference` (the first model) where there is one."""
    if windows.ndim != 2 or windows.shape[0] == 0 or windows.shape[1] < 2:
        raise ConfigError(f"perplexity needs windows of 2 tokens or more, found shape {windows.shape}.")
    _check_vocabularies(lms, reference, int(windows.max()))
    nll: dict[str, list[float]] = {name: [] for name in lms}
    distances = {name: _Distance([]) for name in lms if name != reference}
    for w, window in enumerate(windows.astype(np.int64)):
        kept: Logits | None = None
        for i, (name, lm) in enumerate(lms.items()):
            logits = _logits(lm, name, window, w)
            nll[name].append(_mean_nll(logits, window[1:], name, w))
            if name == reference:
                kept = logits
            elif kept is not None:
                _add_distance(distances[name], kept, logits)
            progress.update(w * len(lms) + i + 1, len(windows) * len(lms))
    tokens = windows.shape[1] - 1
    return {name: _perplexity(values, tokens) for name, values in nll.items()}, distances


def _check_vocabularies(lms: Mapping[str, CausalLM], reference: str | None, largest: int) -> None:
    """Ask each model for two tokens' logits, so that a wrong vocabulary shows before anything long has run."""
    sizes = {name: lm.logits(np.zeros((1, 2), dtype=np.int64)).shape[-1] for name, lm in lms.items()}
    for name, size in sizes.items():
        if largest >= size:
            raise InputError(
                f"token {largest} is not in the vocabulary of {name}, which has {size}.\n"
                "The tokenizer does not belong to this model."
            )
        if reference is not None and size != sizes[reference]:
            raise InputError(
                f"{name} has a vocabulary of {size}, the reference one of {sizes[reference]}: they cannot be compared."
            )


def _logits(lm: CausalLM, name: str, window: Ints, number: int) -> Logits:
    """Logits of the scored positions of one window.  # (T,) -> (P, V)"""
    logits = lm.logits(window[None])[0, :-1]
    if logits.shape[0] != len(window) - 1:
        raise CheckFailed(f"{name} gave {logits.shape[0] + 1} logits for {len(window)} tokens.")
    if np.isnan(logits).any() or np.isposinf(logits).any():
        raise CheckFailed(f"{name} gave logits that are not numbers in window {number}.\nIts weights or its graph are broken.")
    return logits


def _mean_nll(logits: Logits, targets: Ints, name: str, number: int) -> float:
    """Mean negative log-likelihood.  # (P, V), (P,)"""
    total = 0.0
    for start in range(0, len(targets), _ROWS):
        rows = log_probabilities(logits[start : start + _ROWS])
        total -= float(np.take_along_axis(rows, targets[start : start + _ROWS, None], axis=1).sum())
    if not math.isfinite(total):
        raise CheckFailed(f"{name} gives a token of window {number} no probability at all: its perplexity is infinite.")
    return total / len(targets)


def _add_distance(distance: _Distance, reference: Logits, logits: Logits) -> None:
    """Add one window's KL and agreement.  # both (P, V)"""
    total = 0.0
    for start in range(0, len(logits), _ROWS):
        p = log_probabilities(reference[start : start + _ROWS])
        q = log_probabilities(logits[start : start + _ROWS])
        possible = np.isfinite(p)  # where the reference gives no probability, the term is 0, whatever the model says
        total += float(np.sum(np.exp(p) * np.subtract(p, q, where=possible, out=np.zeros_like(p))))
    distance.window_kl.append(max(0.0, total / len(logits)))  # rounding may leave -1e-17
    distance.agreed += int((reference.argmax(axis=1) == logits.argmax(axis=1)).sum())


def _stderr(values: Sequence[float]) -> float | None:
    """Standard error of the mean, or None for a single value."""
    return float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None


def _perplexity(window_nll: Sequence[float], tokens_per_window: int) -> Perplexity:
    nll = float(np.mean(window_nll))  # all windows score the same number of tokens
    if nll > 700:
        raise CheckFailed(f"the mean negative log-likelihood is {nll:.0f} nats per token: the model is broken.")
    error = _stderr(window_nll)
    return Perplexity(
        perplexity=math.exp(nll),
        stderr=None if error is None else math.exp(nll) * error,
        nll=nll,
        bits_per_token=nll / math.log(2),
        windows=len(window_nll),
        tokens=len(window_nll) * tokens_per_window,
        window_nll=tuple(window_nll),
    )


def _comparison(model: Perplexity, reference: Perplexity, distance: _Distance) -> Comparison:
    error = _stderr(np.subtract(model.window_nll, reference.window_nll).tolist())
    ratio = math.exp(model.nll - reference.nll)
    kl = float(np.mean(distance.window_kl))
    if not math.isfinite(kl):
        raise CheckFailed("KL is infinite: the model rules out tokens that the reference allows.")
    return Comparison(
        model=model,
        reference=reference,
        ratio=ratio,
        ratio_stderr=None if error is None else ratio * error,
        kl=kl,
        kl_stderr=_stderr(distance.window_kl),
        top1_agreement=distance.agreed / model.tokens,
    )
