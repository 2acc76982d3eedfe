"""`maskpro-deploy benchmark kernels`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from maskpro_deploy.commands._benchmark_options import SIZES
from maskpro_deploy.commands._shared import DURATION, PATH, emit, force_option, json_option, table, threads_option
from maskpro_deploy.errors import CheckFailed, ConfigError

if TYPE_CHECKING:
    from maskpro_deploy.bench.arms import Task
    from maskpro_deploy.bench.kernels import KernelCase, KernelResult

_GPU_BUDGET_S = 300.0


@click.command("kernels")
@click.argument("bundle", type=PATH)
@click.option("--tokens", type=SIZES, default=(1, 16, 128), show_default="1,16,128", help="Numbers of tokens: M of the products.")
@click.option(
    "--forms",
    default="fp32,2:4,int8,int4",
    show_default=True,
    help="Forms of the weight; all are compared with the first.",
)
@click.option("--budget", type=DURATION, help="Time for the CPU's products: as many sessions as fit, 8 at least.")
@click.option("--sessions", type=int, show_default="8, up to 40 with --budget", help="Times that everything is opened anew.")
@click.option("--samples", type=int, default=16, show_default=True, help="Samples of each form in each case, over all sessions.")
@threads_option
@click.option("--out", type=PATH, help="Folder for result.json, report.md and report.html.")
@force_option
@json_option
def command(
    bundle: Path,
    tokens: tuple[int, ...],
    forms: str,
    budget: float | None,
    sessions: int | None,
    samples: int,
    threads: int | None,
    out: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    r"""Measure the matrix products of BUNDLE one by one: which form of the weight is faster, at which number of tokens.

    On the CPU in onnxruntime: fp32, fp32 with 2:4 zeros, int8 and int4. Where torch sees an NVIDIA GPU, its 2:4 products beside
    dense ones in fp16 and bf16 as well. Times are added up for a layer and for the whole model.

    \b
    Example:
      maskpro-deploy benchmark kernels bundle
      maskpro-deploy benchmark kernels bundle --tokens 1,8,64 --forms fp32,int8 --threads 2 --out report
    """
    from maskpro_deploy.bench.kernels_report import headline
    from maskpro_deploy.extras import require
    from maskpro_deploy.files import check_free

    require("cpu", "measuring matrix products")
    if out is not None:
        check_free(out, force=force)
        require("report", "writing report.html")
    result = _measure(bundle, tokens, _forms(forms), budget, sessions, samples, threads)
    if out is not None:
        _write(result, out, force=force)
    emit(as_json, result.to_json(), _text(result, out))
    if not result.valid:
        raise CheckFailed(f"the run is invalid: {headline(result).removeprefix('Invalid: ')}\nNo comparison was made.")


def _forms(given: str) -> tuple[str, ...]:
    from maskpro_deploy.commands._benchmark_gemm import FORMS

    forms = tuple(dict.fromkeys(part.strip() for part in given.split(",")))
    for form in forms:
        if form not in FORMS:
            raise ConfigError(f"--forms {form!r} is not known. Known: {', '.join(FORMS)}.")
    return forms


def _measure(
    bundle: Path,
    tokens: tuple[int, ...],
    forms: tuple[str, ...],
    budget_s: float | None,
    sessions: int | None,
    samples: int,
    threads: int | None,
) -> KernelResult:
    from maskpro_deploy.bench import environment, stats
    from maskpro_deploy.bench.graph_work import graph_work
    from maskpro_deploy.bench.kernels import KernelResult, kernel_cases, run_kernels
    from maskpro_deploy.bench.roofline import measure_bandwidth
    from maskpro_deploy.bench.sweep import SweepConfig
    from maskpro_deploy.commands import _gpu_products
    from maskpro_deploy.commands._benchmark_output import measured_arithmetic
    from maskpro_deploy.manifest import Manifest, safe_path
    from maskpro_deploy.progress import Meter

    started = time.monotonic()
    if sessions is None and budget_s is None:
        sessions = stats.MIN_SESSIONS
    config = SweepConfig(samples=samples, sessions=sessions, budget_s=budget_s, threads=threads)
    manifest = Manifest.load(bundle, engines=False)
    work = graph_work(safe_path(bundle, manifest.graph.file))
    cases = kernel_cases(work.products, tokens)
    around = environment.capture()
    bandwidth, arithmetic = measure_bandwidth(threads), measured_arithmetic(threads)
    meter, flush = Meter("kernels", "sessions"), _flush()
    openers = {form: partial(_opened, form, threads, flush) for form in forms}
    run = run_kernels(openers, cases, config.measure, progress=meter)
    meter.close()
    return KernelResult(
        forms=forms,
        run=run,
        last=work.last,
        layers=manifest.model.num_layers,
        environment={**around, "load_average_1min_after": environment.load_average()},
        config={"tokens": tokens, "samples": samples, "sessions": sessions, "budget_s": budget_s, "threads": threads},
        facts={"name": manifest.model.name, "path": str(bundle), "layers": manifest.model.num_layers},
        bandwidth=bandwidth,
        arithmetic=arithmetic,
        gpu=_gpu_products.of_model(
            _gpu_products.ModelProducts(products=work.products, tokens=tokens, budget_s=budget_s or _GPU_BUDGET_S)
        ),
        duration_s=time.monotonic() - started,
    )


@contextmanager
def _opened(form: str, threads: int | None, flush: Callable[[], object]) -> Iterator[Callable[[KernelCase], Task]]:
    from maskpro_deploy.commands._benchmark_gemm import OpenForm

    yield OpenForm(form, threads, flush)


def _flush() -> Callable[[], object]:
    """Overwrites a buffer twice as large as the caches."""
    import numpy as np

    from maskpro_deploy.bench.environment import last_level_cache_bytes

    buffer = np.zeros(max(64 << 20, 2 * (last_level_cache_bytes() or 0)) // 4, np.float32)
    return lambda: np.add(buffer, 1.0, out=buffer)


def _text(result: KernelResult, out: Path | None) -> str:
    from maskpro_deploy.bench import kernels_report as report

    lines = [table(report.product_rows(result), report.header(report.PRODUCTS, result)), ""]
    lines += [table(report.total_rows(result), report.header(report.TOTALS, result)), ""]
    if rows := report.gpu_rows(result.gpu):
        lines += [table(rows, report.GPU_TOTALS), ""]
    lines += [f"INVALID: {reason}" for reason in result.invalid_reasons]
    lines += [*report.verdicts(result), "", *report.notes(result)]
    if out is not None:
        lines.append(f"Report: {out / 'report.html'}")
    return "\n".join(lines)


def _write(result: KernelResult, out: Path, *, force: bool) -> None:
    from maskpro_deploy.bench import kernels_report as report
    from maskpro_deploy.bench.report import REPORT_FILE, write
    from maskpro_deploy.bench.result import RESULT_FILE
    from maskpro_deploy.files import new_folder, write_json

    with new_folder(out, force=force) as folder:
        write_json(folder / RESULT_FILE, result.to_json())
        (folder / "report.md").write_text(report.markdown(result), encoding="utf-8")
        write(report.page(result), folder / REPORT_FILE)
