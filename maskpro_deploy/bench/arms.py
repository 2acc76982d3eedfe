"""The timing loop: arms checked, warmed up, and then timed in interleaved blocks.

A *task* is one unit of work of one arm (a prefill, some decode steps, a whole batch). `measure` takes tasks that do the same
amount of work and

1. runs each twice and compares: the same tokens both times, the same shapes in all arms, and where the arms are said to be the
   same model, the same tokens in all of them. Nothing is timed if this fails;
2. warms up until the times are stable, within bounds;
3. times blocks in the order A B B A, the next one B A A B, so that drift falls on all arms alike, with the garbage collector
   frozen; every sample is kept with its block and its place in it.

An arm that raises ends the measurement: what was timed until then is kept, and the result says why it is invalid.
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
from maskpro_deploy.errors import ConfigError
from maskpro_deploy.progress import SILENT, Progress

log = logging.getLogger(__name__)

Clock = Callable[[], float]
SAMPLES_PER_BLOCK = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What a task did.

    Attributes:
        tokens: the tokens it chose, any shape; they prove that the work was done, and the same each time.
        first_token_s: seconds from the start to the first token, where the task knows it.
    """

    tokens: npt.NDArray[np.int64]
    first_token_s: float | None = None


class Task(Protocol):
    """One unit of work; the same each time it is called."""

    def __call__(self) -> Work: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasureConfig:
    """How long to measure.

    Attributes:
        blocks: ABBA blocks; each gives two samples of each arm.
        budget_s: stop early, after `stats.MIN_BLOCKS` blocks, once this much time is spent on a measurement; None: never.
        warmup_rounds: most rounds of warm-up.
        stable_within: the warm-up is over once the medians of two windows of three rounds differ by less than this part.
        same_model: the arms have to agree on every token.
    """

    blocks: int = 30
    budget_s: float | None = None
    warmup_rounds: int = 30
    stable_within: float = 0.05
    same_model: bool = False

    def __post_init__(self) -> None:
        if self.blocks < 1:
            raise ConfigError(f"--samples {self.blocks * SAMPLES_PER_BLOCK} is out of range: at least {SAMPLES_PER_BLOCK}.")
        if self.budget_s is not None and self.budget_s <= 0:
            raise ConfigError(f"--budget {self.budget_s:g} is out of range: above 0.")
        if self.warmup_rounds < 1:
            raise ConfigError(f"warmup_rounds {self.warmup_rounds} is out of range: at least 1.")
        if not 0.0 < self.stable_within < 1.0:
            raise ConfigError(f"stable_within {self.stable_within:g} is out of range: between 0 and 1.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One timing: which block, which place in it, seconds, and seconds to the first token where known."""

    block: int
    position: int
    seconds: float
    first_token_s: float | None = None


@dataclass(slots=True, kw_only=True)
class Measurement:
    """The samples of all arms, and whether they may be believed.

    Attributes:
        samples: arm name -> its samples, in time order.
        work: arm name -> what one call did.
        warmup_rounds: rounds run before the first sample; `warm` says whether the times had become stable.
        failed: calls that raised.
        invalid: why the samples prove nothing, or None.
    """

    samples: dict[str, list[Sample]] = field(default_factory=dict)
    work: dict[str, Work] = field(default_factory=dict)
    warmup_rounds: int = 0
    warm: bool = False
    failed: int = 0
    invalid: str | None = None

    def blocks(self, name: str) -> npt.NDArray[np.float64]:
        """Seconds of one arm by whole block.  # (K, SAMPLES_PER_BLOCK)"""
        seconds = [s.seconds for s in self.samples[name]]
        whole = len(seconds) // SAMPLES_PER_BLOCK * SAMPLES_PER_BLOCK
        return np.asarray(seconds[:whole]).reshape(-1, SAMPLES_PER_BLOCK)

    def compare(self, candidate: str, baseline: str) -> stats.Ratio | None:
        """The ratio of two arms; None where the measurement is invalid or too short."""
        if self.invalid is not None:
            return None
        return stats.compare(self.blocks(candidate), self.blocks(baseline))


def block_order(names: Sequence[str], block: int) -> list[str]:
    """A B B A in even blocks, B A A B in odd ones; A B C C B A for three arms."""
    forward = list(names) if block % 2 == 0 else list(names)[::-1]
    return forward + forward[::-1]


def measure(
    tasks: Mapping[str, Task], config: MeasureConfig, *, clock: Clock = time.perf_counter, progress: Progress = SILENT
) -> Measurement:
    """Check, warm up and time tasks that do the same amount of work.

    Args:
        tasks: arm name -> its task; the order is that of the first block.
        config: how long.
        clock: seconds, monotonic.
        progress: told after each block.

    Raises:
        ConfigError: there is no task.
    """
    if not tasks:
        raise ConfigError("nothing to measure: no arm was given.")
    result = Measurement(samples={name: [] for name in tasks})
    started = clock()
    result.invalid = _check_work(tasks, result, config.same_model)
    with frozen_gc():
        if result.invalid is None:
            result.invalid = _warm_up(tasks, result, config, clock)
        for block in range(config.blocks):
            if result.invalid is not None:
                break
            if block % 2 == 0 and block >= stats.MIN_BLOCKS and clock() - started > (config.budget_s or float("inf")):
                break  # only after a pair of blocks: both orders the same number of times
            result.invalid = _run_block(tasks, result, block, clock)
            progress.update(block + 1, config.blocks)
    if result.invalid is not None:
        log.info("the measurement is invalid: %s", result.invalid)
    return result


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
    """Run each task twice; why they may not be compared, or None."""
    for name, task in tasks.items():
        try:
            first, again = task(), task()
        except Exception as e:  # whatever a backend raises, this arm did not do its work
            result.failed += 1
            return f"{name} failed: {_first_line(e)}"
        if not np.array_equal(first.tokens, again.tokens):
            return f"{name} is not deterministic: two runs over the same input chose different tokens."
        result.work[name] = first
    reference_name, *others = tasks
    reference = result.work[reference_name].tokens
    for name in others:
        tokens = result.work[name].tokens
        if tokens.shape != reference.shape:
            return f"{reference_name} and {name} do different amounts of work: {reference.shape} and {tokens.shape} tokens."
        if same_model and not np.array_equal(tokens, reference):
            return f"{reference_name} and {name} are said to be the same model, but chose different tokens."
    return None


def _timed(name: str, task: Task, result: Measurement, clock: Clock) -> tuple[float, Work | None, str | None]:
    """Seconds and work of one call, and why it does not count, if so."""
    start = clock()
    try:
        work = task()
    except Exception as e:  # as above
        result.failed += 1
        return 0.0, None, f"{name} failed: {_first_line(e)}"
    seconds = clock() - start
    if seconds <= 0.0:
        return seconds, work, f"the clock did not advance while {name} ran: its time cannot be measured."
    if not np.array_equal(work.tokens, result.work[name].tokens):
        return seconds, work, f"{name} is not deterministic: it chose other tokens than in its first run."
    return seconds, work, None


def _warm_up(tasks: Mapping[str, Task], result: Measurement, config: MeasureConfig, clock: Clock) -> str | None:
    """Rounds over all tasks until each one's times are stable, or a bound is reached."""
    times: dict[str, list[float]] = {name: [] for name in tasks}
    limit_s = config.budget_s / 4 if config.budget_s is not None else float("inf")
    started = clock()
    for round_number in range(1, config.warmup_rounds + 1):
        for name, task in tasks.items():
            seconds, _, reason = _timed(name, task, result, clock)
            if reason is not None:
                return reason
            times[name].append(seconds)
        result.warmup_rounds = round_number
        result.warm = all(_stable(t, config.stable_within) for t in times.values())
        if result.warm or clock() - started > limit_s:
            break
    return None


def _stable(times: Sequence[float], within: float) -> bool:
    """Whether the last three times have about the median of the three before them."""
    if len(times) < 6:
        return False
    before, last = statistics.median(times[-6:-3]), statistics.median(times[-3:])
    return abs(last - before) <= within * before


def _run_block(tasks: Mapping[str, Task], result: Measurement, block: int, clock: Clock) -> str | None:
    for position, name in enumerate(block_order(list(tasks), block)):
        seconds, work, reason = _timed(name, tasks[name], result, clock)
        if reason is not None or work is None:
            return reason
        sample = Sample(block=block, position=position, seconds=seconds, first_token_s=work.first_token_s)
        result.samples[name].append(sample)
    return None


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


@dataclass(frozen=True, slots=True, kw_only=True)
class SelfTest:
    """One arm measured against itself; a sound harness sees no difference, apart from one run in twenty.

    Attributes:
        attempts: the ratio of each attempt; a second one is made only if the first saw a difference.
        passed: whether one attempt saw none; None if there were too few blocks to tell.
        invalid: why it could not be made, or None.
    """

    attempts: tuple[stats.Ratio, ...]
    passed: bool | None
    invalid: str | None = None


def self_test(task: Task, config: MeasureConfig, *, clock: Clock = time.perf_counter, progress: Progress = SILENT) -> SelfTest:
    """Measure a task against itself through the same loop as everything else; twice at most."""
    attempts: list[stats.Ratio] = []
    for _ in range(2):
        result = measure({"A": task, "A again": task}, config, clock=clock, progress=progress)
        if result.invalid is not None:
            return SelfTest(attempts=tuple(attempts), passed=False, invalid=result.invalid)
        ratio = result.compare("A", "A again")
        if ratio is None:
            return SelfTest(attempts=(), passed=None)
        attempts.append(ratio)
        if ratio.verdict == stats.NO_DIFFERENCE:
            return SelfTest(attempts=tuple(attempts), passed=True)
    return SelfTest(attempts=tuple(attempts), passed=False)
