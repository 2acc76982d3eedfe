"""Figures of a comparison of logits, and what passes.

Shapes: `T` tokens, `V` vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from maskpro_deploy.exporters.checks.half_precision.ranges import Ranges
from maskpro_deploy.exporters.graph.weight_kinds import WEIGHT_KINDS

Logits = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tolerance:
    """What passes."""

    logits: float | None  # the largest difference of any logit; None: any, as for quantised weights, which are other weights
    kl: float  # the mean KL divergence in nats
    perplexity: float | None = None  # of the bundle's, over the reference's; None: any
    # how far, in logits, the reference may prefer its own greedy token where the first one differs; None: twice `logits`, because
    # two logits may each be off by that before a preference turns over
    preference: float | None = None


# per float type of the graph, or per quantisation; half precision moves single logits of a large vocabulary far more than it
# moves distributions: its tolerances are about twice the most that a tiny model of any architecture needs (docs/export.md).
TOLERANCES = {
    "fp32": Tolerance(logits=1e-3, kl=1e-6),
    "fp16": Tolerance(logits=1.5, kl=1e-3, preference=0.25),
    "bf16": Tolerance(logits=10.0, kl=0.05, preference=1.0),
    **{kind.name: Tolerance(logits=None, kl=kind.kl, perplexity=kind.perplexity) for kind in WEIGHT_KINDS.values()},
}
# graphs that choose experts: where two are nearly as good, half precision may choose the other one, which moves all logits of
# that position
ROUTED = {"fp16": Tolerance(logits=None, kl=0.01, perplexity=1.05), "bf16": Tolerance(logits=None, kl=0.1, perplexity=1.1)}
# two forms over the same quantised weights: onnxruntime rounds activations too, and turns last bits into whole steps
QUANTISED_SIBLINGS = Tolerance(logits=None, kl=0.02, perplexity=1.02)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """Figures of one comparison."""

    # every difference of logits is within `tolerance`, the mean KL within `kl_tolerance`, and greedy tokens differ at ties only;
    # for quantised weights, which change logits, the mean KL and the perplexity are within bounds
    passed: bool
    tolerance: float | None  # the largest logit difference (None: any) and mean KL that pass
    kl_tolerance: float
    tokens: int  # positions compared
    max_logit_difference: float  # absolute, over all positions and the vocabulary
    mean_logit_difference: float
    max_kl: float  # KL divergence of the bundle's next-token distribution from the reference's, in nats
    mean_kl: float
    top1_agreement: float  # share of positions with the same most likely token
    perplexity: float  # of the prompts' own tokens
    reference_perplexity: float
    greedy_tokens: int  # greedy tokens generated, and how many agree before the first that differs
    greedy_equal: int
    greedy_margin: float  # the reference's preference, in logits, where the first token differs; 0 if none does
    step_difference: float  # largest logit difference between a prompt fed at once and token by token
    padding_difference: float  # largest logit difference to the reference in a left-padded batch of two
    arithmetic: str = "fp32"  # what the graph computed in, in words
    unrounded: str = ""  # "fp16 not verified" and why, if a half-precision graph computed in fp32; else ""
    ranges: Ranges | None = None  # the largest values of a graph that computed in half precision

    def to_json(self) -> dict[str, Any]:
        """For the manifest."""
        figures = {"status": "passed" if self.passed else "failed", **dataclasses.asdict(self)}
        del figures["unrounded"], figures["ranges"]
        if self.unrounded:
            figures["half_precision"] = self.unrounded
        if self.ranges is not None:
            figures |= {"range": self.ranges.to_json(), "warnings": [text] if (text := self.ranges.warning()) else []}
        return figures

    def summary(self) -> str:
        """The figures in one line."""
        bound = "" if self.tolerance is None else f" (tolerance {self.tolerance:g})"
        return (
            f"largest logit difference {self.max_logit_difference:.2g} over {self.tokens} positions{bound}, "
            f"step by step {self.step_difference:.2g}, padded {self.padding_difference:.2g}, "
            f"mean KL {self.mean_kl:.2g} ({self.kl_tolerance:g}), same top token {self.top1_agreement:.1%}, "
            f"perplexity {self.perplexity:.3f} against {self.reference_perplexity:.3f}, "
            f"greedy tokens equal {self.greedy_equal} of {self.greedy_tokens}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Sums over the positions of one prompt."""

    positions: int
    max_difference: float
    mean_difference: float
    max_kl: float
    sum_kl: float
    same_top: int
    nll: float
    reference_nll: float


def compare_logits(ours: Logits, theirs: Logits, tokens: npt.NDArray[np.int64]) -> Pair:
    """All figures of one prompt.  # (T, V), (T, V), (T,)"""
    p, q = _log_softmax(theirs), _log_softmax(ours)
    kl = (np.exp(p) * (p - q)).sum(axis=-1)  # (T,)
    difference = np.abs(ours.astype(np.float64) - theirs)
    following = np.arange(len(tokens) - 1), tokens[1:]
    return Pair(
        positions=len(tokens),
        max_difference=float(difference.max()),
        mean_difference=float(difference.mean()),
        max_kl=float(max(kl.max(), 0.0)),  # rounding can put it a hair below zero
        sum_kl=float(max(kl.sum(), 0.0)),
        same_top=int((ours.argmax(-1) == theirs.argmax(-1)).sum()),
        nll=-float(q[following].sum()),
        reference_nll=-float(p[following].sum()),
    )


def _log_softmax(logits: Logits) -> npt.NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    result: npt.NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result


def judge(
    tolerance: Tolerance, pairs: Sequence[Pair], *, steps: float, padding: float, greedy: int, equal: int, margin: float
) -> Verification:
    """Sum up all comparisons; the arguments are the fields of `Verification` in short."""
    positions = sum(p.positions for p in pairs)
    predicted = positions - len(pairs)
    largest = float(np.max([p.max_difference for p in pairs]))
    mean_kl = sum(p.sum_kl for p in pairs) / positions
    perplexity, reference = (
        float(np.exp(sum(nll) / predicted)) for nll in zip(*((p.nll, p.reference_nll) for p in pairs), strict=True)
    )
    # a NaN fails every comparison
    passed = mean_kl <= tolerance.kl
    if tolerance.logits is not None:
        preference = tolerance.preference if tolerance.preference is not None else 2 * tolerance.logits
        passed = passed and all(value <= tolerance.logits for value in (largest, steps, padding)) and margin <= preference
    if tolerance.perplexity is not None:
        passed = passed and perplexity <= tolerance.perplexity * reference
    return Verification(
        passed=passed,
        tolerance=tolerance.logits,
        kl_tolerance=tolerance.kl,
        tokens=positions,
        max_logit_difference=largest,
        mean_logit_difference=sum(p.mean_difference * p.positions for p in pairs) / positions,
        max_kl=float(np.max([p.max_kl for p in pairs])),
        mean_kl=mean_kl,
        top1_agreement=sum(p.same_top for p in pairs) / positions,
        perplexity=perplexity,
        reference_perplexity=reference,
        greedy_tokens=greedy,
        greedy_equal=equal,
        greedy_margin=margin,
        step_difference=steps,
        padding_difference=padding,
    )
