"""The run of `benchmark compare`: two results that were measured at different times."""

from __future__ import annotations

from pathlib import Path

from maskpro_deploy.bench.environment import capture
from maskpro_deploy.bench.results.document import to_markdown, to_text
from maskpro_deploy.bench.sweeps.compare import compare_results, describe
from maskpro_deploy.bench.sweeps.result import load_result
from maskpro_deploy.reports.comparison import build_page
from maskpro_deploy.reports.run import write_run
from maskpro_deploy.runs.output import Output, RunFolder, emit_result
from maskpro_deploy.system.files import new_folder


def report_comparison(a: Path, b: Path, output: Output, *, least_difference: float) -> None:
    """Compare two results, write the report, print.

    Args:
        a: a result.json, or its folder.
        b: the other one.
        output: where the comparison goes.
        least_difference: the smallest difference of interest, as a fraction.

    Raises:
        InputError: the two cannot be compared, or the folder of the comparison is taken.
        FormatError: one of them is damaged, or not of a benchmark.
    """
    RunFolder(output)  # what is taken or missing shows first
    result = compare_results(load_result(a), load_result(b), capture(), least_difference=least_difference)
    document = describe(result)
    if output.out is not None:
        with new_folder(output.out, force=output.force) as folder:
            write_run(folder, result.to_json(), to_markdown(document), build_page(result))
    emit_result(result, to_text(document), out=output.out, as_json=output.as_json)
