"""Parity: does the bundle compute what the checkpoint computes?

The bundle runs in onnxruntime, the checkpoint in anything that gives logits and greedy tokens (`Reference`; in practice
torch). Compared are logits, the distributions they mean, perplexity, greedy continuations, a prompt fed at once and token by
token, and a left-padded batch. Tolerances apply to logits and KL; the other figures are there to be read. A half-precision graph
runs with every value rounded to half precision (`half_precision.rounding`), and its values must stay in the type's range.

Shapes: `B` batch, `T` tokens, `V` vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from maskpro_deploy.data import HELD_OUT, load_text, load_tokenizer
from maskpro_deploy.errors import CheckFailed, ConfigError
from maskpro_deploy.exporters.checks.half_precision.opening import Opened, open_to_compare
from maskpro_deploy.exporters.checks.half_precision.rounding import NotRounded
from maskpro_deploy.exporters.checks.logit_figures import (
    QUANTISED_SIBLINGS,
    ROUTED,
    TOLERANCES,
    Logits,
    Tolerance,
    Verification,
    compare_logits,
    judge,
)
from maskpro_deploy.exporters.checks.ort_model import CheckedGraph
from maskpro_deploy.exporters.graph.builder import WIDER
from maskpro_deploy.manifest import Graph, Manifest
from maskpro_deploy.system.extras import missing, require
from maskpro_deploy.system.progress import SILENT, Progress

_PROMPTS, _PROMPT_TOKENS, _GREEDY_TOKENS = 4, 96, 64
_STEPS = 16


class OutOfRange(CheckFailed):
    """A value of a graph does not fit its half-precision type."""


class Reference(Protocol):
    """The model that the bundle must agree with."""

    def logits(self, tokens: npt.NDArray[np.int64]) -> Logits:
        """Logits at every position.  # (B, T) -> (B, T, V)"""

    def greedy(self, prompt: Sequence[int], count: int) -> list[int]:
        """The `count` most likely next tokens, one after another; end-of-text does not stop it."""


def verification_prompts(folder: Path, max_length: int) -> tuple[list[list[int]], int]:
    """Held-out text as prompts, from a folder with a tokenizer, and how many greedy tokens fit behind them."""
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
    manifest: Manifest | None = None,
) -> Verification:
    """Compare a bundle with the model it was made from.

    Args:
        bundle: the bundle's folder.
        reference: the model that the bundle must agree with.
        prompts: token sequences of at least two tokens each.
        greedy_tokens: how many tokens to generate behind the first prompt.
        progress: shows each prompt and each further comparison.
        manifest: the bundle's, where it is not written yet.

    Raises:
        ConfigError: the prompts are too short, or too long for the graph.
        MissingExtraError: onnxruntime is not installed.
        NotRounded: the graph is bf16, for which onnxruntime has no kernels, and cannot be rewritten.
        OutOfRange: a value does not fit the graph's half-precision type.
    """
    manifest = manifest if manifest is not None else Manifest.load(bundle)
    require("cpu", "checking a bundle")
    _check_prompts(prompts, greedy_tokens, manifest.model.max_length)
    opened = open_to_compare(bundle, manifest)
    tolerance = choose_tolerance(manifest.graph, routed=opened.routed)
    return _compare_models(opened, reference, prompts, greedy_tokens, tolerance, progress)


def verify_siblings(bundle: Path, manifest: Manifest) -> dict[str, Verification | str]:
    """Compare a bundle's further graphs with its own: form -> figures, or why there are none (OutOfRange: a value is)."""
    absent = missing("cpu")
    figures: dict[str, Verification | str] = {}
    for graph in manifest.siblings:
        if absent:
            figures[graph.form] = f"{absent[0]} is not installed"
            continue
        prompts, greedy = verification_prompts(bundle, graph.length or manifest.model.max_length)
        try:
            own, further = open_to_compare(bundle, manifest), open_to_compare(bundle, manifest, graph)
        except NotRounded as e:
            figures[graph.form] = str(e)
            continue
        tolerance = QUANTISED_SIBLINGS if graph.quantization else choose_tolerance(graph, routed=further.routed)
        figures[graph.form] = _compare_models(further, own.model, prompts, greedy, tolerance, SILENT)
    return figures


def choose_tolerance(graph: Graph, *, routed: bool = False) -> Tolerance:
    """What passes for a graph; `routed`: it chooses experts in half precision."""
    if routed and not graph.quantization:
        return ROUTED[graph.dtype]
    return TOLERANCES[graph.quantization.split()[0] if graph.quantization else graph.dtype]


def _compare_models(
    opened: Opened,
    reference: Reference,
    prompts: Sequence[Sequence[int]],
    greedy_tokens: int,
    tolerance: Tolerance,
    progress: Progress,
) -> Verification:
    """All figures of one comparison (OutOfRange: a value does not fit a half-precision type)."""
    model = opened.model
    ranges = opened.probes.measure(model, prompts) if opened.probes is not None else None
    if ranges is not None and ranges.fault:
        raise OutOfRange(f"{ranges.fault}.\nExport it with {WIDER[ranges.dtype]}.")
    stages = len(prompts) + 3
    pairs = []
    for done, prompt in enumerate(prompts, start=1):
        tokens = np.asarray([prompt], dtype=np.int64)
        pairs.append(compare_logits(model.logits(tokens)[0], reference.logits(tokens)[0], tokens[0]))
        progress.update(done, stages)
    steps = _measure_step_difference(model, prompts[0])
    progress.update(stages - 2, stages)
    padding = _measure_padding_difference(model, reference, prompts)
    progress.update(stages - 1, stages)
    equal, margin = _compare_greedy(model, reference, prompts[0], greedy_tokens)
    progress.update(stages, stages)
    verification = judge(tolerance, pairs, steps=steps, padding=padding, greedy=greedy_tokens, equal=equal, margin=margin)
    return dataclasses.replace(verification, arithmetic=opened.arithmetic, unrounded=opened.unrounded, ranges=ranges)


def _check_prompts(prompts: Sequence[Sequence[int]], greedy_tokens: int, max_length: int) -> None:
    lengths = [len(p) for p in prompts]
    if not lengths or min(lengths) < 2:
        raise ConfigError("a comparison needs at least one prompt, of at least 2 tokens.")
    if max(max(lengths), lengths[0] + greedy_tokens) > max_length:
        raise ConfigError(f"the prompts and {greedy_tokens} greedy tokens do not fit into the graph's {max_length} positions.")


def _measure_step_difference(model: CheckedGraph, prompt: Sequence[int]) -> float:
    """Feed a prompt at once, then all but its last tokens at once and those one by one."""
    tokens = np.asarray([prompt], dtype=np.int64)
    steps = min(_STEPS, len(prompt) - 1)
    whole = model.logits(tokens)
    head, cache = model.forward(tokens[:, :-steps])
    pieces = [head]
    for i in range(len(prompt) - steps, len(prompt)):
        logits, cache = model.forward(tokens[:, i : i + 1], cache)
        pieces.append(logits)
    return float(np.abs(np.concatenate(pieces, axis=1) - whole).max())


def _measure_padding_difference(model: CheckedGraph, reference: Reference, prompts: Sequence[Sequence[int]]) -> float:
    """Two prompts of different length in one batch, the shorter padded, with one cached step behind them."""
    longer, shorter = list(prompts[0]), list(prompts[-1])[: max(2, len(prompts[0]) // 2)]
    differences = [
        np.abs(ours - reference.logits(np.asarray([prompt], dtype=np.int64))[0]).max()
        for ours, prompt in zip(model.logits_together(longer, shorter), (longer, shorter), strict=True)
    ]
    return float(np.max(differences))  # unlike max(), np.max never hides a NaN


def _compare_greedy(model: CheckedGraph, reference: Reference, prompt: Sequence[int], count: int) -> tuple[int, float]:
    """How many greedy tokens agree, and how sure the reference is of the first that differs."""
    ours, theirs = model.greedy(prompt, count), reference.greedy(prompt, count)
    for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        if a != b:
            logits = reference.logits(np.asarray([[*prompt, *theirs[:i]]], dtype=np.int64))[0, -1]
            return i, float(logits[b] - logits[a])
    return count, 0.0
