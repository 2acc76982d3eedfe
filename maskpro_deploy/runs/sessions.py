"""The runs of `benchmark latency` and `benchmark throughput`: whole models, one session of the runtime for each bundle."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from maskpro_deploy.bench.model import ModelArm
from maskpro_deploy.bench.roofline import GEMM_SIZE, Arithmetic, measure_arithmetic
from maskpro_deploy.bench.sweeps.result import BenchResult, load_result
from maskpro_deploy.bench.sweeps.summary import describe
from maskpro_deploy.bench.sweeps.sweep import SweepConfig, SweepOptions
from maskpro_deploy.reports.latency import build_page
from maskpro_deploy.runs.output import Output, RunFolder, run_benchmark
from maskpro_deploy.system.progress import Meter
from maskpro_deploy.targets.arms import notes_for
from maskpro_deploy.targets.products import FP32, Gemm, open_gemm


class Measure(Protocol):
    """Measures arms that are open."""

    def __call__(self, arms: list[ModelArm[Any]], given: SweepOptions, /) -> BenchResult: ...


def benchmark_bundles(
    measure: Measure, *, open_all: Callable[[], list[ModelArm[Any]]], sweep: SweepConfig, output: Output
) -> None:
    """Open the bundles, measure, save after each session, write the report, print.

    Args:
        measure: the benchmark.
        open_all: opens the bundles.
        sweep: the settings of `measure`.
        output: where the result goes.

    Raises:
        CheckFailed: the run is invalid.
    """

    def run(folder: RunFolder) -> BenchResult:
        arms, meter = open_all(), Meter("benchmark", "sessions")
        given: SweepOptions = {
            "notes": notes_for(arms),
            "progress": meter,
            "earlier": folder.load_earlier(load_result),
            "append": output.append,
            "save": folder.save,
        }
        if all(arm.on_cpu for arm in arms):
            given["arithmetic"] = measure_onnxruntime(sweep.threads)
        try:
            return measure(arms, given)
        finally:
            meter.close()

    run_benchmark(run, describe, build_page, output)


def measure_onnxruntime(threads: int | None) -> Arithmetic:
    """The speed of a large fp32 matrix product in onnxruntime, which runs the bundles too."""
    multiply = open_gemm(Gemm(form=FP32, k=GEMM_SIZE, n=GEMM_SIZE), m=GEMM_SIZE, threads=threads)
    return measure_arithmetic(threads, multiply, method="onnxruntime")
