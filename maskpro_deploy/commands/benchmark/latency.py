"""`maskpro-deploy benchmark latency`."""

from __future__ import annotations

from typing import Any

import click

from maskpro_deploy.commands.benchmark.options import session_options, take_session_options
from maskpro_deploy.commands.options import SIZES


@click.command("latency")
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
def command(
    batches: tuple[int, ...],
    prompts: tuple[int, ...],
    contexts: tuple[int, ...],
    decode_steps: int,
    samples: int,
    **shared: Any,
) -> None:
    r"""Measure prefill and decode latency of BUNDLE over batch, prompt and context lengths.

    \b
    Example:
      maskpro-deploy benchmark latency bundle --against dense-bundle
      maskpro-deploy benchmark latency bundle --batch 1,4 --context 128,512 --budget 5m --threads 2 --out report
    """
    from maskpro_deploy.bench.sweeps.measure import LatencyConfig, run_latency

    sweep, run = take_session_options(samples, shared)
    config = LatencyConfig(batches=batches, prompts=prompts, contexts=contexts, decode_steps=decode_steps, sweep=sweep)
    run(lambda arms, given: run_latency(arms, config, **given))
