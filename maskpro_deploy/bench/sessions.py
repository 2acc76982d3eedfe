"""A measurement over several sessions: each arm is opened again for every portion of the samples.

Two sessions of one model differ by some per cent for as long as they live (their weights lie in other pages of memory; see
`stats`). So one pair of sessions, however long it is timed, measures its own luck. Here every session of the run

1. opens all arms, in an order that turns round from session to session;
2. times a portion of every case on them, in the same order (`arms.time_portion`);
3. closes all but the first arm and opens that one a second time: the *self-test* compares these two as it would two models.

At most as many models are in memory as there are arms, or two for the self-test. Pairs of sessions are the unit of a comparison.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from maskpro_deploy.bench import stats
from maskpro_deploy.bench.arms import (
    Clock,
    ClockWatch,
    MeasureConfig,
    Measurement,
    Task,
    describe_failure,
    frozen_gc,
    time_portion,
)
from maskpro_deploy.errors import ConfigError, MaskProError
from maskpro_deploy.system.progress import SILENT, Progress

K = TypeVar("K")
MakeTask = Callable[[K], Task]
Opener = Callable[[], AbstractContextManager[MakeTask[K]]]

SELF = ("A", "A again")
_TARGET_SESSIONS = 12  # what a budget is shared among if it can: the interval gains more from sessions than from blocks
_ALL = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class SelfTest:
    """One arm measured against a second session of itself; a sound harness sees a difference in 5 % of attempts at most."""

    attempts: tuple[stats.Ratio, ...]  # the ratio of each attempt; a second one is made only if the first saw a difference
    passed: bool | None  # whether one attempt saw none; None if there were too few sessions to tell
    invalid: str | None = None  # why it could not be made, or None


@dataclass(slots=True, kw_only=True)
class Run(Generic[K]):
    """What was measured so far."""

    measurements: dict[K, Measurement]  # case -> its samples
    # the first arm against a second session of itself, on the first case; one for each attempt
    self_test: list[Measurement] = field(default_factory=list)
    sessions: int = 0  # how many are done

    def judge_self_test(self) -> SelfTest:
        """The self-test as it stands."""
        invalid = next((m.invalid for m in self.self_test if m.invalid is not None), None)
        ratios = [r for m in self.self_test if (r := m.compare(*SELF)) is not None]
        if invalid is not None:
            return SelfTest(attempts=tuple(ratios), passed=False, invalid=invalid)
        if not ratios:
            return SelfTest(attempts=(), passed=None)
        return SelfTest(attempts=tuple(ratios), passed=any(not r.differs for r in ratios))


def make_empty_run(names: Sequence[str], cases: Sequence[K]) -> Run[K]:
    """A run before its first session."""
    if not names or not cases:
        raise ConfigError("nothing to measure: no arm or no case was given.")
    return Run(measurements={case: _make_blank(names) for case in cases}, self_test=[_make_blank(SELF)])


def _make_blank(names: Sequence[str]) -> Measurement:
    return Measurement(samples={name: [] for name in names})


class Sessions(Generic[K]):
    """Runs sessions until there are enough.

    `openers` open a new session of each arm: what one yields makes the task of a case, and its context ends the session. `before`
    is called in the first session with a case and the opened arms; what it returns makes the case invalid. `after` is called
    after each session, such as to save the run, and `after_case` after each case: a run that goes on from there does the rest of
    this session. `progress` is updated after each case.
    """

    def __init__(
        self,
        openers: Mapping[str, Opener[K]],
        cases: Sequence[K],
        config: MeasureConfig,
        *,
        run: Run[K] | None = None,
        self_test: bool = True,
        before: Callable[[K, Mapping[str, MakeTask[K]]], str | None] = lambda case, opened: None,
        after: Callable[[Run[K]], None] = lambda run: None,
        after_case: Callable[[Run[K]], None] = lambda run: None,
        clock: Clock = time.perf_counter,
        wall: Clock = time.time,
        progress: Progress = SILENT,
    ) -> None:
        self.run = run or make_empty_run(list(openers), cases)
        self._openers, self._cases, self._config = openers, list(cases), config
        self._self_test, self._before, self._after, self._after_case = self_test, before, after, after_case
        self._clock, self._watch, self._progress = clock, ClockWatch(clock, wall), progress
        self._blocks = config.blocks if config.budget_s is None else 1
        self._first, self._planned = self.run.sessions, config.sessions
        self._shown = 0.0

    def measure(self) -> Run[K]:
        """Run all sessions, and the self-test again where it saw a difference; a `MaskProError` if an arm cannot be opened."""
        started = self._clock()
        with frozen_gc():
            while not self._has_enough(started):
                self._run_session(self.run.sessions)
                self._check_clock()
                self.run.sessions += 1
                self._after(self.run)
                if self.run.sessions == self._first + 1:
                    self._plan(started)
            if self._self_test and self.run.judge_self_test().passed is False and self.run.judge_self_test().invalid is None:
                self._test_again()
                self._after(self.run)
        return self.run

    def _has_enough(self, started: float) -> bool:
        done, budget_s = self.run.sessions, self._config.budget_s
        if all(m.invalid is not None for m in self.run.measurements.values()) or any(m.invalid for m in self.run.self_test):
            return True
        if budget_s is None or done == self._first or done >= self._config.sessions:
            return done >= self._config.sessions
        enough = done >= stats.MIN_SESSIONS and (done - self._first) % 2 == 0
        spent_s = self._clock() - started
        return enough and spent_s + 2 * spent_s / (done - self._first) > budget_s  # the next two would not end in time

    def _plan(self, started: float) -> None:
        """Once the first session has shown what things take: how many sessions and blocks fit into the budget."""
        if self._config.budget_s is None:
            return
        spent_s = self._clock() - started
        left_s = max(0.0, self._config.budget_s - spent_s)
        block_s = self._block_s()
        free_s = left_s / (_TARGET_SESSIONS - 1) - spent_s  # for more blocks in each session
        self._blocks = int(min(self._config.blocks, max(1, 1 + free_s // block_s))) if block_s > 0 else self._config.blocks
        each_s = spent_s + (self._blocks - 1) * block_s
        fitting = self._first + 1 + (int(left_s / each_s) if each_s > 0 else 0)
        self._planned = min(self._config.sessions, max(stats.MIN_SESSIONS, fitting))

    def _block_s(self) -> float:
        """Seconds that one more block of everything takes."""
        measured = [*self.run.measurements.values(), *(self.run.self_test if self._self_test else [])]
        return sum(2 * float(portion.mean()) for m in measured for name in m.samples for portion in m.portions(name)[-1:])

    def _run_session(self, index: int) -> None:
        gc.collect()  # of the session before; quick, as what is older is frozen
        first = next(iter(self._openers))
        with ExitStack() as kept:
            with ExitStack() as others:
                opened: dict[str, MakeTask[K]] = {}
                order = list(self._openers)[:: -1 if index % 2 else 1]
                for name in order:
                    session = self._open(name, kept if name == first else others, index)
                    if session is None:
                        return
                    opened[name] = session
                for place, case in enumerate(self._cases):
                    samples = self.run.measurements[case].samples.values()
                    if all(sample.session != index for taken in samples for sample in taken):  # else before an interruption
                        self._time_case(case, {name: opened[name] for name in order}, index)
                        self._after_case(self.run)
                    self._report_progress(index, place + 1)
                alone = opened[first]
                del opened, session  # a closed session must not live on in a name
            if self._self_test:
                self._time_self_test(first, alone, kept, index)
                self._report_progress(index, len(self._cases) + 1)

    def _open(self, name: str, stack: ExitStack, index: int) -> MakeTask[K] | None:
        try:
            return stack.enter_context(self._openers[name]())
        except MaskProError:
            if index == self._first:  # the user's to mend, and nothing is lost
                raise
            reason = f"{name} could not be opened again"
        except Exception as e:  # whatever a backend raises
            reason = describe_failure(name, e)
        for measurement in self.run.measurements.values():
            measurement.failed += 1
            measurement.fail(reason)
        return None

    def _time_case(self, case: K, opened: Mapping[str, MakeTask[K]], index: int) -> None:
        measurement = self.run.measurements[case]
        if measurement.invalid is not None:
            return
        try:
            reason = self._before(case, opened) if index == self._first else None
        except Exception as e:  # as above
            measurement.failed += 1
            reason = describe_failure(" or ".join(opened), e)
        if reason is not None:
            measurement.fail(reason)
            return
        self._time_tasks(case, opened, measurement, index)

    def _time_self_test(self, first: str, alone: MakeTask[K], stack: ExitStack, index: int) -> None:
        """A portion of the first case on an open session and a new one, in this order; which of them is called A alternates."""
        measurement, case = self.run.self_test[-1], self._cases[0]
        if self.run.measurements[case].invalid is not None:
            return
        second = self._open(first, stack, index)
        if second is None:
            return
        names = SELF[:: -1 if index % 2 else 1]
        self._time_tasks(case, dict(zip(names, (alone, second), strict=True)), measurement, index)

    def _time_tasks(self, case: K, makers: Mapping[str, MakeTask[K]], measurement: Measurement, index: int) -> None:
        tasks, cold = {}, index == self._first
        for name, make in makers.items():
            try:
                tasks[name] = make(case)
            except Exception as e:  # as above
                measurement.failed += 1
                measurement.fail(describe_failure(name, e))
                return
        time_portion(tasks, measurement, self._config, session=index, blocks=self._blocks, cold=cold, clock=self._clock)

    def _test_again(self) -> None:
        first = next(iter(self._openers))
        self.run.self_test.append(_make_blank(SELF))
        for index in range(max(stats.MIN_SESSIONS, self.run.self_test[0].sessions)):
            with ExitStack() as stack:
                alone = self._open(first, stack, _ALL)
                if alone is not None:
                    self._time_self_test(first, alone, stack, index)
            self._check_clock()

    def _check_clock(self) -> None:
        if (reason := self._watch.find_jump()) is not None:
            for measurement in [*self.run.measurements.values(), *self.run.self_test]:
                measurement.fail(reason)

    def _report_progress(self, index: int, cases_done: int) -> None:
        """Progress never goes back, though with a budget the number of sessions is known only after the first."""
        parts = len(self._cases) + self._self_test
        unplanned = self._config.budget_s is not None and index == self._first
        done = 0.0 if unplanned else index + cases_done / parts
        self._shown = max(self._shown, min(1.0, done / self._planned))
        self._progress.update(self._shown * self._planned, self._planned, f"session {index + 1}")
