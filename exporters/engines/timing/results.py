"""What is timed of two engines, and how it turned out: points, their results, and the comparison as a whole."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from maskpro_deploy.bench import stats
from maskpro_deploy.bench.stats import find_break_even

SPARSE, DENSE = "sparse", "dense"
NO_GPU = "not measured (no GPU)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One shape of a call."""

    kind: str  # "prefill" or "decode"
    batch: int  # sequences
    new: int  # tokens of each that are computed, and that are in the cache
    past: int
    profile: int  # index of the engine's profile that takes it
    shapes: Mapping[str, tuple[int, ...]]  # of all inputs

    @property
    def name(self) -> str:
        return f"{self.kind}, batch {self.batch}, {self.new} new, {self.past} past"


@dataclass(frozen=True, slots=True, kw_only=True)
class PointResult:
    """What was measured at one point."""

    name: str  # the point's
    kind: str
    batch: int
    new: int
    past: int
    sparse_ms: float  # median of the sparse engine
    dense_ms: float  # median of the dense engine
    # dense over sparse, drift removed, with `low` and `high` of its 95 % interval; None with too few blocks
    speedup: float | None
    low: float | None
    high: float | None
    verdict: str  # "faster", "slower" or "no difference seen" (or "of interest"), for the sparse engine
    # initializer -> milliseconds of the kernels that use it, [sparse, dense]; one that fuses several counts for each
    layers: Mapping[str, tuple[float | None, float | None]]
    layers_sum_ms: tuple[float, float]  # all layers under the profiler, [sparse, dense]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Both engines side by side."""

    dense_file: str  # the dense engine in the bundle
    sparse_bytes: int  # their sizes
    dense_bytes: int
    sparse_build_s: float  # seconds of the builds; of an engine that was there already, when it was built
    dense_build_s: float
    not_measured: str  # why no time was measured; "" if it was
    points: tuple[PointResult, ...] = ()  # what was measured

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
        sizes: dict[str, int | None] = {}
        for kind in dict.fromkeys(p.kind for p in self.points):
            by_batch: dict[int, str] = {}
            for point in (p for p in self.points if p.kind == kind):  # several lengths: all have to be faster
                before = by_batch.get(point.batch, stats.FASTER)
                by_batch[point.batch] = verdict(point) if before == stats.FASTER else before
            sizes[kind] = find_break_even(by_batch)
        return sizes

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
