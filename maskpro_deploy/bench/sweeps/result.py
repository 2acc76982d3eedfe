"""The result of a sweep as data: what `result.json` of `benchmark latency` and `benchmark throughput` holds."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from maskpro_deploy.bench.arms import Measurement
from maskpro_deploy.bench.model import PREFILL, ModelArm, same_kernels
from maskpro_deploy.bench.results import run as data
from maskpro_deploy.bench.results.columns import columns_json
from maskpro_deploy.bench.results.run import SessionsResult
from maskpro_deploy.bench.sessions import SelfTest
from maskpro_deploy.bench.statistics import stats
from maskpro_deploy.bench.sweeps.columns import ArmFigures, CaseResult, choose_columns

_SEEN = "two sessions of one model looked different twice in a row; something else on this machine disturbs the timing."


@dataclass(frozen=True, kw_only=True)
class BenchResult(SessionsResult):
    """A whole run."""

    arms: tuple[ModelArm[Any], ...]  # what was measured; the first is compared with the others
    cases: tuple[CaseResult, ...]  # the points of the sweep
    self_test: SelfTest  # the first arm against a second session of itself
    self_test_samples: tuple[Measurement, ...] = ()  # of each attempt at a self-test
    notes: tuple[str, ...] = ()  # remarks for the reader

    @property
    def invalid_reasons(self) -> list[str]:
        invalid = [f"{r.case.label}: {r.measurement.invalid}" for r in self.cases if r.measurement.invalid is not None]
        return [*data.explain_failed_self_test(self.self_test, _SEEN), *invalid]

    @property
    def comparison_count(self) -> int:
        return len(self.cases) * (len(self.arms) - 1)

    def comparisons(self, result: CaseResult) -> dict[str, stats.Ratio | None]:
        """Baseline name -> how the first arm compares with it; empty for a run that is invalid or not finished."""
        if not self.valid or not self.finished:
            return {}
        first, *others = self.arms
        return {other.name: self.judge(result.measurement.compare(first.name, other.name)) for other in others}

    def same_kernels(self, baseline: str) -> bool:
        """Whether an arm is known to run the same kernels as the first."""
        return any(same_kernels(self.arms[0], arm) for arm in self.arms[1:] if arm.name == baseline)

    def figures(self, result: CaseResult, arm: ModelArm[Any]) -> ArmFigures:
        return ArmFigures(result=result, arm=arm, bandwidth=self.bandwidth, arithmetic=self.arithmetic)

    @property
    def rows(self) -> list[ArmFigures]:
        return [self.figures(result, arm) for result in self.cases for arm in self.arms]

    def best_batch(self, name: str) -> CaseResult | None:
        """The case with the most tokens a second whose median time per token keeps the bound of the configuration."""
        bound_ms = self.config.get("latency_bound_ms")
        fitting = []
        for result in self.cases:
            rate, tpot = result.tokens_per_s(name), stats.summarise_if_any(result.values_ms(name).get("tpot", []))
            if rate is not None and tpot is not None and (bound_ms is None or tpot.median <= bound_ms):
                fitting.append((rate, result))
        return max(fitting, key=lambda pair: pair[0])[1] if fitting else None

    def to_json(self) -> dict[str, Any]:
        return {
            **super().to_json(),
            "arms": [arm_json(arm) for arm in self.arms],
            "cases": [self._case_json(result) for result in self.cases],
            "self_test": data.self_test_json(self.self_test, self.self_test_samples),
            "best_batch": self._best_json() if self.kind == "throughput" and self.valid else None,
            "notes": list(self.notes),
        }

    def _case_json(self, result: CaseResult) -> dict[str, Any]:
        return {
            **dataclasses.asdict(result.case),
            "metric": result.metric,
            **data.state_json(result.measurement),
            "agreement": [
                {"name": name, **dataclasses.asdict(a), "max_logit_difference": stats.finite(a.max_logit_difference)}
                for name, a in result.agreement.items()
            ],
            "arms": [self._arm_json(self.figures(result, arm)) for arm in self.arms],
            "comparisons": [
                {**data.pair_json(self.arms[0].name, name, self.same_kernels(name)), **data.ratio_json(ratio)}
                for name, ratio in self.comparisons(result).items()
            ],
        }

    def _arm_json(self, row: ArmFigures) -> dict[str, Any]:
        case, name, measured = row.result.case, row.arm.name, row.result.measurement
        values = row.result.values_ms(name)
        metrics: dict[str, Any] = {}
        for metric in values:
            metrics |= data.vllm_json(metric, row.summary(metric))
        return {
            "name": name,
            "total_input_tokens": row.count * case.batch_size * case.input_len,
            "total_output_tokens": row.count * case.batch_size * case.output_len,
            "output_throughput": row.tokens_per_s if case.phase != PREFILL else None,
            "bound": None if row.floor is None else row.floor.bound,
            **columns_json(choose_columns(self.kind), row),
            **metrics,
            "tokens": data.tokens_json(measured, name),
            "samples": data.places_json(measured.samples[name]) | {f"{metric}_ms": taken for metric, taken in values.items()},
        }

    def _best_json(self) -> Mapping[str, Any]:
        best = {arm.name: self.best_batch(arm.name) for arm in self.arms}
        return {
            name: None if r is None else {"batch_size": r.case.batch_size, "output_throughput": r.tokens_per_s(name)}
            for name, r in best.items()
        }


def arm_json(arm: ModelArm[Any]) -> dict[str, Any]:
    """What the result says of an arm."""
    own = ("name", "vocab_size", "max_length", "weight_bytes", "kv_bytes_per_token", "operations_per_token")
    return {**{name: getattr(arm, name) for name in own}, **arm.facts}
