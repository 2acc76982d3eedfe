"""The figures of a sweep, arm by arm and case by case, and the columns of its table. A new figure is one entry in these.

Metrics have vLLM's names: `ttft` time to first token, `tpot` time per output token after it, `e2el` the whole.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from maskpro_deploy.bench import roofline, stats
from maskpro_deploy.bench.arms import Measurement
from maskpro_deploy.bench.model import DECODE, GENERATE, PREFILL, Agreement, Case, ModelArm, list_loads
from maskpro_deploy.bench.results.document import UNKNOWN, Column, number_column, plain_column

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
        return METRIC[self.case.phase]

    def summary(self, name: str) -> stats.Summary | None:
        """One arm's figures in ms for `metric`, or None without samples."""
        return stats.summarise_if_any(self.values_ms(name)[self.metric])

    def tokens_per_s(self, name: str) -> float | None:
        """Tokens a second at the median time: prompt tokens for prefill, chosen ones else."""
        summary = stats.summarise_if_any([s.seconds for s in self.measurement.samples[name]])
        tokens = self.case.input_len if self.case.phase == PREFILL else self.case.output_len
        return None if summary is None else self.case.batch_size * tokens / summary.median


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmFigures:
    """One arm in one case: a row of the table."""

    result: CaseResult  # the case
    arm: ModelArm[Any]  # the arm
    bandwidth: roofline.Bandwidth  # the ceilings of this machine
    arithmetic: roofline.Arithmetic | None

    def summary(self, metric: str | None = None) -> stats.Summary | None:
        """A metric in a few figures, in ms; by default the one that arms are compared by. None without samples."""
        return stats.summarise_if_any(self.result.values_ms(self.arm.name).get(metric or self.result.metric, []))

    def median_ms(self, metric: str | None = None) -> float | None:
        summary = self.summary(metric)
        return summary.median if summary is not None else None

    @property
    def tokens_per_s(self) -> float | None:
        return self.result.tokens_per_s(self.arm.name)

    @property
    def floor(self) -> roofline.Floor | None:
        """What the metric is at least on this machine, or None where that is not known."""
        return roofline.compute_floor(list_loads(self.arm, self.result.case), self.bandwidth, self.arithmetic)

    @property
    def floor_ms(self) -> float | None:
        return 1e3 * floor.seconds if (floor := self.floor) is not None else None

    @property
    def share_of_ceiling(self) -> float | None:
        """The floor over the median: 1 would be as fast as the ceilings allow."""
        floor_ms, median_ms = self.floor_ms, self.median_ms()
        return None if floor_ms is None or median_ms is None else floor_ms / median_ms

    @property
    def count(self) -> int:
        """How many samples there are."""
        return len(self.result.measurement.samples[self.arm.name])


def _of_summary(figure: Callable[[stats.Summary], float | None]) -> Callable[[ArmFigures], float | None]:
    """A figure of the metric that arms are compared by."""
    return lambda row: figure(summary) if (summary := row.summary()) is not None else None


_CASE: Column[ArmFigures] = plain_column("case", lambda row: row.result.case.label)
_MODEL: Column[ArmFigures] = plain_column("model", lambda row: row.arm.name)
_MAD = number_column("MAD ms", _of_summary(lambda s: s.mad), meaning="median absolute deviation from the median", digits=2)
_RATE = "at the median time, of all rows of the batch"
_FLOOR = "what the memory and the arithmetic of this machine allow at best"
_ENDS: tuple[Column[ArmFigures], ...] = (
    number_column("tokens/s", lambda row: row.tokens_per_s, meaning=_RATE, key="tokens_per_s"),
    number_column("floor ms", lambda row: row.floor_ms, meaning=_FLOOR, key="floor_ms"),
    Column(
        header="of ceiling",
        cell=lambda row: UNKNOWN if (share := row.share_of_ceiling) is None else f"{100 * share:.0f} %",
        meaning="the floor over the median",
        key="share_of_ceiling",
        value=lambda row: row.share_of_ceiling,
    ),
    plain_column("samples", lambda row: row.count, key="completed"),
)
LATENCY: tuple[Column[ArmFigures], ...] = (
    _CASE,
    _MODEL,
    number_column("median ms", _of_summary(lambda s: s.median), meaning="of a prefill, or of one decode step"),
    _MAD,
    number_column("p90 ms", _of_summary(lambda s: s.p90), meaning="nine samples in ten took at most this long"),
    *_ENDS,
)
THROUGHPUT: tuple[Column[ArmFigures], ...] = (
    _CASE,
    _MODEL,
    number_column("whole ms", _of_summary(lambda s: s.median), meaning="median time of the whole batch"),
    _MAD,
    number_column("first token ms", lambda row: row.median_ms("ttft"), meaning="median time to the first token"),
    number_column("per token ms", lambda row: row.median_ms("tpot"), meaning="median time of each further token"),
    *_ENDS,
)


def choose_columns(kind: str) -> tuple[Column[ArmFigures], ...]:
    """The columns of a kind of sweep."""
    return THROUGHPUT if kind == "throughput" else LATENCY
