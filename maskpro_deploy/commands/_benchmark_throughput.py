"""`maskpro-deploy benchmark throughput`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from maskpro_deploy.commands._benchmark_arms import open_arms
from maskpro_deploy.commands._benchmark_options import SIZES, arm_options, split_options
from maskpro_deploy.commands._benchmark_output import measure_and_emit

if TYPE_CHECKING:
    from maskpro_deploy.bench.model import ModelArm
    from maskpro_deploy.bench.result import BenchResult
    from maskpro_deploy.bench.sweep import SweepOptions


@click.command("throughput")
@arm_options
@click.option("--batch", type=SIZES, default=(1, 2, 4, 8), show_default="1,2,4,8", help="Batch sizes.")
@click.option("--prompt", type=int, default=128, show_default=True, help="Prompt length in tokens.")
@click.option("--output", type=int, default=32, show_default=True, help="Tokens to generate per row.")
@click.option("--latency-bound", type=float, metavar="MS", help="The best batch keeps its median time per token within this.")
@click.option("--samples", type=int, default=20, show_default=True, help="Samples of each arm at each batch size.")
def command(
    batch: tuple[int, ...],
    prompt: int,
    output: int,
    latency_bound: float | None,
    samples: int,
    bundle: Path,
    against: Path | None,
    provider: str,
    form: str | None,
    engine: str | None,
    threads: int | None,
    spin: bool,
    **others: Any,
) -> None:
    r"""Measure tokens per second of BUNDLE over batch sizes, and the best batch within a latency bound.

    \b
    Example:
      maskpro-deploy benchmark throughput bundle --against dense-bundle --batch 1,2,4,8 --latency-bound 100
    """
    from maskpro_deploy.bench.throughput import ThroughputConfig, run_throughput

    sweep, ending = split_options(samples, threads, others)
    config = ThroughputConfig(batches=batch, prompt=prompt, output=output, latency_bound_ms=latency_bound, sweep=sweep)

    def run(arms: list[ModelArm[Any]], given: SweepOptions) -> BenchResult:
        return run_throughput(arms, config, **given)

    bundles = [bundle, *([against] if against is not None else [])]
    opened = partial(open_arms, bundles, provider, threads, spin=spin, form=form, engine=engine)
    measure_and_emit(run, opened, threads=threads, **ending)
