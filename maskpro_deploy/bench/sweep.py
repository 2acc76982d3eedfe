"""A sweep: every case measured on all arms in one run, beside the self-test, the memory bandwidth and the environment."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from maskpro_deploy.bench import environment
from maskpro_deploy.bench.arms import Clock, MeasureConfig, Measurement, SelfTest, measure, self_test
from maskpro_deploy.bench.model import Case, ModelArm, check_arms, make_task
from maskpro_deploy.bench.result import BenchResult, CaseResult
from maskpro_deploy.bench.roofline import Bandwidth, measure_bandwidth
from maskpro_deploy.errors import ConfigError
from maskpro_deploy.progress import SILENT, Progress


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepConfig:
    """What all sweeps have in common.

    Attributes:
        samples: timings of each arm in each case, at most; they come in blocks of two.
        budget_s: time for the whole run, shared among its cases; each case takes its fewest blocks even beyond it.
        same_model: the arms are the same model and have to agree on every token.
        threads: cores at work in the bandwidth measurement; None: all.
        seed: of the tokens that are drawn.
    """

    samples: int = 60
    budget_s: float | None = None
    same_model: bool = False
    threads: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.samples < 2:
            raise ConfigError(f"--samples {self.samples} is out of range: 2 or more (20 or more for a comparison).")
        if self.budget_s is not None and self.budget_s <= 0:
            raise ConfigError(f"--budget {self.budget_s:g} is out of range: above 0.")


def check_sizes(flag: str, sizes: Sequence[int]) -> None:
    """Refuse a list of sizes that is empty or holds something below 1.

    Raises:
        ConfigError: naming the flag.
    """
    for size in sizes:
        if size < 1:
            raise ConfigError(f"{flag} {size} is out of range: 1 or more.")


class _Part:
    """Progress of one measurement as a part of the whole run."""

    def __init__(self, whole: Progress, index: int, count: int, label: str) -> None:
        self._whole, self._index, self._count, self._label = whole, index, count, label

    def update(self, done: float, total: float, note: str = "") -> None:
        self._whole.update(self._index + done / total, self._count, self._label)

    def close(self) -> None:
        pass


def run_sweep(
    kind: str,
    arms: Sequence[ModelArm[Any]],
    cases: Sequence[Case],
    config: SweepConfig,
    *,
    settings: Mapping[str, Any],
    notes: Sequence[str] = (),
    bandwidth: Bandwidth | None = None,
    clock: Clock = time.perf_counter,
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
        clock: seconds, monotonic.
        progress: told after each block.

    Raises:
        InputError: the arms cannot be compared.
        ConfigError: a case does not fit in an arm.
    """
    check_arms(arms, cases)
    started = clock()
    before = environment.capture()
    parts = len(cases) + 1

    def share(index: int, label: str) -> tuple[MeasureConfig, Progress]:
        left_s = None if config.budget_s is None else max(1e-3, started + config.budget_s - clock()) / (parts - index)
        blocks = max(1, config.samples // 4 * 2)  # both orders the same number of times
        settings = MeasureConfig(blocks=blocks, budget_s=left_s, same_model=config.same_model)
        return settings, _Part(progress, index, parts, label)

    bandwidth = bandwidth or measure_bandwidth(config.threads)
    test = _self_test(arms[0], cases[0], config.seed, clock, *share(0, "self-test"))
    results = []
    for index, case in enumerate(cases, start=1):
        measurement = _measure(arms, case, config.seed, clock, *share(index, case.label))
        results.append(CaseResult(case=case, measurement=measurement))
    return BenchResult(
        kind=kind,
        environment={**before, "load_average_1min_after": environment.load_average()},
        config={**settings, **dataclasses.asdict(config)},
        arms=tuple(arms),
        cases=tuple(results),
        self_test=test,
        bandwidth=bandwidth,
        duration_s=clock() - started,
        notes=tuple(notes),
    )


def _self_test(arm: ModelArm[Any], case: Case, seed: int, clock: Clock, config: MeasureConfig, progress: Progress) -> SelfTest:
    try:
        task = make_task(arm, case, seed, clock)
    except Exception as e:  # whatever a backend raises, the arm did not do its work
        return SelfTest(attempts=(), passed=False, invalid=f"{arm.name} failed: {e}")
    return self_test(task, config, clock=clock, progress=progress)


def _measure(
    arms: Sequence[ModelArm[Any]], case: Case, seed: int, clock: Clock, config: MeasureConfig, progress: Progress
) -> Measurement:
    tasks = {}
    for arm in arms:
        try:
            tasks[arm.name] = make_task(arm, case, seed, clock)
        except Exception as e:  # as above
            return Measurement(samples={a.name: [] for a in arms}, failed=1, invalid=f"{arm.name} failed: {e}")
    return measure(tasks, config, clock=clock, progress=progress)
