"""Throughput over batch sizes: whole batches generated at once, and the best batch size within a latency bound.

One sample is a prefill of `prompt` tokens and greedy generation of `output` tokens for all rows of a batch. It gives the time
to the first token, the time per further token, and tokens per second. This is the capacity of the model alone: a server adds
queueing, and rows that come and go.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Unpack

from maskpro_deploy.bench.model import GENERATE, Case, ModelArm
from maskpro_deploy.bench.sweeps.result import BenchResult
from maskpro_deploy.bench.sweeps.sweep import SweepConfig, SweepOptions, check_sizes, run_sweep
from maskpro_deploy.errors import check_range


@dataclass(frozen=True, slots=True, kw_only=True)
class ThroughputConfig:
    """What to sweep."""

    batches: tuple[int, ...] = (1, 2, 4, 8)  # batch sizes
    prompt: int = 128  # prompt length in tokens
    output: int = 32  # tokens to generate per row
    # the best batch has to keep its median time per output token within this; None: no bound
    latency_bound_ms: float | None = None
    sweep: SweepConfig = field(default_factory=lambda: SweepConfig(samples=20))  # how long, and the rest

    def __post_init__(self) -> None:
        check_sizes("--batch", self.batches)
        check_sizes("--prompt", (self.prompt,))
        check_range("--output", self.output, least=2, note="the first token belongs to the prefill")
        check_range("--latency-bound", self.latency_bound_ms, above=0)

    @property
    def cases(self) -> list[Case]:
        """One per batch size."""
        return [Case(phase=GENERATE, batch_size=b, input_len=self.prompt, output_len=self.output) for b in self.batches]


def run_throughput(arms: Sequence[ModelArm[Any]], config: ThroughputConfig, **options: Unpack[SweepOptions]) -> BenchResult:
    """Measure tokens per second of all arms in one run; see `run_sweep` for arguments and errors."""
    settings = {f.name: getattr(config, f.name) for f in dataclasses.fields(config) if f.name != "sweep"}
    return run_sweep("throughput", arms, config.cases, config.sweep, settings, **options)
