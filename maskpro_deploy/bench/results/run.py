"""A run as data: what every `result.json` of a benchmark holds, and how samples and self-tests stand in it.

Units stand in the keys; what is not known is null. Schemas are versioned. Field names follow vLLM's where they fit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from maskpro_deploy.bench import roofline, stats
from maskpro_deploy.bench.arms import Measurement, Sample
from maskpro_deploy.bench.results import wording
from maskpro_deploy.bench.sessions import SelfTest

SCHEMA, VERSION = "maskpro-deploy/benchmark", 2
RESULT_FILE = "result.json"


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """A whole run of any benchmark."""

    SCHEMA: ClassVar[str] = SCHEMA
    VERSION: ClassVar[int] = VERSION

    kind: str  # the benchmark: "latency", "throughput", "kernels" or "serve"
    environment: Mapping[str, Any]  # what it ran on
    config: Mapping[str, Any]  # the settings
    duration_s: float  # of the run

    @property
    def invalid_reasons(self) -> list[str]:
        """Why the figures prove nothing; empty if they may be believed."""
        raise NotImplementedError

    @property
    def comparison_count(self) -> int:
        """How many comparisons the run makes; their verdicts hold together."""
        raise NotImplementedError

    @property
    def valid(self) -> bool:
        return not self.invalid_reasons

    @property
    def least_difference(self) -> float:
        """The smallest difference of interest, as a fraction."""
        return float(self.config.get("least_difference", stats.LEAST_DIFFERENCE))

    def judge(self, ratio: stats.Ratio | None) -> stats.Ratio | None:
        """The comparison with the verdict that holds together with all others of this run."""
        return None if ratio is None else ratio.judge(self.comparison_count, self.least_difference)

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": self.SCHEMA,
            "version": self.VERSION,
            "kind": self.kind,
            "date": self.environment.get("date"),
            "valid": self.valid,
            "invalid_reasons": self.invalid_reasons,
            "duration": self.duration_s,
            "config": plain(self.config),
            "verdicts": wording.family_json(self.comparison_count, self.least_difference),
            "environment": plain(self.environment),
        }


@dataclass(frozen=True, kw_only=True)
class SessionsResult(RunResult):
    """A run over sessions, which can be interrupted, gone on with and added to."""

    bandwidth: roofline.Bandwidth  # of the memory, measured in this run
    arithmetic: roofline.Arithmetic | None  # of matrix products, likewise; None if it was not measured
    # where the run went on with an earlier one or added to it: when and how those were started
    earlier: tuple[Mapping[str, Any], ...] = ()
    planned_sessions: int = 0  # how many sessions the run is to have in all; with a budget, at most
    finished: bool = True  # whether this is the end of the run, and not a state that it can go on from

    def to_json(self) -> dict[str, Any]:
        return {
            **super().to_json(),
            "finished": self.finished,
            "planned_sessions": self.planned_sessions,
            "earlier": plain(self.earlier),
            "memory_bandwidth": dataclasses.asdict(self.bandwidth),
            "arithmetic": None if self.arithmetic is None else dataclasses.asdict(self.arithmetic),
        }


def explain_failed_self_test(test: SelfTest, seen: str) -> list[str]:
    """Why a self-test makes a run invalid, in these words where it saw a difference twice; empty if it does not."""
    if test.invalid is not None:
        return [f"self-test: {test.invalid}"]
    return [f"self-test: {seen}"] if test.passed is False else []


def self_test_json(test: SelfTest, samples: Sequence[Measurement]) -> dict[str, Any]:
    """A self-test with the samples of each attempt."""
    taken = [{**{arm: samples_json(own) for arm, own in m.samples.items()}, "invalid": m.invalid} for m in samples]
    attempts = [dataclasses.asdict(ratio) for ratio in test.attempts]
    return {"passed": test.passed, "invalid": test.invalid, "attempts": attempts, "samples": taken}


def state_json(measured: Measurement) -> dict[str, Any]:
    """How the measurement of a case went."""
    return {name: getattr(measured, name) for name in ("warmup_rounds", "warm", "failed", "invalid")}


def tokens_json(measured: Measurement, arm: str) -> Any:
    """The tokens that an arm chose, or None if it did not run."""
    return measured.work[arm].tokens.tolist() if arm in measured.work else None


def pair_json(candidate: str, baseline: str, same_kernels: bool, **more: str) -> dict[str, Any]:
    """Who is compared with whom."""
    return {"candidate": candidate, "baseline": baseline, **more, "same_kernels": same_kernels}


def ratio_json(ratio: stats.Ratio | None) -> dict[str, Any]:
    """A comparison; without a verdict where there was not enough to compare."""
    return dataclasses.asdict(ratio) if ratio is not None else {"verdict": None}


def samples_json(samples: Sequence[Sample]) -> dict[str, Any]:
    """Each sample's place and its seconds."""
    return {**places_json(samples), "seconds": [s.seconds for s in samples]}


def places_json(samples: Sequence[Sample]) -> dict[str, list[int]]:
    """Each sample's place in the run."""
    return {name: [getattr(s, name) for s in samples] for name in ("session", "block", "position")}


def vllm_json(metric: str, summary: stats.Summary | None) -> dict[str, float | None]:
    """A metric's figures under vLLM's names: median_ttft_ms and the like."""
    names = ("mean", "median", "std", "p90", "p95", "p99", "mad", "minimum", "maximum")
    figures: dict[str, float | None] = {f"{n}_{metric}_ms": getattr(summary, n) if summary else None for n in names}
    figures[f"cv_{metric}"] = summary.cv if summary else None
    return figures


def plain(value: Any) -> Any:
    """Tuples as lists, mappings as dicts, so that it is JSON."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        return [plain(v) for v in value]
    return value
