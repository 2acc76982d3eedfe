"""The result of `benchmark kernels` as data: what its `result.json` holds, and reading it back.

Times are added up for the model, each shape as often as the model has it. A run goes on from the case it was at on the CPU, from
the product it was at on a GPU.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from maskpro_deploy.bench import stats
from maskpro_deploy.bench.arms import Measurement
from maskpro_deploy.bench.kernels.columns import ProductRow, TotalRow, product_columns, total_columns
from maskpro_deploy.bench.kernels.measure import KernelCase
from maskpro_deploy.bench.results import reading
from maskpro_deploy.bench.results import run as data
from maskpro_deploy.bench.results.document import columns_json
from maskpro_deploy.bench.results.run import SessionsResult, plain
from maskpro_deploy.bench.roofline import Arithmetic, Load, compute_floor
from maskpro_deploy.bench.sessions import Run, make_empty_run

KIND = "kernels"
_SAME_KERNELS = {"fp32", "2:4"}  # forms that run the same ones on a CPU
_SEEN = "one form looked different from itself twice in a row; something disturbs the timing."


@dataclass(frozen=True, kw_only=True)
class KernelResult(SessionsResult):
    """A whole run."""

    SCHEMA: ClassVar[str] = "maskpro-deploy/kernels"

    kind: str = KIND
    arithmetic: Arithmetic
    forms: tuple[str, ...]  # names of the arms; the others are compared with the first
    run: Run[KernelCase]  # the samples of each case
    last: tuple[int, int] | None  # (K, N) of the product that makes the logits, which is in no layer
    layers: int  # how many layers the model has
    facts: Mapping[str, Any]
    gpu: Mapping[str, Any]  # what was measured on a GPU, or why nothing was
    cpu_finished: bool = True  # whether all sessions on the CPU are done

    @property
    def cases(self) -> list[KernelCase]:
        return list(self.run.measurements)

    @property
    def tokens(self) -> list[int]:
        return list(dict.fromkeys(case.m for case in self.cases))

    @property
    def invalid_reasons(self) -> list[str]:
        invalid = [f"{case.label}: {m.invalid}" for case, m in self.run.measurements.items() if m.invalid is not None]
        return [*invalid, *data.explain_failed_self_test(self.run.judge_self_test(), _SEEN)]

    @property
    def comparison_count(self) -> int:
        return (len(self.cases) + len(self.tokens)) * (len(self.forms) - 1)

    def same_kernels(self, form: str) -> bool:
        """Whether a form runs the kernels of the first: a CPU multiplies zeros like any value."""
        return {form, self.forms[0]} == _SAME_KERNELS

    def product_ms(self, case: KernelCase, form: str) -> float | None:
        """Median time of one product."""
        seconds = [s.seconds for s in self.run.measurements[case].samples[form]]
        return 1e3 * stats.summarise(seconds).median / case.copies if seconds else None

    def ratio(self, case: KernelCase, form: str) -> stats.Ratio | None:
        """How much faster a form is than the first; None for a run that is invalid or not finished, or too few sessions."""
        return self.judge(self.run.measurements[case].compare(form, self.forms[0])) if self.finished and self.valid else None

    def model_ms(self, m: int, form: str, *, layer: bool = False) -> float | None:
        """All products of the model at M, each as often as the model has it; or those of one layer, on average."""
        times = [(case.count, self.product_ms(case, form)) for case in self._of(m, layer=layer)]
        total = sum(count * each for count, each in times if each is not None)
        return None if any(each is None for _, each in times) else total / self.layers if layer else total

    def model_ratio(self, m: int, form: str) -> stats.Ratio | None:
        """How much faster a form is than the first over all products of the model."""
        cases = self._of(m)
        sessions = min((self.run.measurements[c].sessions for c in cases), default=0)
        if not self.finished or not self.valid or sessions < stats.MIN_SESSIONS:
            return None
        sums = {name: self._session_sums(cases, name) for name in (form, self.forms[0])}  # (P,)
        return self.judge(stats.compare_sessions([[[v]] for v in sums[form]], [[[v]] for v in sums[self.forms[0]]]))

    def _session_sums(self, cases: Sequence[KernelCase], form: str) -> list[float]:
        """Seconds of all products in each session, from its medians.  # (P,)"""
        parts = [[c.count / c.copies * float(np.median(p)) for p in self.run.measurements[c].portions(form)] for c in cases]
        return [sum(session) for session in zip(*parts, strict=True)]

    def _of(self, m: int, *, layer: bool = False) -> list[KernelCase]:
        return [c for c in self.cases if c.m == m and not (layer and (c.k, c.n) == self.last)]

    def faster_at(self, form: str, shape: tuple[int, int]) -> list[int]:
        """The values of M at which a form is faster than the first, for a shape."""
        ratios = {case.m: self.ratio(case, form) for case in self.cases if (case.k, case.n) == shape}
        return [m for m, ratio in ratios.items() if ratio is not None and ratio.verdict == stats.FASTER]

    @property
    def product_rows(self) -> list[ProductRow]:
        return [self._product_row(case, form) for case in self.cases for form in self.forms]

    def _product_row(self, case: KernelCase, form: str) -> ProductRow:
        is_first, least = form == self.forms[0], None
        if form == "fp32":  # what the ceilings are for
            least = compute_floor([Load(bytes=4 * case.k * case.n, operations=case.operations)], self.bandwidth, self.arithmetic)
        return ProductRow(
            case=case,
            form=form,
            ms=self.product_ms(case, form),
            floor_s=None if least is None else least.seconds,
            ratio=None if is_first else self.ratio(case, form),
            is_baseline=is_first,
            same_kernels=self.same_kernels(form),
        )

    @property
    def total_rows(self) -> list[TotalRow]:
        return [
            TotalRow(
                m=m,
                form=form,
                ms=self.model_ms(m, form),
                per_layer_ms=self.model_ms(m, form, layer=True),
                ratio=None if form == self.forms[0] else self.model_ratio(m, form),
                is_baseline=form == self.forms[0],
                same_kernels=self.same_kernels(form),
            )
            for m in self.tokens
            for form in self.forms
        ]

    def to_json(self) -> dict[str, Any]:
        first = self.forms[0]
        return {
            **super().to_json(),
            "cpu_finished": self.cpu_finished,
            "sessions": self.run.sessions,
            "model": data.plain(self.facts),
            "forms": list(self.forms),
            "products": [self._case_json(case) for case in self.cases],
            "whole_model": [
                {"m": row.m, **columns_json(total_columns(first), row), **_against_first(row)} for row in self.total_rows
            ],
            "self_test": data.self_test_json(self.run.judge_self_test(), self.run.self_test),
            "gpu": data.plain(self.gpu),
        }

    def _case_json(self, case: KernelCase) -> dict[str, Any]:
        measured = self.run.measurements[case]
        forms = [
            {
                **columns_json(product_columns(self.forms[0]), row),
                **_against_first(row),
                "tokens": data.tokens_json(measured, row.form),
                "samples": data.samples_json(measured.samples[row.form]),
            }
            for row in (self._product_row(case, form) for form in self.forms)
        ]
        return {**dataclasses.asdict(case), **data.state_json(measured), "forms": forms}


def _against_first(row: ProductRow | TotalRow) -> dict[str, Any]:
    return {"against_first": None if row.is_baseline else data.ratio_json(row.ratio)}


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedKernels(reading.SavedResult):
    """A result as it was written."""

    measurements: dict[KernelCase, Measurement]  # the samples of each case

    @property
    def cpu_finished(self) -> bool:
        return bool(self.value["cpu_finished"])

    @property
    def gpu_cells(self) -> list[dict[str, Any]]:
        """What was measured on a GPU, without what failed there."""
        return [cell for cell in self.value["gpu"].get("cells", []) if not cell["failed"]]

    def others(self, cases: Sequence[KernelCase]) -> dict[KernelCase, Measurement]:
        """What was measured of cases that are not among these."""
        return {case: measured for case, measured in self.measurements.items() if case not in cases}

    def run(self, forms: Sequence[str], cases: Sequence[KernelCase]) -> Run[KernelCase]:
        """The state that a run of these cases goes on from; cases that are new have no samples yet."""
        run = make_empty_run(forms, cases)
        run.measurements |= {case: measured for case, measured in self.measurements.items() if case in run.measurements}
        run.self_test = list(self.self_test) or run.self_test
        run.sessions = self.sessions
        return run


def load_result(path: Path) -> SavedKernels:
    """Read a result, or the one in a folder; see `read_result` for errors."""
    return reading.read_result(path, (KIND,), KernelResult, _decode)


def _decode(path: Path, value: dict[str, Any]) -> SavedKernels:
    return SavedKernels(
        path=path,
        value=value,
        measurements=dict(_read_case(c) for c in value["products"]),
        self_test=reading.read_self_test(value),
        sessions=int(value["sessions"]),
    )


def _read_case(value: Mapping[str, Any]) -> tuple[KernelCase, Measurement]:
    case = KernelCase(**{name: value[name] for name in ("k", "n", "m", "count", "copies")})
    return case, reading.read_measurement(value, value["forms"], name_key="form")


def check_same(
    saved: SavedKernels,
    forms: Sequence[str],
    facts: Mapping[str, Any],
    config: Mapping[str, Any],
    environment: Mapping[str, Any],
    *,
    append: bool,
) -> None:
    """Refuse to mix samples that do not belong together; see `reading.check_goes_on` for the rest."""
    if saved.value["forms"] != list(forms):
        change = f"the forms are {','.join(forms)}, and were {','.join(saved.value['forms'])}"
        reading.refuse(saved, f"{change}.\nChoose another --out.")
    model, own = saved.value["model"], plain(facts)
    for key in sorted({*model, *own} - {"path"}):
        if model.get(key) != own.get(key):
            change = f"{key} is {own.get(key)}, and was {model.get(key)}"
            reading.refuse(saved, f"it is of another model: {change}.\nChoose another --out.")
    reading.check_goes_on(saved, config, environment, append=append)
