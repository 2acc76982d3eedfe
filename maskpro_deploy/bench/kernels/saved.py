"""Results of `benchmark kernels` read back, to go on with a run or to add to it.

On the CPU a run goes on from the case it was at, on a GPU from the product it was at.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from maskpro_deploy.bench.arms import Measurement, Work
from maskpro_deploy.bench.kernels.measure import KIND, SCHEMA, VERSION, KernelCase
from maskpro_deploy.bench.sessions import Run, empty_run
from maskpro_deploy.bench.sweeps.result import RESULT_FILE, plain
from maskpro_deploy.bench.sweeps.saved import check_kind, check_machine, check_settings, samples, self_test, start_of
from maskpro_deploy.errors import FormatError, InputError
from maskpro_deploy.system.files import read_json


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedKernels:
    """A result as it was written.

    Attributes:
        path: of the file.
        value: its content.
        measurements: the samples of each case.
        self_test: the samples of each attempt at a self-test.
    """

    path: Path
    value: Mapping[str, Any]
    measurements: dict[KernelCase, Measurement]
    self_test: list[Measurement]

    @property
    def sessions(self) -> int:
        """How many are done; of the next one some cases may be."""
        return int(self.value["sessions"])

    @property
    def cpu_finished(self) -> bool:
        """Whether all sessions on the CPU were done."""
        return bool(self.value["cpu_finished"])

    @property
    def gpu_cells(self) -> list[dict[str, Any]]:
        """What was measured on a GPU, without what failed there."""
        return [cell for cell in self.value["gpu"].get("cells", []) if not cell["failed"]]

    @property
    def history(self) -> tuple[dict[str, Any], ...]:
        """When and how this run and those before it were started."""
        return (*self.value["earlier"], start_of(self.value, self.sessions))

    @property
    def planned_sessions(self) -> int:
        """How many the run was to have in all; with a budget, at most."""
        return int(self.value["planned_sessions"])

    def others(self, cases: Sequence[KernelCase]) -> dict[KernelCase, Measurement]:
        """What was measured of cases that are not among these."""
        return {case: found for case, found in self.measurements.items() if case not in cases}

    def run(self, forms: Sequence[str], cases: Sequence[KernelCase]) -> Run[KernelCase]:
        """The state that a run of these cases goes on from; cases that are new have no samples yet."""
        run = empty_run(forms, cases)
        run.measurements |= {case: found for case, found in self.measurements.items() if case in run.measurements}
        run.self_test = list(self.self_test) or run.self_test
        run.sessions = self.sessions
        return run


def load(path: Path) -> SavedKernels:
    """Read a result, or the one in a folder.

    Raises:
        InputError: there is none.
        FormatError: it is damaged, or of another kind or version.
    """
    file = path / RESULT_FILE if path.is_dir() else path
    value = read_json(file)
    check_kind(file, value, (KIND,), (SCHEMA, VERSION))
    try:
        return SavedKernels(
            path=file,
            value=value,
            measurements=dict(_case(c) for c in value["products"]),
            self_test=[self_test(a) for a in value["self_test"]["samples"]],
        )
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as e:
        raise FormatError(f"{file} is damaged: {type(e).__name__}: {e}.\nMeasure again.") from e


def _case(value: Mapping[str, Any]) -> tuple[KernelCase, Measurement]:
    forms = value["forms"]
    measurement = Measurement(
        samples={form["form"]: samples(form["samples"]) for form in forms},
        work={f["form"]: Work(tokens=np.asarray(f["tokens"], np.int64)) for f in forms if f["tokens"] is not None},
        **{name: value[name] for name in ("warmup_rounds", "warm", "failed", "invalid")},
    )
    return KernelCase(**{name: value[name] for name in ("k", "n", "m", "count", "copies")}), measurement


def check_same(
    saved: SavedKernels,
    forms: Sequence[str],
    facts: Mapping[str, Any],
    config: Mapping[str, Any],
    environment: Mapping[str, Any],
    *,
    append: bool,
) -> None:
    """Refuse to mix samples that do not belong together.

    Args:
        saved: what is to be gone on with.
        forms: of the run.
        facts: the model, by its shapes; where it lies does not matter.
        config: settings of the run, as the result states them.
        environment: what it runs on.
        append: other numbers of tokens and of samples are fine.

    Raises:
        InputError: naming the first difference.
    """
    where = f"cannot go on with {saved.path}"
    if saved.value["forms"] != list(forms):
        raise InputError(
            f"{where}: the forms are {','.join(forms)}, and were {','.join(saved.value['forms'])}.\nChoose another --out."
        )
    before, now = saved.value["model"], plain(facts)
    for key in sorted({*before, *now} - {"path"}):
        if before.get(key) != now.get(key):
            raise InputError(
                f"{where}: it is of another model: {key} is {now.get(key)}, and was {before.get(key)}.\nChoose another --out."
            )
    check_settings(where, saved.value["config"], config, append=append)
    check_machine(where, saved.value["environment"], environment)
