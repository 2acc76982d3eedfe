"""Results of `benchmark kernels` read back, to go on with a run or to add to it.

On the CPU a run goes on from the case it was at, on a GPU from the product it was at.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maskpro_deploy.bench.arms import Measurement
from maskpro_deploy.bench.kernels.measure import KernelCase
from maskpro_deploy.bench.kernels.result import KIND, KernelResult
from maskpro_deploy.bench.results import reading
from maskpro_deploy.bench.results.run import plain
from maskpro_deploy.bench.sessions import Run, make_empty_run


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


def load(path: Path) -> SavedKernels:
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
        reading.refuse(
            saved, f"the forms are {','.join(forms)}, and were {','.join(saved.value['forms'])}.\nChoose another --out."
        )
    model, own = saved.value["model"], plain(facts)
    for key in sorted({*model, *own} - {"path"}):
        if model.get(key) != own.get(key):
            change = f"{key} is {own.get(key)}, and was {model.get(key)}"
            reading.refuse(saved, f"it is of another model: {change}.\nChoose another --out.")
    reading.check_goes_on(saved, config, environment, append=append)
