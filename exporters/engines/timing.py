"""The sparse engine against its dense twin, on a GPU: in whole and layer by layer, interleaved, at several batches.

Both engines hold the same graph, profiles and kernel times, so they differ in the kernels chosen for sparse weights and nothing
else. A *point* is one shape of a call. At each point the engines run in blocks A B B A, B A A B, ..., and the ratio comes with an
interval (`bench.stats`). Layers are timed in passes of their own, since a profiler slows an engine down: their times show where
time goes, their sum is no latency.

This module is pure: what runs an engine is behind `Runner`, so everything but the GPU is tested without one.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from maskpro_deploy.bench.arms import SAMPLES_PER_BLOCK, block_order
from maskpro_deploy.bench.statistics import stats
from maskpro_deploy.bench.statistics.break_even import find_break_even
from maskpro_deploy.exporters.engines.sparsity_log import mentions

SPARSE, DENSE = "sparse", "dense"
NO_GPU = "not measured (no GPU)"
BLOCKS, LAYER_PASSES, _WARM_UP = 24, 4, 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """One layer of a built engine, perhaps fused of several of the graph.

    Attributes:
        name: the engine's name for it.
        tactic: name of the kernel that runs it, where known.
        text: name and metadata, in which the graph's nodes are mentioned.
        sparse: the kernel runs on sparse tensor cores.
    """

    name: str
    tactic: str
    text: str
    sparse: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One shape of a call.

    Attributes:
        kind: "prefill" or "decode".
        batch: sequences.
        new: tokens of each that are computed.
        past: tokens of each that are in the cache.
        profile: index of the engine's profile that takes it.
        shapes: of all inputs.
    """

    kind: str
    batch: int
    new: int
    past: int
    profile: int
    shapes: Mapping[str, tuple[int, ...]]

    @property
    def name(self) -> str:
        return f"{self.kind}, batch {self.batch}, {self.new} new, {self.past} past"


class Runner(Protocol):
    """An engine that can be run at a point."""

    def prepare(self, point: Point) -> None:
        """Make all that follows run at this point."""

    def time_ms(self) -> float:
        """Run once; milliseconds on the device."""

    def layers_ms(self) -> Mapping[str, float]:
        """Run once with a profiler; layer name -> milliseconds."""

    def kernels(self) -> Sequence[Kernel]:
        """The engine's layers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PointResult:
    """What was measured at one point.

    Attributes:
        name: the point's.
        sparse_ms: median of the sparse engine.
        dense_ms: median of the dense engine.
        speedup: dense over sparse, drift removed, with `low` and `high` of its 95 % interval; None with too few blocks.
        verdict: "faster", "slower" or "no difference seen" (or "of interest"), for the sparse engine.
        layers: initializer -> milliseconds of the kernels that use it, [sparse, dense]; one that fuses several counts for each.
        layers_sum_ms: all layers under the profiler, [sparse, dense].
    """

    name: str
    kind: str
    batch: int
    new: int
    past: int
    sparse_ms: float
    dense_ms: float
    speedup: float | None
    low: float | None
    high: float | None
    verdict: str
    layers: Mapping[str, tuple[float | None, float | None]]
    layers_sum_ms: tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Both engines side by side.

    Attributes:
        dense_file: the dense engine in the bundle.
        sparse_bytes, dense_bytes: their sizes.
        sparse_build_s, dense_build_s: seconds of the builds; of an engine that was there already, when it was built.
        not_measured: why no time was measured; "" if it was.
        points: what was measured.
    """

    dense_file: str
    sparse_bytes: int
    dense_bytes: int
    sparse_build_s: float
    dense_build_s: float
    not_measured: str
    points: tuple[PointResult, ...] = ()

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Comparison:
        """What `dataclasses.asdict` gave."""
        return cls(**{**value, "points": tuple(point_from_json(p) for p in value["points"])})

    @property
    def headline(self) -> PointResult | None:
        """The largest prefill that was measured, where sparsity has most to gain; else the largest decode."""
        return max(self.points, key=lambda p: (p.kind != "decode", p.batch * p.new), default=None)

    @property
    def break_even(self) -> dict[str, int | None]:
        """For each kind of call, the batch from which on sparse is faster at every one measured; None if at none."""
        return self._break_even(lambda point: point.verdict)

    def layer_break_even(self, weight: str) -> dict[str, int | None]:
        """The same for one layer, by the medians of its kernels under the profiler: no interval stands behind it."""

        def verdict(point: PointResult) -> str:
            sparse, dense = point.layers.get(weight, (None, None))
            return stats.FASTER if sparse is not None and dense is not None and sparse < dense else stats.NO_DIFFERENCE

        return self._break_even(verdict)

    def _break_even(self, verdict: Callable[[PointResult], str]) -> dict[str, int | None]:
        found: dict[str, int | None] = {}
        for kind in dict.fromkeys(p.kind for p in self.points):
            by_batch: dict[int, str] = {}
            for point in (p for p in self.points if p.kind == kind):  # several lengths: all have to be faster
                before = by_batch.get(point.batch, stats.FASTER)
                by_batch[point.batch] = verdict(point) if before == stats.FASTER else before
            found[kind] = find_break_even(by_batch)
        return found

    @property
    def sentence(self) -> str:
        """What sparsity gained here."""
        if self.not_measured:
            return f"{self.not_measured}; {self.sparse_bytes / 1e6:.1f} MB, dense {self.dense_bytes / 1e6:.1f} MB"
        head = self.headline
        if head is None or head.speedup is None:
            return "not measured: too few runs in the time given"
        evens = [f"{kind} from batch {b} on" if b else f"{kind} at no batch" for kind, b in self.break_even.items()]
        return (
            f"{head.name}: sparse runs at {head.speedup:.3f}x the speed of dense, 95 % interval "
            f"[{head.low:.3f}, {head.high:.3f}]: {head.verdict}; break-even: {', '.join(evens)}"
        )


def point_from_json(value: Mapping[str, Any]) -> PointResult:
    """What `dataclasses.asdict` gave, with lists for tuples."""
    layers = {name: (at[0], at[1]) for name, at in value["layers"].items()}
    total = value["layers_sum_ms"]
    return PointResult(**{**value, "layers": layers, "layers_sum_ms": (total[0], total[1])})


def measure(
    runners: Mapping[str, Runner],
    points: Sequence[Point],
    nodes: Mapping[str, str],
    *,
    budget_s: float,
    clock: Callable[[], float] = time.monotonic,
    on_point: Callable[[int, str], None] = lambda done, name: None,
) -> tuple[PointResult, ...]:
    """Time both engines at every point, as far as the time goes.

    Args:
        runners: `SPARSE` and `DENSE`.
        points: in order of importance.
        nodes: initializer -> the node of the graph that multiplies with it.
        budget_s: seconds for everything; a point that has begun is finished.
        clock: seconds, monotonic.
        on_point: told how many points are done, and the next one's name.
    """
    ends = clock() + budget_s
    found: list[PointResult] = []
    for done, point in enumerate(points):
        if done and clock() > ends:
            break
        on_point(done, point.name)
        for runner in runners.values():
            runner.prepare(point)
            for _ in range(_WARM_UP):
                runner.time_ms()
        samples = _race(runners, ends, clock)
        layers = {name: _layer_medians(runner) for name, runner in runners.items()}
        found.append(_result(point, samples, layers, runners, nodes, comparisons=len(points)))
    return tuple(found)


def _race(runners: Mapping[str, Runner], ends: float, clock: Callable[[], float]) -> dict[str, list[list[float]]]:
    """Milliseconds in interleaved blocks, at least as many as an interval needs.  # name -> (blocks, SAMPLES_PER_BLOCK)"""
    samples: dict[str, list[list[float]]] = {name: [] for name in runners}
    for block in range(BLOCKS):
        if block >= stats.MIN_BLOCKS and block % 2 == 0 and clock() > ends:
            break
        taken: dict[str, list[float]] = {name: [] for name in runners}
        for name in block_order(list(runners), block):
            taken[name].append(runners[name].time_ms())
        for name, values in taken.items():
            samples[name].append(values[:SAMPLES_PER_BLOCK])
    return samples


def _layer_medians(runner: Runner) -> dict[str, float]:
    passes = [runner.layers_ms() for _ in range(LAYER_PASSES)]
    return {name: statistics.median(p[name] for p in passes if name in p) for name in passes[0]}


def _result(
    point: Point,
    samples: Mapping[str, list[list[float]]],
    layers: Mapping[str, Mapping[str, float]],
    runners: Mapping[str, Runner],
    nodes: Mapping[str, str],
    *,
    comparisons: int,
) -> PointResult:
    ratio = stats.compare(samples[SPARSE], samples[DENSE])
    if ratio is not None:  # the verdicts of all points hold together
        ratio = ratio.judge(comparisons, stats.LEAST_DIFFERENCE)
    of_weight = {name: _by_weight(runners[name].kernels(), layers[name], nodes) for name in (SPARSE, DENSE)}
    return PointResult(
        name=point.name,
        kind=point.kind,
        batch=point.batch,
        new=point.new,
        past=point.past,
        sparse_ms=_median(samples[SPARSE]),
        dense_ms=_median(samples[DENSE]),
        speedup=ratio.speedup if ratio is not None else None,
        low=ratio.low if ratio is not None else None,
        high=ratio.high if ratio is not None else None,
        verdict=ratio.verdict if ratio is not None else stats.NO_DIFFERENCE,
        layers={weight: (of_weight[SPARSE].get(weight), of_weight[DENSE].get(weight)) for weight in nodes},
        layers_sum_ms=(sum(layers[SPARSE].values()), sum(layers[DENSE].values())),
    )


def _median(blocks: Sequence[Sequence[float]]) -> float:
    return statistics.median(value for block in blocks for value in block)


def _by_weight(kernels: Sequence[Kernel], layers: Mapping[str, float], nodes: Mapping[str, str]) -> dict[str, float]:
    """Milliseconds of the kernels that mention a weight's node; weights that none mentions are left out."""
    texts = {kernel.name: kernel.text for kernel in kernels}
    found: dict[str, float] = {}
    for weight, node in nodes.items():
        mine = [ms for name, ms in layers.items() if mentions(texts.get(name, name), node)]
        if mine:
            found[weight] = sum(mine)
    return found
