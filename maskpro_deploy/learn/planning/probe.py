"""What is measured here and not counted: the learner's own state, weighed on a real run over one tiny block, and times.

Shapes: `O` outputs, `C` inputs, `t` tokens of a measured product.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn

from maskpro_deploy.learn.loop import TrainingLoop
from maskpro_deploy.learn.model.model import LearningModel
from maskpro_deploy.learn.planning.runs import PlannedRun, make_tiny, make_windows
from maskpro_deploy.learn.state import StateStore

_PROBE_TOKENS = 512  # of a measured matrix product; the rest is scaled
_TINY_SCALE, _LAYER_SIDE = 8, 256
_PROBE_S = 0.3  # seconds for each measured shape
_FACTORS = "lora_"  # in the keys of what belongs to low-rank deltas
_IN_PLACE = ("trained/", "now/kept/", "start/")  # of what is saved: what the model itself holds, and what is counted apart


@dataclass(frozen=True, slots=True, kw_only=True)
class StateBytes:
    """Bytes of state beyond the model's weights."""

    per_weight: float  # for each weight under a mask
    per_vector: float  # for each number in a vector that is trained: the scales of norms, and biases
    copied: float  # for each weight under a mask, while the best is replaced: old and new are held then
    per_factor: float  # for each number in the factors of low-rank deltas
    copied_factor: float  # and while the best is replaced

    def count(self, weights: int, vectors: int, factors: int) -> int:
        """Bytes of so many of each."""
        return math.ceil(self.per_weight * weights + self.per_vector * vectors + self.per_factor * factors)

    def count_copied(self, weights: int, factors: int) -> int:
        """Bytes while the best is replaced."""
        return math.ceil(self.copied * weights + self.copied_factor * factors)


def weigh_state(run: PlannedRun, dtype: torch.dtype) -> StateBytes:
    """What the learner keeps: what it saves, less the weights in the model, what it started from, and the masks in use."""
    with tempfile.TemporaryDirectory() as folder:
        store = StateStore(Path(folder), "probe")
        loop = _run_tiny(run, "cpu", dtype, store, _TINY_SCALE)
        loop.save()
        saved, _ = store.load()
    layers = {layer.name: layer for layer in loop.masked}
    weights = sum(layer.weight.numel() for layer in layers.values())
    vectors = sum(p.numel() for p in loop.model.model.parameters() if p.dim() == 1)
    factors = max(1, run.rank * sum(sum(layer.weight.shape) for layer in layers.values()))
    held = [(name, x) for name, x in saved.items() if not name.startswith(_IN_PLACE)] + [*loop.remembered_start().items()]
    of_factors = sum(x.nbytes for name, x in held if _FACTORS in name)
    of_layers = sum(x.nbytes for name, x in held if _FACTORS not in name and name.rpartition("/")[2] in layers)
    of_vectors = sum(x.nbytes for _, x in held) - of_layers - of_factors
    in_use = sum(layer.kept.nbytes for layer in layers.values())
    best = loop.best_tensors()
    copied_factors = sum(x.nbytes for name, x in best.items() if _FACTORS in name)
    copied = sum(x.nbytes for x in best.values()) - copied_factors
    return StateBytes(
        per_weight=(of_layers + in_use) / weights, per_vector=of_vectors / vectors, copied=copied / weights,
        per_factor=of_factors / factors, copied_factor=copied_factors / factors,
    )  # fmt: skip


def measure_products(
    run: PlannedRun, layers: Mapping[str, nn.Linear], model: LearningModel, device: str, dtype: torch.dtype
) -> float:
    """Seconds in matrix products of a step: those of the run in all layers, and as many for the head.

    A run that goes block by block needs no head; its steps are added up over all blocks.
    """
    shapes = Counter(tuple(layer.weight.shape) for layer in layers.values())
    tokens = run.config.sequences * run.config.window
    probe = min(_PROBE_TOKENS, tokens)
    total = 0.0
    if not run.by_block:
        shapes[tuple(model.head.shape)] += 1
    for (rows, columns), count in shapes.items():
        x = torch.ones(probe, columns, dtype=dtype, device=device)  # (t, C)
        w = torch.ones(rows, columns, dtype=dtype, device=device)  # (O, C)
        total += run.products * count * _best_seconds(partial(torch.matmul, x, w.t()), device) * tokens / probe
    return total


def measure_moves(run: PlannedRun, layers: Mapping[str, nn.Linear], device: str, dtype: torch.dtype) -> float:
    """Seconds for masking all layers and moving logits and weights, from those of one layer of some hundred thousand weights."""
    loop = _run_tiny(run, device, dtype, None, max(1, _LAYER_SIDE // (2 * run.pattern.m)))
    layer = max(loop.masked, key=lambda s: s.weight.numel())
    grad = torch.full_like(layer.weight, 1e-4)

    def once() -> None:
        layer.masked_weight()
        layer.hook.take_gradient(layer, grad)

    total = sum(layer.weight.numel() for layer in layers.values())
    return _best_seconds(once, device) * total / layer.weight.numel()


def _run_tiny(run: PlannedRun, device: str, dtype: torch.dtype, store: StateStore | None, scale: int) -> TrainingLoop:
    """A real run over one small random block, after a step."""
    model, teacher = (make_tiny(run.pattern, device, dtype, scale) for _ in range(2))
    loop = run.open_tiny(model, teacher, make_windows(), store)
    loop.run()
    return loop


def _best_seconds(work: Callable[[], object], device: str) -> float:
    """The least time of one call, over some tenths of a second."""

    def time_once() -> float:
        started = time.perf_counter()
        work()
        if device != "cpu":
            torch.cuda.synchronize()
        return time.perf_counter() - started

    with torch.no_grad():
        time_once()  # the first call also sets up
        until = time.perf_counter() + _PROBE_S
        best = time_once()
        while time.perf_counter() < until:
            best = min(best, time_once())
    return best
