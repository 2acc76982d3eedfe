"""The run of `eval`: models are found, measured by a protocol or on tasks, and their result is written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from maskpro_deploy.errors import InputError
from maskpro_deploy.evaluate.result import Result, markdown, render_text
from maskpro_deploy.reports.quality import build_page
from maskpro_deploy.reports.run import write_run
from maskpro_deploy.runs.output import emit_result
from maskpro_deploy.system.extras import require
from maskpro_deploy.targets.models import Target, find_target

Measure = Callable[[Sequence[Target], Target | None], Result]


def evaluate_models(measure: Measure, models: Sequence[str], against: str | None, *, out: Path | None, as_json: bool) -> None:
    """Measure models, write the report, print.

    Args:
        measure: given the models, the reference first, and the reference.
        models: by name.
        against: the reference, by name.
        out: folder of the report, and of the log by which an evaluation is continued.
        as_json: print one JSON object.

    Raises:
        InputError: a model is named twice, or there is none of that name.
        MaskProError: as `measure`.
    """
    names = [*([against] if against is not None else []), *models]
    if len(set(names)) != len(names):
        raise InputError(f"the same target is named twice: {' '.join(names)}.\nName each one once.")
    if out is not None:
        require("report", "writing report.html")
    targets = [find_target(name) for name in names]
    result = measure(targets, targets[0] if against is not None else None)
    if out is not None:
        write_run(out, result.to_json(), markdown(result), build_page(result))
    emit_result(result, render_text(result), out=out, as_json=as_json)
