"""`maskpro-deploy benchmark throughput`."""

from __future__ import annotations

from typing import Any

import click

from maskpro_deploy.commands.benchmark.options import session_options, take_session_options
from maskpro_deploy.commands.options import SIZES


@click.command("throughput")
@session_options
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
    **shared: Any,
) -> None:
    r"""Measure tokens per second of BUNDLE over batch sizes, and the best batch within a latency bound.

    \b
    Example:
      maskpro-deploy benchmark throughput bundle --against dense-bundle --batch 1,2,4,8 --latency-bound 100
    """
    from maskpro_deploy.bench.sweeps.measure import ThroughputConfig, run_throughput

    sweep, run = take_session_options(samples, shared)
    config = ThroughputConfig(batches=batch, prompt=prompt, output=output, latency_bound_ms=latency_bound, sweep=sweep)
    run(lambda arms, given: run_throughput(arms, config, **given))
