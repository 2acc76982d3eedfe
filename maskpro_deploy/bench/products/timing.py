"""How single products are timed: by CUDA events, arms interleaved (A B B A).

Before every timing a large buffer is overwritten: weights then come from memory, as they do in a model, and not from the cache.
While that runs, Python has launched the product, so that launching is not timed (`measure_launch_ms` times it alone).
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from maskpro_deploy.bench import stats
from maskpro_deploy.bench.arms import SAMPLES_PER_BLOCK, block_order

CUDA, CPU = "cuda", "cpu"
DENSE = "dense"
_FLUSH_BYTES = 512 << 20  # several times any GPU's cache


class Stopwatch(Protocol):
    """Times one call; the answer can be had once the device is done."""

    device: str  # where the work runs

    def cover(self, launch_ms: float) -> None:
        """Hide a launch of this duration, where it can be hidden."""

    def time(self, work: Callable[[], object]) -> Callable[[], float]:
        """Run `work`; the result gives its milliseconds."""


class EventClock:
    """CUDA events around work on a cold cache."""

    device = CUDA

    def __init__(self, torch: Any) -> None:
        self._torch = torch
        self._buffer = torch.empty(_FLUSH_BYTES, dtype=torch.int8, device=CUDA)
        self._flushes = 1
        self._buffer.zero_()
        torch.cuda.synchronize()
        started = time.perf_counter()
        self._buffer.zero_()
        torch.cuda.synchronize()
        self._flush_ms = 1e3 * (time.perf_counter() - started)

    def cover(self, launch_ms: float) -> None:
        """Overwrite the buffer as often as it takes to hide a launch of this length twice over."""
        self._flushes = max(1, math.ceil(2 * launch_ms / self._flush_ms))

    def time(self, work: Callable[[], object]) -> Callable[[], float]:
        begin, end = (self._torch.cuda.Event(enable_timing=True) for _ in range(2))
        for _ in range(self._flushes):
            self._buffer.zero_()
        begin.record()
        work()
        end.record()

        def milliseconds() -> float:
            end.synchronize()
            return float(begin.elapsed_time(end))

        return milliseconds


def race_arms(arms: Mapping[str, Callable[[], object]], watch: Stopwatch, blocks: int) -> dict[str, list[list[float]]]:
    """Time arms in interleaved blocks.  # name -> (blocks, SAMPLES_PER_BLOCK) milliseconds"""
    samples: dict[str, list[list[float]]] = {name: [] for name in arms}
    for block in range(blocks):
        pending = [(name, watch.time(arms[name])) for name in block_order(list(arms), block)]
        taken: dict[str, list[float]] = {name: [] for name in arms}
        for name, milliseconds in pending:
            taken[name].append(milliseconds())
        for name, values in taken.items():
            samples[name].append(values[:SAMPLES_PER_BLOCK])
    return samples


def judge_samples(samples: Mapping[str, list[list[float]]]) -> dict[str, Any]:
    """Medians of all arms, and each other one against the dense one, where that ran, with its 95 % interval.

    Verdicts hold together for the arms of this one product. Where many products are counted, some differ by chance.
    """
    medians = {name: statistics.median([v for block in values for v in block]) for name, values in samples.items()}
    ratios: dict[str, Any] = {}
    for name in samples:
        if name == DENSE or DENSE not in samples:
            continue
        ratio = stats.compare(samples[name], samples[DENSE])
        if ratio is not None:
            ratio = ratio.judge(len(samples) - 1, stats.LEAST_DIFFERENCE)
            ratios[name] = {"speedup": ratio.speedup, "low": ratio.low, "high": ratio.high, "verdict": ratio.verdict}
    return {"median_ms": medians, "against_dense": ratios}


def synchronize(torch: Any, device: str) -> None:
    """Wait until the device has done all that was launched."""
    if device != CPU:
        torch.cuda.synchronize()


def measure_launch_ms(torch: Any, work: Callable[[], object], device: str) -> float:
    """The shortest time that Python needs to launch a product."""
    best = math.inf
    for _ in range(5):
        synchronize(torch, device)
        started = time.perf_counter()
        work()
        best = min(best, 1e3 * (time.perf_counter() - started))
    synchronize(torch, device)
    return best
