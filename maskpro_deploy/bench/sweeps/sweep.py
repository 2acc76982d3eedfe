"""A sweep: every case measured on all arms in one run, with the self-test, the machine's ceilings and the environment."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypedDict, Unpack, cast

from maskpro_deploy.bench import environment, stats
from maskpro_deploy.bench.arms import SAMPLES_PER_BLOCK, Clock, MeasureConfig, Task, describe_failure
from maskpro_deploy.bench.model import Agreement, Case, Floats, Forward, Ints, ModelArm, check_arms, compare_logits, make_task
from maskpro_deploy.bench.roofline import Arithmetic, Bandwidth, measure_arithmetic, measure_bandwidth
from maskpro_deploy.bench.sessions import MakeTask, Opener, Sessions, make_empty_run
from maskpro_deploy.bench.sweeps.columns import CaseResult
from maskpro_deploy.bench.sweeps.result import BenchResult, Saved, check_same
from maskpro_deploy.errors import check_range
from maskpro_deploy.system.progress import SILENT, Progress

_SESSIONS, _SESSIONS_WITHIN_BUDGET = 10, 40


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepConfig:
    """What all sweeps have in common."""

    samples: int = 60  # timings of each arm in each case; they come in blocks of two, shared among the sessions
    sessions: int | None = None  # times that every arm is opened; None: 10, or up to 40 with a budget
    budget_s: float | None = None  # time for the whole run: as many sessions as fit, and `stats.MIN_SESSIONS` even beyond it
    same_model: bool = False  # the arms are the same model and have to agree on every token
    # the arms are the same model up to rounding: no logit may differ by more, and tokens need not be the same
    logit_tolerance: float | None = None
    threads: int | None = None  # cores at work in the bandwidth measurement; None: all
    seed: int = 0  # of the tokens that are drawn
    # the smallest difference of interest, as a fraction; it concerns the verdicts only
    least_difference: float = stats.LEAST_DIFFERENCE

    def __post_init__(self) -> None:
        stats.check_least_difference(self.least_difference)
        check_range("--samples", self.samples, least=2, note="20 for a comparison")
        check_range("--sessions", self.sessions, least=1, note=f"{stats.MIN_SESSIONS} for a comparison")
        check_range("--budget", self.budget_s, above=0)
        check_range("--logit-tolerance", self.logit_tolerance, least=0, below=math.inf)

    @property
    def measure(self) -> MeasureConfig:
        pairs = self.samples // SAMPLES_PER_BLOCK
        usual = min(self.sessions or _SESSIONS, pairs)
        return MeasureConfig(
            sessions=usual if self.budget_s is None else self.sessions or _SESSIONS_WITHIN_BUDGET,
            blocks=pairs // usual,
            budget_s=self.budget_s,
            same_model=self.same_model and self.logit_tolerance is None,
        )


def check_sizes(flag: str, sizes: Sequence[int]) -> None:
    """Refuse sizes below 1 with a `ConfigError` that names the flag."""
    for size in sizes:
        check_range(flag, size, least=1)


class SweepOptions(TypedDict, total=False):
    """What is given to a sweep besides its settings."""

    notes: Sequence[str]  # remarks for the report
    bandwidth: Bandwidth  # ceilings of this machine, if they were measured a moment ago; by default they are measured
    arithmetic: Arithmetic
    self_test: bool  # whether to measure the first arm against a second session of itself as well
    earlier: Saved | None  # a result to go on with or to add to; `save` wrote it
    append: bool  # add cases and sessions to `earlier`, and do not just finish it
    save: Callable[[BenchResult], None]  # called after each session with the result so far
    clock: Clock  # seconds, monotonic
    wall: Clock  # the wall clock, which has to keep step with `clock`; by default the machine's, if `clock` is
    progress: Progress  # told after each case of each session


def run_sweep(
    kind: str,
    arms: Sequence[ModelArm[Any]],
    cases: Sequence[Case],
    config: SweepConfig,
    settings: Mapping[str, Any],
    **options: Unpack[SweepOptions],
) -> BenchResult:
    """Measure all cases on all arms, of which the first is compared with each of the others; the result repeats the settings.

    An `InputError` where the arms cannot be compared or `earlier` is not of this run, a `ConfigError` where a case does not fit.
    """
    check_arms(arms, cases)
    return _Sweep(kind, arms, cases, config, {**settings, **dataclasses.asdict(config)}, options).run()


class _Sweep:
    """One run, and its result at any time."""

    def __init__(
        self,
        kind: str,
        arms: Sequence[ModelArm[Any]],
        cases: Sequence[Case],
        config: SweepConfig,
        settings: Mapping[str, Any],
        options: SweepOptions,
    ) -> None:
        self._kind, self._arms, self._cases, self._config, self._settings = kind, arms, cases, config, settings
        self._options, self._clock = options, options.get("clock", time.perf_counter)
        self._environment = environment.capture()
        self._earlier = options.get("earlier")
        self._agreement: dict[Case, dict[str, Agreement]] = {}
        self._run = make_empty_run([arm.name for arm in arms], cases)
        self._others: list[CaseResult] = []
        if self._earlier is not None:
            self._take_over(self._earlier)
        self._started = self._clock()

    def _take_over(self, saved: Saved) -> None:
        check_same(saved, self._kind, self._arms, self._settings, self._environment, append=self._options.get("append", False))
        for case, result in saved.cases.items():
            if case in self._run.measurements:
                self._run.measurements[case] = result.measurement
            else:
                self._others.append(result)
            self._agreement[case] = dict(result.agreement)
        self._run.self_test = saved.self_test or self._run.self_test
        self._run.sessions = saved.sessions

    def run(self) -> BenchResult:
        options, config, save = self._options, self._config.measure, self._options.get("save")
        threads = self._config.threads
        self._bandwidth = options.get("bandwidth") or measure_bandwidth(threads)
        self._arithmetic = options.get("arithmetic") or measure_arithmetic(threads)
        if options.get("append", False):
            config = dataclasses.replace(config, sessions=config.sessions + self._run.sessions)
        elif self._earlier is not None:  # where that was an addition, there are more to do than these settings say
            config = dataclasses.replace(config, sessions=max(config.sessions, self._earlier.planned_sessions))
        self._planned_sessions = config.sessions
        Sessions(
            {arm.name: _make_opener(arm, self._config.seed, self._clock) for arm in self._arms},
            self._cases,
            config,
            run=self._run,
            self_test=options.get("self_test", True),
            before=self._compare_outputs,
            after=lambda run: save(self._result(finished=False)) if save is not None else None,
            clock=self._clock,
            wall=options.get("wall") or (time.time if self._clock is time.perf_counter else self._clock),
            progress=options.get("progress", SILENT),
        ).measure()
        return self._result(finished=True)

    def _compare_outputs(self, case: Case, opened: Mapping[str, MakeTask[Case]]) -> str | None:
        """How near the arms' logits are, and why they may not be compared, if so."""
        first, *others = self._arms
        agreement = self._agreement.setdefault(case, {})
        for other in others:
            a, b = (_name_errors(arm.name, cast(_Loaded, opened[arm.name]).forward) for arm in (first, other))
            try:
                agreement[other.name] = near = compare_logits(a, b, case, first.vocab_size, self._config.seed)
            except _ArmError as e:
                self._run.measurements[case].failed += 1
                return str(e)
            tolerance = self._config.logit_tolerance
            if tolerance is not None and not near.max_logit_difference <= tolerance:
                differ = f"logits differ by up to {near.max_logit_difference:.3g} over {near.positions} positions"
                return f"{first.name} and {other.name} disagree: {differ}, and --logit-tolerance allows {tolerance:g}."
        return None

    def _result(self, *, finished: bool) -> BenchResult:
        saved = self._earlier
        near, measured = self._agreement, self._run.measurements
        own = [CaseResult(case=c, measurement=measured[c], agreement=near.get(c, {})) for c in self._cases]
        return BenchResult(
            kind=self._kind,
            environment={**self._environment, "load_average_1min_after": environment.load_average()},
            config=self._settings,
            arms=tuple(self._arms),
            cases=(*self._others, *own),
            self_test=self._run.judge_self_test(),
            self_test_samples=tuple(self._run.self_test),
            bandwidth=self._bandwidth,
            arithmetic=self._arithmetic,
            duration_s=self._clock() - self._started + (saved.value["duration"] if saved is not None else 0.0),
            notes=tuple(self._options.get("notes", ())),
            earlier=() if saved is None else saved.history,
            planned_sessions=self._planned_sessions,
            finished=finished,
        )


class _ArmError(Exception):
    """An arm raised; the message says which."""


def _name_errors(name: str, forward: Forward[Any]) -> Forward[Any]:
    def call(tokens: Ints, cache: Any) -> tuple[Floats, Any]:
        try:
            return forward(tokens, cache)
        except Exception as e:  # whatever a backend raises
            raise _ArmError(describe_failure(name, e)) from e

    return call


class _Loaded:
    """An open model: makes the task of a case."""

    def __init__(self, arm: ModelArm[Any], forward: Forward[Any], seed: int, clock: Clock) -> None:
        self.forward = forward
        self._vocab_size, self._seed, self._clock = arm.vocab_size, seed, clock

    def __call__(self, case: Case) -> Task:
        return make_task(self.forward, case, self._vocab_size, self._seed, self._clock)


def _make_opener(arm: ModelArm[Any], seed: int, clock: Clock) -> Opener[Case]:
    @contextmanager
    def open_arm() -> Iterator[MakeTask[Case]]:
        with arm.open() as forward:
            yield _Loaded(arm, forward, seed, clock)

    return open_arm
