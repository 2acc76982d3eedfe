"""The result of a benchmark run as data: what `result.json` holds.

Field names follow vLLM's where they fit (`ttft` time to first token, `tpot` time per output token after it, `e2el` the whole).
Units stand in the keys; what is not known is null. The schema is versioned.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from maskpro_deploy.bench import roofline
from maskpro_deploy.bench.arms import Measurement, Sample
from maskpro_deploy.bench.model import DECODE, GENERATE, PREFILL, Agreement, Case, ModelArm, loads, same_kernels
from maskpro_deploy.bench.results import wording
from maskpro_deploy.bench.sessions import SelfTest
from maskpro_deploy.bench.statistics import stats

SCHEMA = "maskpro-deploy/benchmark"
VERSION = 2
RESULT_FILE = "result.json"
METRIC = {PREFILL: "ttft", DECODE: "tpot", GENERATE: "e2el"}  # the metric that arms are compared by


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseResult:
    """One case and what was measured of it.

    Attributes:
        agreement: name of an arm -> how near its logits are to those of the first one, on the tokens of this case.
    """

    case: Case
    measurement: Measurement
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
        arithmetic: of matrix products, likewise; None if it was not measured.
        duration_s: of the run.
        notes: remarks for the reader.
        self_test_samples: of each attempt at a self-test.
        earlier: where the run went on with an earlier one or added to it: when and how those were started.
        planned_sessions: how many sessions the run is to have in all; with a budget, at most.
        finished: whether this is the end of the run, and not a state on the way that it can go on from.
    """

    kind: str
    environment: Mapping[str, Any]
    config: Mapping[str, Any]
    arms: tuple[ModelArm[Any], ...]
    cases: tuple[CaseResult, ...]
    self_test: SelfTest
    bandwidth: roofline.Bandwidth
    arithmetic: roofline.Arithmetic | None
    duration_s: float
    notes: tuple[str, ...] = ()
    self_test_samples: tuple[Measurement, ...] = ()
    earlier: tuple[Mapping[str, Any], ...] = ()
    planned_sessions: int = 0
    finished: bool = True

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

    @property
    def comparison_count(self) -> int:
        """How many comparisons the run makes; their verdicts hold together."""
        return len(self.cases) * (len(self.arms) - 1)

    @property
    def least_difference(self) -> float:
        """The smallest difference of interest, as a fraction."""
        return float(self.config.get("least_difference", stats.LEAST_DIFFERENCE))

    def comparisons(self, result: CaseResult) -> dict[str, stats.Ratio | None]:
        """Baseline name -> how the first arm compares with it; empty for a run that is invalid or not finished."""
        if not self.valid or not self.finished:
            return {}
        first, *others = self.arms
        alone = {other.name: result.measurement.compare(first.name, other.name) for other in others}
        judge = self.comparison_count, self.least_difference
        return {name: None if ratio is None else ratio.judged(*judge) for name, ratio in alone.items()}

    def same_kernels(self, baseline: str) -> bool:
        """Whether an arm is known to run the same kernels as the first."""
        return any(same_kernels(self.arms[0], arm) for arm in self.arms[1:] if arm.name == baseline)

    def floor(self, result: CaseResult, arm: ModelArm[Any]) -> roofline.Floor | None:
        """What the metric of a case is at least on this machine, or None where that is not known."""
        return roofline.floor(loads(arm, result.case), self.bandwidth, self.arithmetic)

    def share_of_ceiling(self, result: CaseResult, arm: ModelArm[Any]) -> float | None:
        """The floor over the median: 1 would be as fast as the ceilings allow."""
        least, found = self.floor(result, arm), result.summary(arm.name)
        return None if least is None or found is None else 1e3 * least.seconds / found.median

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
            "finished": self.finished,
            "planned_sessions": self.planned_sessions,
            "date": self.environment.get("date"),
            "valid": self.valid,
            "invalid_reasons": self.invalid_reasons,
            "duration": self.duration_s,
            "config": plain(self.config),
            "arms": [arm_json(arm) for arm in self.arms],
            "cases": [self._case_json(result) for result in self.cases],
            "verdicts": wording.family_json(self.comparison_count, self.least_difference),
            "self_test": {
                "passed": self.self_test.passed,
                "invalid": self.self_test.invalid,
                "attempts": [dataclasses.asdict(r) for r in self.self_test.attempts],
                "samples": [self_test_json(m) for m in self.self_test_samples],
            },
            "memory_bandwidth": dataclasses.asdict(self.bandwidth),
            "arithmetic": dataclasses.asdict(self.arithmetic) if self.arithmetic is not None else None,
            "best_batch": self._best_json() if self.kind == "throughput" and self.valid else None,
            "notes": list(self.notes),
            "earlier": plain(self.earlier),
            "environment": plain(self.environment),
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
            "agreement": [
                {"name": name, **dataclasses.asdict(a), "max_logit_difference": stats.finite(a.max_logit_difference)}
                for name, a in result.agreement.items()
            ],
            "arms": [self._samples_json(result, arm) for arm in self.arms],
            "comparisons": [
                {
                    "candidate": self.arms[0].name,
                    "baseline": name,
                    "same_kernels": self.same_kernels(name),
                    **(dataclasses.asdict(ratio) if ratio else {"verdict": None}),
                }
                for name, ratio in self.comparisons(result).items()
            ],
        }

    def _samples_json(self, result: CaseResult, arm: ModelArm[Any]) -> dict[str, Any]:
        case, samples = result.case, result.measurement.samples[arm.name]
        least = self.floor(result, arm)
        figures: dict[str, Any] = {}
        for metric, values in result.values_ms(arm.name).items():
            figures |= vllm_names(metric, stats.summarise(values) if values else None)
        return {
            "name": arm.name,
            "completed": len(samples),
            "total_input_tokens": len(samples) * case.batch_size * case.input_len,
            "total_output_tokens": len(samples) * case.batch_size * case.output_len,
            "tokens_per_s": result.tokens_per_s(arm.name),
            "output_throughput": result.tokens_per_s(arm.name) if case.phase != PREFILL else None,
            "floor_ms": None if least is None else 1e3 * least.seconds,
            "bound": None if least is None else least.bound,
            "share_of_ceiling": self.share_of_ceiling(result, arm),
            **figures,
            "tokens": plain(result.measurement.work[arm.name].tokens.tolist()) if arm.name in result.measurement.work else None,
            "samples": {
                **_places(samples),
                **{f"{metric}_ms": values for metric, values in result.values_ms(arm.name).items()},
            },
        }

    def _best_json(self) -> dict[str, Any]:
        best = {arm.name: self.best_batch(arm.name) for arm in self.arms}
        return {
            name: None if r is None else {"batch_size": r.case.batch_size, "output_throughput": r.tokens_per_s(name)}
            for name, r in best.items()
        }


def arm_json(arm: ModelArm[Any]) -> dict[str, Any]:
    """What the result says of an arm."""
    return {
        "name": arm.name,
        "vocab_size": arm.vocab_size,
        "max_length": arm.max_length,
        "weight_bytes": arm.weight_bytes,
        "kv_bytes_per_token": arm.kv_bytes_per_token,
        "operations_per_token": arm.operations_per_token,
        **arm.facts,
    }


def self_test_json(measured: Measurement) -> dict[str, Any]:
    """The samples of one attempt at a self-test."""
    return {**{arm: samples_json(found) for arm, found in measured.samples.items()}, "invalid": measured.invalid}


def samples_json(samples: Sequence[Sample]) -> dict[str, Any]:
    """Each sample's place and its seconds."""
    return {**_places(samples), "seconds": [s.seconds for s in samples]}


def _places(samples: Sequence[Sample]) -> dict[str, list[int]]:
    return {name: [getattr(s, name) for s in samples] for name in ("session", "block", "position")}


def vllm_names(metric: str, summary: stats.Summary | None) -> dict[str, float | None]:
    """median_ttft_ms and the like."""
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
