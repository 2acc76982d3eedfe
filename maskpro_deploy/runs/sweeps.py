"""The runs of `benchmark latency`, `throughput` and `compare`: whole models, one session of the runtime for each bundle."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from maskpro_deploy.bench.environment import capture
from maskpro_deploy.bench.results.document import to_markdown, to_text
from maskpro_deploy.bench.roofline import GEMM_SIZE, Arithmetic, measure_arithmetic
from maskpro_deploy.bench.sweeps import compare
from maskpro_deploy.bench.sweeps.result import BenchResult, load_result
from maskpro_deploy.bench.sweeps.summary import describe
from maskpro_deploy.bench.sweeps.sweep import SweepOptions
from maskpro_deploy.reports.benchmarks import build_comparison_page, build_sweep_page, write_run
from maskpro_deploy.runs.output import Output, RunFolder, emit_result, run_benchmark
from maskpro_deploy.system.files import new_folder
from maskpro_deploy.system.progress import Meter
from maskpro_deploy.targets.arms import notes_for, open_arms
from maskpro_deploy.targets.products import FP32, Gemm, open_gemm


def benchmark_bundles(
    measure: Callable[..., BenchResult], config: Any, bundles: list[Path], session: Mapping[str, Any], output: Output
) -> None:
    """Open the bundles, measure, save after each session, write the report, print.

    Args:
        measure: `run_latency` or `run_throughput`.
        config: its settings.
        bundles: one, or two to compare.
        session: how they are opened: arguments of `open_arms`.
        output: where the result goes.

    Raises:
        CheckFailed: the run is invalid.
    """

    def run(folder: RunFolder) -> BenchResult:
        arms = open_arms(bundles, **session)
        with closing(Meter("benchmark", "sessions")) as meter:
            given: SweepOptions = {"notes": notes_for(arms), "progress": meter, "append": output.append, "save": folder.save}
            given["earlier"] = folder.load_earlier(load_result)
            if all(arm.on_cpu for arm in arms):
                given["arithmetic"] = measure_onnxruntime(config.sweep.threads)
            return measure(arms, config, **given)

    run_benchmark(run, describe, build_sweep_page, output)


def measure_onnxruntime(threads: int | None) -> Arithmetic:
    """The speed of a large fp32 matrix product in onnxruntime, which runs the bundles too."""
    multiply = open_gemm(Gemm(form=FP32, k=GEMM_SIZE, n=GEMM_SIZE), m=GEMM_SIZE, threads=threads)
    return measure_arithmetic(threads, multiply, method="onnxruntime")


def report_comparison(a: Path, b: Path, output: Output, *, least_difference: float) -> None:
    """Compare two results that were measured at different times, write the report, print.

    Raises:
        InputError: the two cannot be compared, or the folder of the comparison is taken.
        FormatError: one of them is damaged, or not of a benchmark.
    """
    RunFolder(output)  # what is taken or missing shows first
    result = compare.compare_results(load_result(a), load_result(b), capture(), least_difference=least_difference)
    document = compare.describe(result)
    if output.out is not None:
        with new_folder(output.out, force=output.force) as folder:
            write_run(folder, result.to_json(), to_markdown(document), build_comparison_page(result))
    emit_result(result, to_text(document), out=output.out, as_json=output.as_json)
