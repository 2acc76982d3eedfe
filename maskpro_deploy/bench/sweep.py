"""A sweep: every case measured on all arms in one run, beside the self-test, the memory bandwidth and the environment."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from maskpro_deploy.bench import environment, stats
from maskpro_deploy.bench.arms import SAMPLES_PER_BLOCK, Clock, MeasureConfig
from maskpro_deploy.bench.model import Case, ModelArm, check_arms, make_task
from maskpro_deploy.bench.result import BenchResult, CaseResult
from maskpro_deploy.bench.roofline import Bandwidth, measure_bandwidth
from maskpro_deploy.bench.sessions import MakeTask, Opener, Sessions
from maskpro_deploy.errors import ConfigError
from maskpro_deploy.progress import SILENT, Progress

_SESSIONS, _SESSIONS_WITHIN_BUDGET = 10, 40


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepConfig:
    """What all sweeps have in common.

    Attributes:
        samples: timings of each arm in each case; they come in blocks of two, shared among the sessions.
        sessions: times that every arm is opened anew; None: 10, or up to 40 with a budget.
        budget_s: time for the whole run: as many sessions as fit, and `stats.MIN_SESSIONS` even beyond it.
        same_model: the arms are the same model and have to agree on every token.
        threads: cores at work in the bandwidth measurement; None: all.
        seed: of the tokens that are drawn.
    """

    samples: int = 60
    sessions: int | None = None
    budget_s: float | None = None
    same_model: bool = False
    threads: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.samples < 2:
            raise ConfigError(f"--samples {self.samples} is out of range: 2 or more (20 or more for a comparison).")
        if self.sessions is not None and self.sessions < 1:
            raise ConfigError(f"--sessions {self.sessions} is out of range: 1 or more ({stats.MIN_SESSIONS} for a comparison).")
        if self.budget_s is not None and self.budget_s <= 0:
            raise ConfigError(f"--budget {self.budget_s:g} is out of range: above 0.")

    @property
    def measure(self) -> MeasureConfig:
        """The settings of the timing loop."""
        pairs = self.samples // SAMPLES_PER_BLOCK
        usual = min(self.sessions or _SESSIONS, pairs)
        return MeasureConfig(
            sessions=usual if self.budget_s is None else self.sessions or _SESSIONS_WITHIN_BUDGET,
            blocks=pairs // usual,
            budget_s=self.budget_s,
            same_model=self.same_model,
        )


def check_sizes(flag: str, sizes: Sequence[int]) -> None:
    """Refuse a list of sizes that is empty or holds something below 1.

    Raises:
        ConfigError: naming the flag.
    """
    for size in sizes:
        if size < 1:
            raise ConfigError(f"{flag} {size} is out of range: 1 or more.")


def run_sweep(
    kind: str,
    arms: Sequence[ModelArm[Any]],
    cases: Sequence[Case],
    config: SweepConfig,
    *,
    settings: Mapping[str, Any],
    notes: Sequence[str] = (),
    bandwidth: Bandwidth | None = None,
    self_test: bool = True,
    clock: Clock = time.perf_counter,
    wall: Clock | None = None,
    progress: Progress = SILENT,
) -> BenchResult:
    """Measure all cases on all arms.

    Args:
        kind: "latency" or "throughput".
        arms: the first is compared with each of the others.
        cases: the points of the sweep.
        config: how long.
        settings: what the result should repeat of the configuration.
        notes: remarks for the report.
        bandwidth: of the memory, if it was measured a moment ago; None measures it.
        self_test: whether to measure the first arm against a second session of itself as well.
        clock: seconds, monotonic.
        wall: the wall clock, which has to keep step with `clock`; None: the machine's, if `clock` is.
        progress: told after each case of each session.

    Raises:
        InputError: the arms cannot be compared.
        ConfigError: a case does not fit in an arm.
    """
    check_arms(arms, cases)
    started = clock()
    before = environment.capture()
    bandwidth = bandwidth or measure_bandwidth(config.threads)
    run = Sessions(
        {arm.name: _opener(arm, config.seed, clock) for arm in arms},
        cases,
        config.measure,
        self_test=self_test,
        clock=clock,
        wall=wall or (time.time if clock is time.perf_counter else clock),
        progress=progress,
    ).measure()
    return BenchResult(
        kind=kind,
        environment={**before, "load_average_1min_after": environment.load_average()},
        config={**settings, **dataclasses.asdict(config)},
        arms=tuple(arms),
        cases=tuple(CaseResult(case=case, measurement=run.measurements[case]) for case in cases),
        self_test=run.verdict(),
        bandwidth=bandwidth,
        duration_s=clock() - started,
        notes=tuple(notes),
    )


def _opener(arm: ModelArm[Any], seed: int, clock: Clock) -> Opener[Case]:
    @contextmanager
    def opened() -> Iterator[MakeTask[Case]]:
        with arm.open() as forward:
            yield lambda case: make_task(forward, case, arm.vocab_size, seed, clock)

    return opened
