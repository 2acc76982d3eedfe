"""The figures of a sweep: a case with its samples, and one arm in one case.

Metrics have vLLM's names: `ttft` time to first token, `tpot` time per output token after it, `e2el` the whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from maskpro_deploy.bench import roofline
from maskpro_deploy.bench.arms import Measurement
from maskpro_deploy.bench.model import DECODE, GENERATE, PREFILL, Agreement, Case, ModelArm, list_loads
from maskpro_deploy.bench.statistics import stats

METRIC = {PREFILL: "ttft", DECODE: "tpot", GENERATE: "e2el"}  # the metric that arms are compared by


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseResult:
    """One case and what was measured of it."""

    case: Case
    measurement: Measurement
    # name of an arm -> how near its logits are to those of the first one, on the tokens of this case
    agreement: Mapping[str, Agreement] = field(default_factory=dict)

    def values_ms(self, name: str) -> dict[str, list[float]]:
        """Metric -> its values in time order, for one arm."""
        samples, case = self.measurement.samples[name], self.case
        if case.phase == PREFILL:
            return {"ttft": [1e3 * s.seconds for s in samples]}
        if case.phase == DECODE:
            return {"tpot": [1e3 * s.seconds / case.output_len for s in samples]}
        timed = [(s.seconds, s.first_token_s) for s in samples]
        return {
            "e2el": [1e3 * whole for whole, _ in timed],
            "ttft": [1e3 * first for _, first in timed if first is not None],
            "tpot": [1e3 * (whole - first) / (case.output_len - 1) for whole, first in timed if first is not None],
        }

    @property
    def metric(self) -> str:
        """The metric that arms are compared by."""
        return METRIC[self.case.phase]

    def summary(self, name: str) -> stats.Summary | None:
        """One arm's figures in ms for `metric`, or None without samples."""
        values = self.values_ms(name)[self.metric]
        return stats.summarise(values) if values else None

    def tokens_per_s(self, name: str) -> float | None:
        """Tokens a second at the median time: prompt tokens for prefill, chosen ones else."""
        seconds = [s.seconds for s in self.measurement.samples[name]]
        if not seconds:
            return None
        tokens = self.case.input_len if self.case.phase == PREFILL else self.case.output_len
        return self.case.batch_size * tokens / stats.summarise(seconds).median


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmFigures:
    """One arm in one case: a row of the table."""

    result: CaseResult  # the case
    arm: ModelArm[Any]  # the arm
    bandwidth: roofline.Bandwidth  # the ceilings of this machine
    arithmetic: roofline.Arithmetic | None

    def summary(self, metric: str | None = None) -> stats.Summary | None:
        """A metric in a few figures, in ms; by default the one that arms are compared by. None without samples."""
        values = self.result.values_ms(self.arm.name).get(metric or self.result.metric)
        return stats.summarise(values) if values else None

    def median_ms(self, metric: str | None = None) -> float | None:
        """The median of a metric."""
        summary = self.summary(metric)
        return summary.median if summary is not None else None

    @property
    def tokens_per_s(self) -> float | None:
        """Tokens a second at the median time."""
        return self.result.tokens_per_s(self.arm.name)

    @property
    def floor(self) -> roofline.Floor | None:
        """What the metric is at least on this machine, or None where that is not known."""
        return roofline.compute_floor(list_loads(self.arm, self.result.case), self.bandwidth, self.arithmetic)

    @property
    def floor_ms(self) -> float | None:
        """The same in ms."""
        return 1e3 * floor.seconds if (floor := self.floor) is not None else None

    @property
    def share_of_ceiling(self) -> float | None:
        """The floor over the median: 1 would be as fast as the ceilings allow."""
        floor_ms, median_ms = self.floor_ms, self.median_ms()
        return None if floor_ms is None or median_ms is None else floor_ms / median_ms

    @property
    def count(self) -> int:
        """Samples."""
        return len(self.result.measurement.samples[self.arm.name])
