"""What is swept: latency of one model call over prompt and context lengths, and throughput of whole batches over their sizes.

These are figures of the model alone, without a server, a queue, a tokenizer, or rows that come and go.

    prefill   one call over the whole prompt and the choice of one token  -> ttft_ms
    decode    `decode_steps` greedy steps on top of a context; the time of one step is the whole over their number  -> tpot_ms
    generate  a prefill and greedy generation for all rows of a batch  -> time to the first token, per further token, tokens/s
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Unpack

from maskpro_deploy.bench.model import DECODE, GENERATE, PREFILL, Case, ModelArm
from maskpro_deploy.bench.sweeps.result import BenchResult
from maskpro_deploy.bench.sweeps.sweep import SweepConfig, SweepOptions, check_sizes, run_sweep
from maskpro_deploy.errors import check_range


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyConfig:
    """What to sweep."""

    batches: tuple[int, ...] = (1,)  # batch sizes
    prompts: tuple[int, ...] = (128,)  # prompt lengths in tokens, for prefill
    contexts: tuple[int, ...] = (128,)  # tokens in the cache before the first timed step, for decode
    decode_steps: int = 8  # steps in one sample
    sweep: SweepConfig = field(default_factory=SweepConfig)  # how long, and the rest

    def __post_init__(self) -> None:
        check_sizes("--batch", self.batches)
        check_sizes("--prompt", self.prompts)
        check_sizes("--context", self.contexts)
        check_sizes("--decode-steps", (self.decode_steps,))

    @property
    def cases(self) -> list[Case]:
        """The points of the sweep: all prefills, then all decodes."""
        prefill = [Case(phase=PREFILL, batch_size=b, input_len=p, output_len=1) for b in self.batches for p in self.prompts]
        steps = self.decode_steps
        decode = [Case(phase=DECODE, batch_size=b, input_len=c, output_len=steps) for b in self.batches for c in self.contexts]
        return prefill + decode


def run_latency(arms: Sequence[ModelArm[Any]], config: LatencyConfig, **options: Unpack[SweepOptions]) -> BenchResult:
    """Measure prefill and decode latency of all arms in one run; see `run_sweep` for arguments and errors."""
    settings = {f.name: getattr(config, f.name) for f in dataclasses.fields(config) if f.name != "sweep"}
    return run_sweep("latency", arms, config.cases, config.sweep, settings, **options)


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
        return [Case(phase=GENERATE, batch_size=b, input_len=self.prompt, output_len=self.output) for b in self.batches]


def run_throughput(arms: Sequence[ModelArm[Any]], config: ThroughputConfig, **options: Unpack[SweepOptions]) -> BenchResult:
    """Measure tokens per second of all arms in one run; see `run_sweep` for arguments and errors."""
    settings = {f.name: getattr(config, f.name) for f in dataclasses.fields(config) if f.name != "sweep"}
    return run_sweep("throughput", arms, config.cases, config.sweep, settings, **options)
