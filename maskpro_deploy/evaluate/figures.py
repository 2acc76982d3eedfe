"""Perplexity, and how far a model is from a reference: figures from the scores of windows.

The mean is taken over all scored tokens; perplexity is the exponential of the mean negative log-likelihood. Standard errors treat
the windows as the sample.

Shapes: `W` windows, `T` tokens in a window.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from maskpro_deploy.errors import CheckFailed
from maskpro_deploy.evaluate.scores import CausalLM, WindowScore, score_windows
from maskpro_deploy.system.progress import SILENT, Progress


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
    """A model compared with a reference, on the same windows.

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
    """Compare a model with a reference; see `compare_all`."""
    return compare_all({"the model": lm}, reference, windows, progress, stride=stride)[1]["the model"]


def compare_all(
    lms: Mapping[str, CausalLM],
    reference: CausalLM,
    windows: npt.NDArray[np.integer[Any]],
    progress: Progress = SILENT,
    *,
    stride: int | None = None,
) -> tuple[Perplexity, dict[str, Comparison]]:
    """Compare several models with one reference, which runs once per window.

    Args:
        lms: name -> model.
        reference: what they are compared with, such as the dense model.
        windows: tokens. `# (W, T)`
        progress: updated after each model and window.
        stride: see `score_windows`, also for what can go wrong.
    """
    name = "the reference"
    while name in lms:
        name += "_"
    scores = score_windows({name: reference, **lms}, windows, progress, reference=name, stride=stride)
    own = scores.pop(name)
    return perplexity_of(own), {key: comparison_of(of_model, own) for key, of_model in scores.items()}


def perplexity_of(scores: Sequence[WindowScore]) -> Perplexity:
    """The perplexity from the scores of all windows.

    Raises:
        CheckFailed: it is too large for a number.
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
    """A model compared with the reference, from the scores of both."""
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
