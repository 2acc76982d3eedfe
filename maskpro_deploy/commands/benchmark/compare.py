"""`maskpro-deploy benchmark compare`."""

from __future__ import annotations

from pathlib import Path

import click

from maskpro_deploy.commands.benchmark.options import least_difference_option
from maskpro_deploy.commands.options import PATH, force_option, json_option
from maskpro_deploy.system.output import emit


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
    from maskpro_deploy.bench.environment import capture
    from maskpro_deploy.bench.results.document import to_text
    from maskpro_deploy.bench.sweeps.compare import compare_results, describe
    from maskpro_deploy.bench.sweeps.saved import load
    from maskpro_deploy.system.extras import require
    from maskpro_deploy.system.files import check_free, new_folder

    if out is not None:
        check_free(out, force=force)
        require("report", "writing report.html")
    comparison = compare_results(load(a), load(b), capture(), least_difference=least_difference)
    document = describe(comparison)
    if out is not None:
        from maskpro_deploy.reports.comparison import build_page
        from maskpro_deploy.reports.run import write_run

        with new_folder(out, force=force) as folder:
            write_run(folder, comparison.to_json(), document, build_page(comparison))
    emit(as_json, comparison.to_json(), to_text(document, out))
