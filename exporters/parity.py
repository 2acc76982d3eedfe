"""Parity: does the bundle compute what the checkpoint computes?

The bundle runs in onnxruntime, the checkpoint in anything that gives logits and greedy tokens (`Reference`; in practice
torch). Compared are logits, the distributions they mean, perplexity, greedy continuations, a prompt fed at once and token by
token, and a left-padded batch. Tolerances apply to logits and KL; the other figures are there to be read.

Shapes: `B` batch, `T` tokens, `V` vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from maskpro_deploy.data import HELD_OUT, load_text, load_tokenizer
from maskpro_deploy.errors import ConfigError, MachineError
from maskpro_deploy.exporters.ort_model import OrtModel
from maskpro_deploy.extras import require
from maskpro_deploy.manifest import Manifest
from maskpro_deploy.progress import SILENT, Progress


@dataclass(frozen=True, slots=True, kw_only=True)
class Tolerance:
    """What passes: the largest difference of any logit, and the mean KL divergence in nats."""

    logits: float
    kl: float


# per float type of the graph; half precision moves single logits of a large vocabulary far more than it moves distributions
TOLERANCES = {"fp32": Tolerance(logits=1e-3, kl=1e-6), "fp16": Tolerance(logits=0.5, kl=1e-4)}
_PROMPTS, _PROMPT_TOKENS, _GREEDY_TOKENS = 4, 96, 64
_STEPS = 16

Logits = npt.NDArray[np.float32]


class Reference(Protocol):
    """The model that the bundle must agree with."""

    def logits(self, tokens: npt.NDArray[np.int64]) -> Logits:
        """Logits at every position.  # (B, T) -> (B, T, V)"""

    def greedy(self, prompt: Sequence[int], count: int) -> list[int]:
        """The `count` most likely next tokens, one after another; end-of-text does not stop it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """Figures of one comparison.

    Attributes:
        passed: every difference of logits is within `tolerance`, the mean KL within `kl_tolerance`, and greedy tokens differ at
            ties only.
        tolerance, kl_tolerance: the largest logit difference and mean KL that pass.
        tokens: positions compared.
        max_logit_difference, mean_logit_difference: absolute, over all positions and the vocabulary.
        max_kl, mean_kl: KL divergence of the bundle's next-token distribution from the reference's, in nats.
        top1_agreement: share of positions with the same most likely token.
        perplexity, reference_perplexity: of the prompts' own tokens.
        greedy_tokens, greedy_equal: greedy tokens generated, and how many agree before the first that differs.
        greedy_margin: the reference's preference, in logits, where the first token differs; 0 if none does.
        step_difference: largest logit difference between a prompt fed at once and token by token.
        padding_difference: largest logit difference to the reference in a left-padded batch of two.
    """

    passed: bool
    tolerance: float
    kl_tolerance: float
    tokens: int
    max_logit_difference: float
    mean_logit_difference: float
    max_kl: float
    mean_kl: float
    top1_agreement: float
    perplexity: float
    reference_perplexity: float
    greedy_tokens: int
    greedy_equal: int
    greedy_margin: float
    step_difference: float
    padding_difference: float

    def to_json(self) -> dict[str, Any]:
        """For the manifest."""
        return {"status": "passed" if self.passed else "failed", **dataclasses.asdict(self)}

    def summary(self) -> str:
        """The figures in one line."""
        return (
            f"largest logit difference {self.max_logit_difference:.2g} over {self.tokens} positions "
            f"(tolerance {self.tolerance:g}), step by step {self.step_difference:.2g}, padded {self.padding_difference:.2g}, "
            f"mean KL {self.mean_kl:.2g} ({self.kl_tolerance:g}), same top token {self.top1_agreement:.1%}, "
            f"perplexity {self.perplexity:.3f} against {self.reference_perplexity:.3f}, "
            f"greedy tokens equal {self.greedy_equal} of {self.greedy_tokens}"
        )


def verification_prompts(folder: Path, max_length: int) -> tuple[list[list[int]], int]:
    """Held-out text as prompts, and how many greedy tokens fit behind them.

    Args:
        folder: a bundle or checkpoint with a tokenizer.
        max_length: the longest sequence of the graph.
    """
    greedy = min(_GREEDY_TOKENS, max_length // 2)
    length = min(_PROMPT_TOKENS, max_length - greedy)
    tokenizer = load_tokenizer(folder)
    documents = load_text(HELD_OUT).documents
    chosen = documents[:: max(1, len(documents) // _PROMPTS)][:_PROMPTS]  # from several genres
    return [tokenizer.encode(text, add_special_tokens=False).ids[:length] for text in chosen], greedy


def verify(
    bundle: Path,
    reference: Reference,
    prompts: Sequence[Sequence[int]],
    greedy_tokens: int = _GREEDY_TOKENS,
    progress: Progress = SILENT,
) -> Verification:
    """Compare a bundle with the model it was made from.

    Args:
        bundle: the bundle's folder.
        reference: the model that the bundle must agree with.
        prompts: token sequences of at least two tokens each.
        greedy_tokens: how many tokens to generate behind the first prompt.
        progress: told after each prompt and each further comparison.

    Raises:
        ConfigError: the prompts are too short, or too long for the graph.
        MissingExtraError: onnxruntime is not installed.
        MachineError: onnxruntime has no kernels for the graph's dtype.
    """
    require("cpu", "checking a bundle")
    manifest = Manifest.load(bundle)
    _check_prompts(prompts, greedy_tokens, manifest.model.max_length)
    if manifest.graph.dtype not in TOLERANCES:
        raise MachineError(f"onnxruntime has no {manifest.graph.dtype} kernels for CPUs: this bundle cannot be checked here.")
    model = OrtModel(bundle, manifest)
    stages = len(prompts) + 3
    pairs = []
    for done, prompt in enumerate(prompts, start=1):
        tokens = np.asarray([prompt], dtype=np.int64)
        pairs.append(_compare(model.logits(tokens)[0], reference.logits(tokens)[0], tokens[0]))
        progress.update(done, stages)
    steps = _step_difference(model, prompts[0])
    progress.update(stages - 2, stages)
    padding = _padding_difference(model, reference, prompts)
    progress.update(stages - 1, stages)
    equal, margin = _greedy(model, reference, prompts[0], greedy_tokens)
    progress.update(stages, stages)
    return _verdict(TOLERANCES[manifest.graph.dtype], pairs, steps, padding, greedy_tokens, equal, margin)


def _check_prompts(prompts: Sequence[Sequence[int]], greedy_tokens: int, max_length: int) -> None:
    lengths = [len(p) for p in prompts]
    if not lengths or min(lengths) < 2:
        raise ConfigError("a comparison needs at least one prompt, of at least 2 tokens.")
    if max(max(lengths), lengths[0] + greedy_tokens) > max_length:
        raise ConfigError(f"the prompts and {greedy_tokens} greedy tokens do not fit into the graph's {max_length} positions.")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pair:
    """Sums over the positions of one prompt."""

    positions: int
    max_difference: float
    mean_difference: float
    max_kl: float
    sum_kl: float
    same_top: int
    nll: float
    reference_nll: float


def _compare(ours: Logits, theirs: Logits, tokens: npt.NDArray[np.int64]) -> _Pair:
    """All figures of one prompt.  # (T, V), (T, V), (T,)"""
    p, q = _log_softmax(theirs), _log_softmax(ours)
    kl = (np.exp(p) * (p - q)).sum(axis=-1)  # (T,)
    difference = np.abs(ours.astype(np.float64) - theirs)
    following = np.arange(len(tokens) - 1), tokens[1:]
    return _Pair(
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


def _step_difference(model: OrtModel, prompt: Sequence[int]) -> float:
    """Feed a prompt at once, then all but its last tokens at once and those one by one."""
    tokens = np.asarray([prompt], dtype=np.int64)
    steps = min(_STEPS, len(prompt) - 1)
    whole, state = model.logits(tokens)[0], model.start(1)
    pieces = [model.run(tokens[:, :-steps], state)[0]]
    pieces.extend(model.run(tokens[:, i : i + 1], state)[0] for i in range(len(prompt) - steps, len(prompt)))
    return float(np.abs(np.concatenate(pieces) - whole).max())


def _padding_difference(model: OrtModel, reference: Reference, prompts: Sequence[Sequence[int]]) -> float:
    """Two prompts of different length in one batch, the shorter padded on the left, with one cached step behind them."""
    longer, shorter = list(prompts[0]), list(prompts[-1])[: max(1, len(prompts[0]) // 2)]
    pad = len(longer) - len(shorter)
    tokens = np.asarray([longer, [0] * pad + shorter], dtype=np.int64)
    mask = np.ones_like(tokens)
    mask[1, :pad] = 0
    state = model.start(2)
    ours = np.concatenate([model.run(tokens[:, :-1], state, mask[:, :-1]), model.run(tokens[:, -1:], state, mask)], axis=1)
    differences = [
        np.abs(ours[row, -len(prompt) :] - reference.logits(np.asarray([prompt], dtype=np.int64))[0]).max()
        for row, prompt in enumerate((longer, shorter))
    ]
    return float(np.max(differences))  # unlike max(), np.max never hides a NaN


def _greedy(model: OrtModel, reference: Reference, prompt: Sequence[int], count: int) -> tuple[int, float]:
    """How many greedy tokens agree, and how sure the reference is of the first that differs."""
    ours, theirs = model.greedy(prompt, count), reference.greedy(prompt, count)
    for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        if a != b:
            logits = reference.logits(np.asarray([[*prompt, *theirs[:i]]], dtype=np.int64))[0, -1]
            return i, float(logits[b] - logits[a])
    return count, 0.0


def _verdict(
    tolerance: Tolerance, pairs: Sequence[_Pair], steps: float, padding: float, greedy: int, equal: int, margin: float
) -> Verification:
    positions = sum(p.positions for p in pairs)
    predicted = positions - len(pairs)
    largest = float(np.max([p.max_difference for p in pairs]))
    mean_kl = sum(p.sum_kl for p in pairs) / positions
    # two logits may each be off by the tolerance before a preference turns over; a NaN fails every comparison
    limits = ((largest, 1), (steps, 1), (padding, 1), (margin, 2))
    passed = all(value <= factor * tolerance.logits for value, factor in limits) and mean_kl <= tolerance.kl
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
        perplexity=float(np.exp(sum(p.nll for p in pairs) / predicted)),
        reference_perplexity=float(np.exp(sum(p.reference_nll for p in pairs) / predicted)),
        greedy_tokens=greedy,
        greedy_equal=equal,
        greedy_margin=margin,
        step_difference=steps,
        padding_difference=padding,
    )
