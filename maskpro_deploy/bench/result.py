"""The result of a benchmark run as data: what `result.json` holds.

Field names follow vLLM's where they fit (`ttft` time to first token, `tpot` time per output token after it, `e2el` the whole).
Units stand in the keys; what is not known is null. The schema is versioned.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from maskpro_deploy.bench import roofline, stats
from maskpro_deploy.bench.arms import Measurement
from maskpro_deploy.bench.model import DECODE, GENERATE, PREFILL, Case, ModelArm
from maskpro_deploy.bench.sessions import SelfTest

SCHEMA = "maskpro-deploy/benchmark"
VERSION = 1
RESULT_FILE = "result.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseResult:
    """One case and what was measured of it."""

    case: Case
    measurement: Measurement

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
        return {PREFILL: "ttft", DECODE: "tpot", GENERATE: "e2el"}[self.case.phase]

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
class BenchResult:
    """A whole run.

    Attributes:
        kind: "latency" or "throughput".
        environment: what it ran on.
        config: the settings.
        arms: what was measured; the first is compared with the others.
        cases: the points of the sweep.
        self_test: the first arm against a second session of itself.
        bandwidth: of the memory, measured in this run.
        duration_s: of the run.
        notes: remarks for the reader.
    """

    kind: str
    environment: Mapping[str, Any]
    config: Mapping[str, Any]
    arms: tuple[ModelArm[Any], ...]
    cases: tuple[CaseResult, ...]
    self_test: SelfTest
    bandwidth: roofline.Bandwidth
    duration_s: float
    notes: tuple[str, ...] = ()

    @property
    def invalid_reasons(self) -> list[str]:
        """Why the figures prove nothing; empty if they may be believed."""
        reasons = []
        if self.self_test.invalid is not None:
            reasons.append(f"self-test: {self.self_test.invalid}")
        elif self.self_test.passed is False:
            reasons.append(
                "self-test: two sessions of one model looked different twice in a row; "
                "something else on this machine disturbs the timing."
            )
        reasons += [f"{r.case.label}: {r.measurement.invalid}" for r in self.cases if r.measurement.invalid is not None]
        return reasons

    @property
    def valid(self) -> bool:
        """Whether the figures may be believed."""
        return not self.invalid_reasons

    def comparisons(self, result: CaseResult) -> dict[str, stats.Ratio | None]:
        """Baseline name -> how the first arm compares with it; empty for an invalid run."""
        if not self.valid:
            return {}
        first, *others = self.arms
        return {other.name: result.measurement.compare(first.name, other.name) for other in others}

    def floor_ms(self, result: CaseResult, arm: ModelArm[Any]) -> float | None:
        """What one decode step takes at least: weights and cache over memory bandwidth; None for other phases."""
        if result.case.phase != DECODE:
            return None
        kv = None
        if arm.kv_bytes_per_token is not None:
            kv = arm.kv_bytes_per_token * result.case.batch_size * result.case.input_len
        seconds = roofline.floor_s(arm.weight_bytes, kv, self.bandwidth)
        return None if seconds is None else 1e3 * seconds

    def best_batch(self, name: str) -> CaseResult | None:
        """The case with the most tokens a second whose median time per token keeps the bound of the configuration."""
        bound_ms = self.config.get("latency_bound_ms")
        fitting = []
        for result in self.cases:
            rate, values = result.tokens_per_s(name), result.values_ms(name).get("tpot")
            if rate is not None and values and (bound_ms is None or stats.summarise(values).median <= bound_ms):
                fitting.append((rate, result))
        return max(fitting, key=lambda pair: pair[0])[1] if fitting else None

    def to_json(self) -> dict[str, Any]:
        """The content of `result.json`."""
        return {
            "schema": SCHEMA,
            "version": VERSION,
            "kind": self.kind,
            "date": self.environment.get("date"),
            "valid": self.valid,
            "invalid_reasons": self.invalid_reasons,
            "duration": self.duration_s,
            "config": _plain(self.config),
            "arms": [self._arm_json(arm) for arm in self.arms],
            "cases": [self._case_json(result) for result in self.cases],
            "self_test": {
                "passed": self.self_test.passed,
                "invalid": self.self_test.invalid,
                "attempts": [dataclasses.asdict(r) for r in self.self_test.attempts],
            },
            "memory_bandwidth": dataclasses.asdict(self.bandwidth),
            "best_batch": self._best_json() if self.kind == "throughput" and self.valid else None,
            "notes": list(self.notes),
            "environment": _plain(self.environment),
        }

    @staticmethod
    def _arm_json(arm: ModelArm[Any]) -> dict[str, Any]:
        return {
            "name": arm.name,
            "vocab_size": arm.vocab_size,
            "max_length": arm.max_length,
            "weight_bytes": arm.weight_bytes,
            "kv_bytes_per_token": arm.kv_bytes_per_token,
            **arm.facts,
        }

    def _case_json(self, result: CaseResult) -> dict[str, Any]:
        case, measured = result.case, result.measurement
        return {
            **dataclasses.asdict(case),
            "metric": result.metric,
            "warmup_rounds": measured.warmup_rounds,
            "warm": measured.warm,
            "failed": measured.failed,
            "invalid": measured.invalid,
            "arms": [self._samples_json(result, arm) for arm in self.arms],
            "comparisons": [
                {"candidate": self.arms[0].name, "baseline": name, **(dataclasses.asdict(ratio) if ratio else {"verdict": None})}
                for name, ratio in self.comparisons(result).items()
            ],
        }

    def _samples_json(self, result: CaseResult, arm: ModelArm[Any]) -> dict[str, Any]:
        case, samples = result.case, result.measurement.samples[arm.name]
        figures: dict[str, Any] = {}
        for metric, values in result.values_ms(arm.name).items():
            figures |= _vllm_names(metric, stats.summarise(values) if values else None)
        return {
            "name": arm.name,
            "completed": len(samples),
            "total_input_tokens": len(samples) * case.batch_size * case.input_len,
            "total_output_tokens": len(samples) * case.batch_size * case.output_len,
            "tokens_per_s": result.tokens_per_s(arm.name),
            "output_throughput": result.tokens_per_s(arm.name) if case.phase != PREFILL else None,
            "memory_floor_ms": self.floor_ms(result, arm),
            **figures,
            "samples": {
                "session": [s.session for s in samples],
                "block": [s.block for s in samples],
                "position": [s.position for s in samples],
                **{f"{metric}_ms": values for metric, values in result.values_ms(arm.name).items()},
            },
        }

    def _best_json(self) -> dict[str, Any]:
        best = {arm.name: self.best_batch(arm.name) for arm in self.arms}
        return {
            name: None if r is None else {"batch_size": r.case.batch_size, "output_throughput": r.tokens_per_s(name)}
            for name, r in best.items()
        }


def _vllm_names(metric: str, summary: stats.Summary | None) -> dict[str, float | None]:
    """median_ttft_ms and the like."""
    names = ("mean", "median", "std", "p90", "p95", "p99", "mad", "minimum", "maximum")
    figures: dict[str, float | None] = {f"{n}_{metric}_ms": getattr(summary, n) if summary else None for n in names}
    figures[f"cv_{metric}"] = summary.cv if summary else None
    return figures


def _plain(value: Any) -> Any:
    """Tuples as lists, mappings as dicts, so that it is JSON."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(v) for v in value]
    return value
