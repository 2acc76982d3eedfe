"""`maskpro-deploy benchmark`: the group, and all of its subcommands but `serve`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from maskpro_deploy.cache_forms import CACHE_FORMS
from maskpro_deploy.commands import benchmark_serve
from maskpro_deploy.commands.options import (
    DURATION,
    NAMES,
    PATH,
    SIZES,
    combine,
    force_option,
    json_option,
    least_difference_option,
    provider_option,
    seed_option,
    threads_option,
)

F = TypeVar("F", bound=Callable[..., Any])

# the fields of `SweepConfig`, `SessionConfig` and `Output` among the options; the others are of the benchmark itself
_SWEEP = ("samples", "sessions", "budget_s", "same_model", "logit_tolerance", "seed", "least_difference")
_SESSION = ("provider", "threads", "spin", "form", "engine")
_OUTPUT = ("out", "resume", "append", "force", "as_json")


@click.group("benchmark")
def command() -> None:
    r"""Measure latency and throughput, sparse against dense, in one run.

    Arms are timed in interleaved blocks (A B B A); each comparison comes with a 95 % interval and a verdict, and each report with
    a test of the harness against itself. Exit code 1: the run is invalid, and the reason is given.

    \b
    Example:
      maskpro-deploy benchmark latency bundle --against dense-bundle --out report
      maskpro-deploy benchmark throughput bundle --batch 1,2,4,8
      maskpro-deploy benchmark kernels bundle --tokens 1,16,128
      maskpro-deploy benchmark compare report-before report-after
    """


def output_options(saved: str) -> Callable[[F], F]:
    """Where a result goes, and how a run goes on from it; `saved` says when the result so far is written."""
    return combine(
        click.option("--out", type=PATH, help=f"Folder for result.json, report.md and report.html; saved {saved}."),
        click.option("--resume", is_flag=True, help="Go on with the interrupted run in --out."),
        click.option("--append", is_flag=True, help="Add sessions or cases to the result in --out."),
        force_option,
        json_option,
    )


_MANY_SESSIONS = "Times that each bundle is opened again; 8 or more for a comparison."
_TOLERANCE = "The bundles are the same model up to rounding: no logit may differ by more than X."
_FORMS = f"{', '.join(CACHE_FORMS)}: the graph of BUNDLE to run, and that of --against."
_BOUND = "The best batch keeps its median time per token within this."
_WEIGHT_FORMS = "Forms of the weight; all are compared with the first."
session_options: Callable[[F], F] = combine(
    click.argument("bundle", type=PATH),
    click.option("--against", type=PATH, metavar="BUNDLE", help="A second bundle, measured in the same run."),
    click.option("--budget", "budget_s", type=DURATION, help="Time for the whole run: as many sessions as fit, 8 at least."),
    click.option("--sessions", type=int, show_default="10, up to 40 with --budget", help=_MANY_SESSIONS),
    click.option("--same-model", is_flag=True, help="The bundles are the same model: they have to choose the same tokens."),
    click.option("--logit-tolerance", type=float, metavar="X", help=_TOLERANCE),
    provider_option("cpu", "What runs it."),
    click.option("--form", metavar="FORM[,FORM]", help=_FORMS),
    click.option("--engine", metavar="FILE[,FILE]", help="The engine of BUNDLE to run, and that of --against."),
    threads_option,
    click.option("--spin", is_flag=True, help="Let waiting threads spin (as in `serve --spin`); off, they sleep."),
    seed_option,
    least_difference_option,
    output_options(saved="after each session"),
)


def measure_bundles(
    measure: Callable[..., Any], make_config: Callable[..., Any], bundle: Path, against: Path | None, **options: Any
) -> None:
    """Run a benchmark with the options of `session_options`; what is left of `options` are its own settings."""
    from maskpro_deploy.bench.sweeps.sweep import SweepConfig
    from maskpro_deploy.runs.output import Output
    from maskpro_deploy.runs.sweeps import benchmark_bundles

    sweep = SweepConfig(threads=options["threads"], **{name: options.pop(name) for name in _SWEEP})
    session, output = ({name: options.pop(name) for name in names} for names in (_SESSION, _OUTPUT))
    config = make_config(sweep=sweep, **options)
    bundles = [bundle] if against is None else [bundle, against]
    benchmark_bundles(measure, config, bundles, session, Output(**output))


@command.command()
@session_options
@click.option("--batch", "batches", type=SIZES, default=(1,), show_default="1", help="Batch sizes.")
@click.option(
    "--prompt", "prompts", type=SIZES, default=(128,), show_default="128", help="Prompt lengths for prefill, in tokens."
)
@click.option(
    "--context", "contexts", type=SIZES, default=(128,), show_default="128", help="Context lengths for decode, in tokens."
)
@click.option("--decode-steps", type=int, default=8, show_default=True, help="Decode steps in one sample.")
@click.option("--samples", type=int, default=60, show_default=True, help="Samples of each arm in each case, over all sessions.")
def latency(**options: Any) -> None:
    r"""Measure prefill and decode latency of BUNDLE over batch, prompt and context lengths.

    \b
    Example:
      maskpro-deploy benchmark latency bundle --against dense-bundle
      maskpro-deploy benchmark latency bundle --batch 1,4 --context 128,512 --budget 5m --threads 2 --out report
    """
    from maskpro_deploy.bench.sweeps.measure import LatencyConfig, run_latency

    measure_bundles(run_latency, LatencyConfig, **options)


@command.command()
@session_options
@click.option("--batch", "batches", type=SIZES, default=(1, 2, 4, 8), show_default="1,2,4,8", help="Batch sizes.")
@click.option("--prompt", type=int, default=128, show_default=True, help="Prompt length in tokens.")
@click.option("--output", type=int, default=32, show_default=True, help="Tokens to generate per row.")
@click.option("--latency-bound", "latency_bound_ms", type=float, metavar="MS", help=_BOUND)
@click.option("--samples", type=int, default=20, show_default=True, help="Samples of each arm at each batch size.")
def throughput(**options: Any) -> None:
    r"""Measure tokens per second of BUNDLE over batch sizes, and the best batch within a latency bound.

    \b
    Example:
      maskpro-deploy benchmark throughput bundle --against dense-bundle --batch 1,2,4,8 --latency-bound 100
    """
    from maskpro_deploy.bench.sweeps.measure import ThroughputConfig, run_throughput

    measure_bundles(run_throughput, ThroughputConfig, **options)


@command.command()
@click.argument("bundle", type=PATH)
@click.option("--tokens", type=SIZES, default=(1, 16, 128), show_default="1,16,128", help="Numbers of tokens: M of the products.")
@click.option("--forms", type=NAMES, default="fp32,2:4,int8,int4", show_default=True, help=_WEIGHT_FORMS)
@click.option("--budget", "budget_s", type=DURATION, help="Time for the CPU's products: as many sessions as fit, 8 at least.")
@click.option("--sessions", type=int, show_default="8, up to 40 with --budget", help="Times that everything is opened again.")
@click.option("--samples", type=int, default=16, show_default=True, help="Samples of each form in each case, over all sessions.")
@threads_option
@least_difference_option
@output_options(saved="after each product")
def kernels(bundle: Path, **options: Any) -> None:
    r"""Measure the matrix products of BUNDLE one by one: which form of the weight is faster, at which number of tokens.

    On the CPU in onnxruntime: fp32, fp32 with 2:4 zeros, int8 and int4. Where torch sees an NVIDIA GPU, its 2:4 products next to
    dense ones in fp16, bf16 and int8 as well. Times are added up for a layer and for the whole model.

    \b
    Example:
      maskpro-deploy benchmark kernels bundle
      maskpro-deploy benchmark kernels bundle --tokens 1,8,64 --forms fp32,int8 --threads 2 --out report
    """
    from maskpro_deploy.runs.kernels import KernelsConfig, benchmark_kernels
    from maskpro_deploy.runs.output import Output
    from maskpro_deploy.system.extras import require

    require("cpu", "measuring matrix products")
    output = Output(**{name: options.pop(name) for name in _OUTPUT})
    benchmark_kernels(bundle, KernelsConfig(**options), output)


command.add_command(benchmark_serve.command)


@command.command()
@click.argument("a", type=PATH)
@click.argument("b", type=PATH)
@click.option("--out", type=PATH, help="Folder for result.json, report.md and report.html.")
@least_difference_option
@force_option
@json_option
def compare(a: Path, b: Path, least_difference: float, **output: Any) -> None:
    r"""Compare two results of `benchmark latency` or `benchmark throughput`: result.json files or their folders.

    Cases and models of one name are matched, and what differs between the runs is listed first. The runs were not interleaved, so
    drift counts as a difference: to compare two bundles, measure them in one run with --against.

    \b
    Example:
      maskpro-deploy benchmark compare report-before report-after --out comparison
    """
    from maskpro_deploy.runs.output import Output
    from maskpro_deploy.runs.sweeps import report_comparison

    report_comparison(a, b, Output(**output), least_difference=least_difference)
