"""From logits to log-likelihoods and their distance, in float64 by log-sum-exp.

Shapes: `B` rows, `T` tokens, `V` vocabulary, `P` scored positions.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from maskpro_deploy.errors import CheckFailed
from maskpro_deploy.evaluate.protocol import Ints

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
