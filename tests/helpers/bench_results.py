"""Results measured on a simulated clock."""

from __future__ import annotations

import numpy as np
import pytest
from simulated import CEILINGS, ManualClock, simulated_arm

from maskpro_deploy.bench.sweeps.measure import LatencyConfig, ThroughputConfig, run_latency, run_throughput
from maskpro_deploy.bench.sweeps.result import BenchResult
from maskpro_deploy.bench.sweeps.sweep import SweepConfig, SweepOptions


@pytest.fixture(scope="session")
def latency_result() -> BenchResult:
    """Two simulated models, the second 10 % slower, with 2 % noise."""
    clock, rng = ManualClock(), np.random.default_rng(0)
    arms = [
        simulated_arm("sparse", clock, jitter=lambda: float(np.exp(rng.normal(0, 0.02)))),
        simulated_arm("dense", clock, jitter=lambda: 1.1 * float(np.exp(rng.normal(0, 0.02)))),
    ]
    config = LatencyConfig(batches=(1, 2), prompts=(16,), contexts=(16,), sweep=SweepConfig(samples=40, threads=1))
    options: SweepOptions = {**CEILINGS, "notes": ["A note."], "clock": clock}
    return run_latency(arms, config, **options)


@pytest.fixture(scope="session")
def throughput_result() -> BenchResult:
    """Two simulated models of the same speed over three batch sizes."""
    clock, rng = ManualClock(), np.random.default_rng(1)
    arms = [simulated_arm(name, clock, jitter=lambda: float(np.exp(rng.normal(0, 0.02)))) for name in ("sparse", "dense")]
    config = ThroughputConfig(batches=(1, 2, 4), prompt=16, output=8, latency_bound_ms=1.3, sweep=SweepConfig(threads=1))
    options: SweepOptions = {**CEILINGS, "clock": clock}
    return run_throughput(arms, config, **options)
