"""`maskpro-deploy benchmark compare`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from maskpro_deploy.commands.benchmark.options import least_difference_option
from maskpro_deploy.commands.options import PATH, force_option, json_option
from maskpro_deploy.system.output import emit, table

if TYPE_CHECKING:
    from maskpro_deploy.bench.sweeps.compare import Comparison


@click.command("compare")
@click.argument("a", type=PATH)
@click.argument("b", type=PATH)
@click.option("--out", type=PATH, help="Folder for result.json, report.md and report.html.")
@least_difference_option
@force_option
@json_option
def command(a: Path, b: Path, out: Path | None, least_difference: float, force: bool, as_json: bool) -> None:
    r"""Compare two results of `benchmark latency` or `benchmark throughput`: result.json files or their folders.

    Cases and models of one name are matched, and what differs between the runs is listed first. The runs were not interleaved, so
    drift counts as a difference: to compare two bundles, measure them in one run with --against.

    \b
    Example:
      maskpro-deploy benchmark compare report-before report-after --out comparison
    """
    from maskpro_deploy.bench import environment
    from maskpro_deploy.bench.sweeps import compare
    from maskpro_deploy.bench.sweeps.saved import load
    from maskpro_deploy.system.extras import require
    from maskpro_deploy.system.files import check_free

    if out is not None:
        check_free(out, force=force)
        require("report", "writing report.html")
    found = compare.compare(load(a), load(b), environment.capture(), least_difference=least_difference)
    if out is not None:
        _write(found, out, force=force)
    emit(as_json, found.to_json(), _text(found, out))


def _text(found: Comparison, out: Path | None) -> str:
    from maskpro_deploy.bench.sweeps import compare

    lines = [f"A: {found.a}", f"B: {found.b}", ""]
    if found.differences:
        lines += [table(found.differences, ("differs", "A", "B")), ""]
    lines += [table(compare.rows(found), compare.COLUMNS), "", compare.headline(found), "", *compare.notes(found)]
    if out is not None:
        lines.append(f"Report: {out / 'report.html'}")
    return "\n".join(lines)


def _write(found: Comparison, out: Path, *, force: bool) -> None:
    from maskpro_deploy.bench.sweeps import compare
    from maskpro_deploy.bench.sweeps.result import RESULT_FILE
    from maskpro_deploy.reports import comparison
    from maskpro_deploy.reports.blocks import REPORT_FILE, write
    from maskpro_deploy.system.files import new_folder, write_json

    with new_folder(out, force=force) as folder:
        write_json(folder / RESULT_FILE, found.to_json())
        (folder / "report.md").write_text(compare.markdown(found), encoding="utf-8")
        write(comparison.page(found), folder / REPORT_FILE)
