"""How a benchmark run ends: printed, written to a folder, and an exit code by whether it is valid."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maskpro_deploy.commands._benchmark_arms import notes_for
from maskpro_deploy.commands._shared import emit, table
from maskpro_deploy.errors import CheckFailed

if TYPE_CHECKING:
    from maskpro_deploy.bench.model import ModelArm
    from maskpro_deploy.bench.result import BenchResult
    from maskpro_deploy.progress import Progress


def measure_and_emit(
    run: Callable[[list[ModelArm[Any]], list[str], Progress], BenchResult],
    open_all: Callable[[], list[ModelArm[Any]]],
    out: Path | None,
    *,
    force: bool,
    as_json: bool,
) -> None:
    """Open the bundles, measure, print, write; exit code 1 for an invalid run."""
    from maskpro_deploy.bench.summary import headline
    from maskpro_deploy.extras import require
    from maskpro_deploy.files import check_free
    from maskpro_deploy.progress import Meter

    if out is not None:
        check_free(out, force=force)
        require("report", "writing report.html")
    arms = open_all()
    notes = notes_for(arms)
    meter = Meter("benchmark", "cases")
    result = run(arms, notes, meter)
    meter.close()
    if out is not None:
        write_files(result, out, force=force)
    emit(as_json, result.to_json(), text(result, out))
    if not result.valid:
        raise CheckFailed(f"the run is invalid: {headline(result).removeprefix('Invalid: ')}\nNo comparison was made.")


def text(result: BenchResult, out: Path | None = None) -> str:
    """The result as it is printed."""
    from maskpro_deploy.bench import summary

    lines = [table(summary.rows(result), summary.columns(result)), ""]
    if not result.valid:
        lines += [f"INVALID: {reason}" for reason in result.invalid_reasons] + [""]
    lines += [verdict.sentence for verdict in summary.verdicts(result)]
    lines += summary.best_batches(result)
    lines += ["", *summary.caveats(result)]
    lines += [f"Machine: {summary.machine_line(result)}"]
    if out is not None:
        lines += [f"Report: {out / 'report.html'}"]
    return "\n".join(lines)


def write_files(result: BenchResult, out: Path, *, force: bool) -> None:
    """result.json, report.md and report.html in a new folder, as a whole or not at all."""
    from maskpro_deploy.bench.page import page
    from maskpro_deploy.bench.report import REPORT_FILE, write
    from maskpro_deploy.bench.result import RESULT_FILE
    from maskpro_deploy.bench.summary import markdown
    from maskpro_deploy.files import new_folder, write_json

    value = json.loads(json.dumps(result.to_json(), allow_nan=False))
    with new_folder(out, force=force) as folder:
        write_json(folder / RESULT_FILE, value)
        (folder / "report.md").write_text(markdown(result), encoding="utf-8")
        write(page(result), folder / REPORT_FILE)
