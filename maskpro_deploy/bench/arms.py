"""The timing of one portion: arms that are loaded, checked, warmed up, and timed in interleaved blocks.

A *task* is one unit of work of one arm (a prefill, some decode steps, a whole batch). `time_portion` takes tasks that do the same
amount of work and

1. compares what they do: the same tokens each time and in each session of an arm, the same shapes in all arms, and where the arms
   are said to be the same model, the same tokens in all of them. Nothing is timed if this fails;
2. warms up: in the first session until the times are stable, within bounds; in later ones for a set number of rounds;
3. times blocks in the order A B B A, the next one B A A B, so that drift falls on all arms alike; every sample is kept with its
   session, its block and its place in it. The caller sees to it that the garbage collector rests (`frozen_gc`).

An arm that raises ends the measurement: what was timed until then is kept, and the result says why it is invalid. A whole
measurement is several portions, each in a new session (see `sessions`).
"""

from __future__ import annotations

import gc
import logging
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from maskpro_deploy.bench import stats
from maskpro_deploy.errors import ConfigError, check_range, first_line

log = logging.getLogger(__name__)

Clock = Callable[[], float]
SAMPLES_PER_BLOCK = 2
ALLOWED_S = 0.5  # what slewing by a time server and the reading of two clocks may come to
ALLOWED_PART = 0.01


class ClockWatch:
    """Compares a monotonic clock with the wall clock since it was made, or since the last time it was asked.

    Where the two part, the machine slept, was moved to another host or had its time set, and a timing across that moment says
    nothing about the work.
    """

    def __init__(self, clock: Clock, wall: Clock) -> None:
        self._clock, self._wall = clock, wall
        self._last = clock(), wall()

    def find_jump(self) -> str | None:
        """Why a timing since the last call says nothing, or None."""
        now = self._clock(), self._wall()
        passed_s, wall_s = (new - old for new, old in zip(now, self._last, strict=True))
        self._last = now
        if passed_s < 0:
            return f"the clock went back by {-passed_s:.3g} s."
        if abs(wall_s - passed_s) > ALLOWED_S + ALLOWED_PART * passed_s:
            return (
                f"the clock jumped: {passed_s:.1f} s passed by the monotonic clock and {wall_s:.1f} s by the wall clock. "
                "Was the machine asleep, moved, or its time set?"
            )
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What a task did."""

    tokens: npt.NDArray[np.int64]  # the tokens it chose, any shape; they prove that the work was done, and the same each time
    first_token_s: float | None = None  # seconds from the start to the first token, where the task knows it


class Task(Protocol):
    """One unit of work; the same each time it is called."""

    def __call__(self) -> Work: ...


@dataclass(frozen=True, slots=True)
class PreparedTask:
    """A task with something to do before each timed call, such as emptying the caches."""

    prepare: Callable[[], object]
    run: Task

    def __call__(self) -> Work:
        return self.run()


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasureConfig:
    """How long to measure."""

    blocks: int = 3  # ABBA blocks in each session; each gives two samples of each arm. With a budget: at most.
    sessions: int = 10  # times that every arm is opened, those of a run that goes on included. With a budget: at most.
    # stop early, once another two sessions would not fit into this time and `stats.MIN_SESSIONS` are done
    budget_s: float | None = None
    warmup_rounds: int = 30  # most rounds of warm-up in the first session
    rewarm_rounds: int = 1  # rounds of warm-up in each later one
    # the warm-up is over once the medians of two windows of three rounds differ by less than this part
    stable_within: float = 0.05
    same_model: bool = False  # the arms have to agree on every token

    def __post_init__(self) -> None:
        check_range("blocks", self.blocks, least=1)
        check_range("--sessions", self.sessions, least=1, note=f"{stats.MIN_SESSIONS} for a comparison")
        check_range("--budget", self.budget_s, above=0)
        check_range("warmup_rounds", self.warmup_rounds, least=1)
        check_range("rewarm_rounds", self.rewarm_rounds, least=0)
        check_range("stable_within", self.stable_within, above=0, below=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One timing."""

    session: int
    block: int  # counted over the whole measurement
    position: int  # in the block
    seconds: float
    first_token_s: float | None = None  # where it is known


@dataclass(slots=True, kw_only=True)
class Measurement:
    """The samples of all arms, and whether they may be believed."""

    samples: dict[str, list[Sample]] = field(default_factory=dict)  # arm name -> its samples, in time order
    work: dict[str, Work] = field(default_factory=dict)  # arm name -> what one call did
    warmup_rounds: int = 0  # rounds run before the first sample; `warm` says whether the times had become stable
    warm: bool = False
    failed: int = 0  # calls that raised
    invalid: str | None = None  # why the samples prove nothing, or None

    def portions(self, name: str) -> list[npt.NDArray[np.float64]]:
        """Seconds of one arm, session by session, in whole blocks.  # P of (K, SAMPLES_PER_BLOCK)"""
        by_session: dict[int, list[float]] = {}
        for sample in self.samples[name]:
            by_session.setdefault(sample.session, []).append(sample.seconds)
        whole = [v[: len(v) // SAMPLES_PER_BLOCK * SAMPLES_PER_BLOCK] for v in by_session.values()]
        return [np.asarray(v).reshape(-1, SAMPLES_PER_BLOCK) for v in whole if v]

    @property
    def sessions(self) -> int:
        """Sessions of each arm that were timed."""
        return min((len(self.portions(name)) for name in self.samples), default=0)

    def compare(self, candidate: str, baseline: str) -> stats.Ratio | None:
        """The ratio of two arms; None where the measurement is invalid or has too few sessions."""
        if self.invalid is not None:
            return None
        return stats.compare_sessions(self.portions(candidate), self.portions(baseline))

    def fail(self, reason: str) -> None:
        self.invalid = self.invalid or reason
        log.info("the measurement is invalid: %s", reason)


def block_order(names: Sequence[str], block: int) -> list[str]:
    """A B B A in even blocks, B A A B in odd ones; A B C C B A for three arms."""
    forward = list(names) if block % 2 == 0 else list(names)[::-1]
    return forward + forward[::-1]


def time_portion(
    tasks: Mapping[str, Task],
    result: Measurement,
    config: MeasureConfig,
    *,
    session: int,
    blocks: int,
    cold: bool,
    clock: Clock = time.perf_counter,
) -> None:
    """Check, warm up and time tasks that do the same amount of work, in one session of each arm; adds to `result`.

    `tasks` (by arm) are checked and warmed up in their order, which is that of the first block too. A caller turns it round from
    session to session, so that no arm is always the one that ran last before the first timed call. With `cold`, the warm-up lasts
    until the times are stable; else for `config.rewarm_rounds`.
    """
    if not tasks:
        raise ConfigError("nothing to measure: no arm was given.")
    before = 1 + max((s.block for samples in result.samples.values() for s in samples), default=-1)
    reason = _check_work(tasks, result, config.same_model)
    if reason is None:
        reason = _warm_up(tasks, result, config, cold, clock)
    for block in range(blocks):
        if reason is not None:
            break
        order = block_order(list(tasks), block)
        reason = _run_block(tasks, order, result, (session, before + block), clock)
    if reason is not None:
        result.fail(reason)


@contextmanager
def frozen_gc() -> Iterator[None]:
    """No garbage collection inside: what lives is set aside, and the collector rests."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.unfreeze()
        if was_enabled:
            gc.enable()


def _check_work(tasks: Mapping[str, Task], result: Measurement, same_model: bool) -> str | None:
    """Run each task (twice in its first session); why they may not be compared, or None."""
    for name, task in tasks.items():
        runs = []
        try:
            runs = [task() for _ in range(1 if name in result.work else 2)]
        except Exception as e:  # whatever a backend raises, this arm did not do its work
            result.failed += 1
            return describe_failure(name, e)
        expected = result.work.setdefault(name, runs[0])
        if any(not np.array_equal(expected.tokens, run.tokens) for run in runs):
            return f"{name} is not deterministic: two runs over the same input chose different tokens."
    reference_name, *others = tasks
    reference = result.work[reference_name].tokens
    for name in others:
        tokens = result.work[name].tokens
        if tokens.shape != reference.shape:
            return f"{reference_name} and {name} do different amounts of work: {reference.shape} and {tokens.shape} tokens."
        if same_model and not np.array_equal(tokens, reference):
            return (
                f"{reference_name} and {name} are said to be the same model, but chose different tokens. "
                "(--logit-tolerance allows for rounding.)"
            )
    return None


def _time_call(name: str, task: Task, result: Measurement, clock: Clock) -> tuple[float, Work | None, str | None]:
    """Seconds and work of one call, and why it does not count, if so."""
    if isinstance(task, PreparedTask):
        task.prepare()
    start = clock()
    try:
        work = task()
    except Exception as e:  # as above
        result.failed += 1
        return 0.0, None, describe_failure(name, e)
    seconds = clock() - start
    if seconds <= 0.0:
        return seconds, work, f"the clock did not advance while {name} ran: its time cannot be measured."
    if not np.array_equal(work.tokens, result.work[name].tokens):
        return seconds, work, f"{name} is not deterministic: it chose other tokens than in its first run."
    return seconds, work, None


def _warm_up(tasks: Mapping[str, Task], result: Measurement, config: MeasureConfig, cold: bool, clock: Clock) -> str | None:
    """Rounds over all tasks until each one's times are stable, or a bound is reached; a set number in later sessions."""
    times: dict[str, list[float]] = {name: [] for name in tasks}
    limit_s = config.budget_s / 10 if config.budget_s is not None else float("inf")
    started = clock()
    for round_number in range(1, 1 + (config.warmup_rounds if cold else config.rewarm_rounds)):
        for name, task in tasks.items():
            seconds, _, reason = _time_call(name, task, result, clock)
            if reason is not None:
                return reason
            times[name].append(seconds)
        if cold:
            result.warmup_rounds = round_number
            result.warm = all(_is_stable(t, config.stable_within) for t in times.values())
            if result.warm or clock() - started > limit_s:
                break
    return None


def _is_stable(times: Sequence[float], within: float) -> bool:
    """Whether the last three times have about the median of the three before them."""
    if len(times) < 6:
        return False
    before, last = statistics.median(times[-6:-3]), statistics.median(times[-3:])
    return abs(last - before) <= within * before


def _run_block(
    tasks: Mapping[str, Task], order: Sequence[str], result: Measurement, place: tuple[int, int], clock: Clock
) -> str | None:
    session, block = place
    for position, name in enumerate(order):
        seconds, work, reason = _time_call(name, tasks[name], result, clock)
        if reason is not None or work is None:
            return reason
        sample = Sample(session=session, block=block, position=position, seconds=seconds, first_token_s=work.first_token_s)
        result.samples[name].append(sample)
    return None


def describe_failure(name: str, error: Exception) -> str:
    """What to say of an arm that raised: its name and the first line of the error."""
    return f"{name} failed: {first_line(error)}"
