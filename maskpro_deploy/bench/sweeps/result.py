"""The result of a sweep as data: what `result.json` of `benchmark latency` and `throughput` holds, and reading it back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maskpro_deploy.bench import stats
from maskpro_deploy.bench.arms import Measurement, Sample
from maskpro_deploy.bench.model import DECODE, PREFILL, Agreement, Case, ModelArm, same_kernels
from maskpro_deploy.bench.results import reading
from maskpro_deploy.bench.results import run as data
from maskpro_deploy.bench.results.document import columns_json
from maskpro_deploy.bench.results.run import SessionsResult, plain
from maskpro_deploy.bench.sessions import SelfTest
from maskpro_deploy.bench.sweeps.columns import METRIC, ArmFigures, CaseResult, choose_columns

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


KINDS = ("latency", "throughput")
_NOT_COMPARED = ("path", "graph_sha256")  # of an arm: where it is, and what follows from the hash of its files


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved(reading.SavedResult):
    """A sweep as it was written."""

    cases: dict[Case, CaseResult]  # its points, with their samples

    @property
    def arms(self) -> list[str]:
        return [arm["name"] for arm in self.value["arms"]]

    def facts(self, name: str) -> Mapping[str, Any]:
        """What the result says of an arm."""
        return next(arm for arm in self.value["arms"] if arm["name"] == name)


def load_result(path: Path) -> Saved:
    """Read the result of a sweep, or the one in a folder; see `read_result` for errors."""
    return reading.read_result(path, KINDS, BenchResult, _decode)


def _decode(path: Path, value: dict[str, Any]) -> Saved:
    cases = [_read_case(c) for c in value["cases"]]
    samples = (s for case in cases for taken in case.measurement.samples.values() for s in taken)
    return Saved(
        path=path,
        value=value,
        cases={c.case: c for c in cases},
        self_test=reading.read_self_test(value),
        sessions=1 + max((s.session for s in samples), default=-1),
    )


def _read_case(value: Mapping[str, Any]) -> CaseResult:
    case = Case(**{k: value[k] for k in ("phase", "batch_size", "input_len", "output_len")})
    measurement = reading.read_measurement(value, value["arms"], samples=lambda arm: _read_samples(arm, case))
    agreement = {a["name"]: Agreement(**{k: v for k, v in a.items() if k != "name"}) for a in value["agreement"]}
    return CaseResult(case=case, measurement=measurement, agreement=agreement)


def _read_samples(value: Mapping[str, Any], case: Case) -> list[Sample]:
    metric = METRIC[case.phase]
    scale = (case.output_len if case.phase == DECODE else 1) / 1e3
    first = [float(v) / 1e3 for v in value["ttft_ms"]] if metric != "ttft" and value.get("ttft_ms") else None
    return reading.place_samples(value, [scale * float(v) for v in value[f"{metric}_ms"]], first)


def check_same(
    saved: Saved,
    kind: str,
    arms: Sequence[ModelArm[Any]],
    config: Mapping[str, Any],
    environment: Mapping[str, Any],
    *,
    append: bool,
) -> None:
    """Refuse to mix samples that do not belong together; see `reading.check_goes_on` for the rest."""
    value = saved.value
    if value["kind"] != kind:
        reading.refuse(saved, f"it is the result of a {value['kind']} run, not of {kind}.\nChoose another --out.")
    now = [plain(arm_json(arm)) for arm in arms]
    for before, arm in zip(value["arms"], now, strict=False):
        for key in sorted({*before, *arm} - {*_NOT_COMPARED}):
            if before.get(key) != arm.get(key):
                change = f"{key} of {arm['name']} is {arm.get(key)}, and was {before.get(key)}"
                reading.refuse(saved, f"{change}.\nGive the bundles it was measured on, or another --out.")
    if len(value["arms"]) != len(now):
        reading.refuse(saved, f"it has {len(value['arms'])} bundles, and this run {len(now)}.\nChoose another --out.")
    reading.check_goes_on(saved, config, environment, append=append)
