"""Sweeps read back from `result.json`, and what has to be the same for a run to go on with one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maskpro_deploy.bench.arms import Sample
from maskpro_deploy.bench.model import DECODE, Agreement, Case, ModelArm
from maskpro_deploy.bench.results import reading
from maskpro_deploy.bench.results.run import plain
from maskpro_deploy.bench.sweeps.columns import METRIC, CaseResult
from maskpro_deploy.bench.sweeps.result import BenchResult, arm_json

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


def load(path: Path) -> Saved:
    """Read the result of a sweep, or the one in a folder; see `read_result` for errors."""
    return reading.read_result(path, KINDS, BenchResult, _decode)


def _decode(path: Path, value: dict[str, Any]) -> Saved:
    cases = [_read_case(c) for c in value["cases"]]
    samples = (s for case in cases for arm in case.measurement.samples.values() for s in arm)
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
