"""The sparse engine against its dense twin, on a GPU: in whole and layer by layer, interleaved, at several batches.

Both engines hold the same graph, profiles and kernel times, so they differ in the kernels chosen for sparse weights and nothing
else. A *point* is one shape of a call. At each point the engines run in blocks A B B A, B A A B, ..., and the ratio comes with an
interval (`bench.stats`). Layers are timed in passes of their own, since a profiler slows an engine down: their times show where
time goes, their sum is not a latency.

This module is pure: what runs an engine is behind `Runner`, so everything but the GPU is tested without one.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from maskpro_deploy.bench import stats
from maskpro_deploy.bench.arms import SAMPLES_PER_BLOCK, block_order
from maskpro_deploy.exporters.engines.kernels import Kernel, mentions
from maskpro_deploy.exporters.engines.timing.results import DENSE, SPARSE, Point, PointResult

BLOCKS, LAYER_PASSES, _WARM_UP = 24, 4, 3


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


def measure(
    runners: Mapping[str, Runner],
    points: Sequence[Point],  # in order of importance
    nodes: Mapping[str, str],  # initializer -> the node of the graph that multiplies with it
    *,
    budget_s: float,  # seconds for everything; a point that has begun is finished
    clock: Callable[[], float] = time.monotonic,
    on_point: Callable[[int, str], None] = lambda done, name: None,  # takes how many points are done, and the next one's name
) -> tuple[PointResult, ...]:
    """Time both engines, `SPARSE` and `DENSE`, at every point, as far as the time goes."""
    ends = clock() + budget_s
    results: list[PointResult] = []
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
        results.append(_summarize(point, samples, layers, runners, nodes, comparisons=len(points)))
    return tuple(results)


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


def _summarize(
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
    totals: dict[str, float] = {}
    for weight, node in nodes.items():
        mine = [ms for name, ms in layers.items() if mentions(texts.get(name, name), node)]
        if mine:
            totals[weight] = sum(mine)
    return totals
