"""Latency of one model call: time to the first token over prompt lengths, time per token over context lengths.

These are session-level figures: the model alone, without a server, a queue or a tokenizer.

    prefill   one call over the whole prompt and the choice of one token  -> ttft_ms
    decode    `decode_steps` greedy steps on top of a context; the time of one step is the whole over their number  -> tpot_ms
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Unpack

from maskpro_deploy.bench.model import DECODE, PREFILL, Case, ModelArm
from maskpro_deploy.bench.sweeps.result import BenchResult
from maskpro_deploy.bench.sweeps.sweep import SweepConfig, SweepOptions, check_sizes, run_sweep


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
