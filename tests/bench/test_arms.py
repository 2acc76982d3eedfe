"""Laws of the timing of one portion, on a clock that only moves when told."""

from __future__ import annotations

import gc

import numpy as np
import pytest
from simulated import ManualClock, TimedTask

from maskpro_deploy.bench.arms import MeasureConfig, Measurement, Task, Work, block_order, frozen_gc, time_portion
from maskpro_deploy.errors import ConfigError

QUICK = MeasureConfig(warmup_rounds=6)


def measure(
    tasks: dict[str, Task], config: MeasureConfig = QUICK, *, clock: ManualClock, blocks: int = 10, sessions: int = 1
) -> Measurement:
    result = Measurement(samples={name: [] for name in tasks})
    for session in range(sessions):
        time_portion(tasks, result, config, session=session, blocks=blocks, cold=session == 0, clock=clock)
    return result


def test_blocks_run_there_and_back_and_alternate() -> None:
    assert block_order(["A", "B"], 0) == ["A", "B", "B", "A"]
    assert block_order(["A", "B"], 1) == ["B", "A", "A", "B"]
    assert block_order(["A", "B", "C"], 2) == ["A", "B", "C", "C", "B", "A"]


def test_arms_are_checked_then_warmed_up_then_interleaved() -> None:
    clock, log = ManualClock(), list[str]()
    tasks: dict[str, Task] = {name: TimedTask(clock, 1.0, log=log, name=name) for name in "AB"}
    measure(tasks, QUICK, clock=clock, blocks=2)
    assert "".join(log) == "AABB" + "AB" * 6 + "ABBA" + "BAAB"


def test_later_sessions_are_checked_and_warmed_up_briefly() -> None:
    clock, log = ManualClock(), list[str]()
    tasks: dict[str, Task] = {name: TimedTask(clock, 1.0, log=log, name=name) for name in "AB"}
    result = measure(tasks, MeasureConfig(warmup_rounds=6, rewarm_rounds=2), clock=clock, blocks=1, sessions=2)
    assert "".join(log) == "AABB" + "AB" * 6 + "ABBA" + "AB" + "AB" * 2 + "ABBA"
    assert [(s.session, s.block, s.position) for s in result.samples["A"]] == [(0, 0, 0), (0, 0, 3), (1, 1, 0), (1, 1, 3)]
    assert [p.shape for p in result.portions("B")] == [(1, 2), (1, 2)]
    assert result.sessions == 2


def test_every_sample_is_kept_with_its_block_and_place() -> None:
    clock = ManualClock()
    result = measure({"A": TimedTask(clock, 1.0), "B": TimedTask(clock, 3.0)}, clock=clock)
    assert result.invalid is None
    assert [(s.block, s.position) for s in result.samples["A"][:4]] == [(0, 0), (0, 3), (1, 1), (1, 2)]
    assert [(s.block, s.position) for s in result.samples["B"][:4]] == [(0, 1), (0, 2), (1, 0), (1, 3)]
    assert [p.tolist() for p in result.portions("B")] == [[[3.0, 3.0]] * 10]
    assert result.compare("A", "B") is None  # one pair of sessions does not make a comparison


def test_a_comparison_needs_eight_sessions() -> None:
    clock = ManualClock()
    tasks: dict[str, Task] = {"A": TimedTask(clock, 1.0), "B": TimedTask(clock, 3.0)}
    assert measure(tasks, clock=clock, blocks=1, sessions=7).compare("A", "B") is None
    ratio = measure(tasks, clock=clock, blocks=1, sessions=8).compare("A", "B")
    assert ratio is not None
    assert ratio.speedup == pytest.approx(3.0)
    assert ratio.sessions == 8


def test_a_session_that_chooses_other_tokens_than_the_first_makes_the_run_invalid() -> None:
    clock, result = ManualClock(), Measurement(samples={"A": []})
    for session, token in enumerate((1, 1, 2)):
        task = TimedTask(clock, 1.0, tokens=np.array([[token]], np.int64))
        time_portion({"A": task}, result, QUICK, session=session, blocks=1, cold=session == 0, clock=clock)
    assert result.invalid == "A is not deterministic: two runs over the same input chose different tokens."
    assert result.sessions == 2


def test_an_arm_that_is_not_deterministic_is_not_timed() -> None:
    clock = ManualClock()
    tokens = iter(range(100))
    result = measure({"A": lambda: Work(tokens=np.array([next(tokens)]))}, clock=clock)
    assert result.invalid == "A is not deterministic: two runs over the same input chose different tokens."
    assert result.samples == {"A": []}


def test_an_arm_that_changes_its_mind_later_makes_the_run_invalid() -> None:
    clock, calls = ManualClock(), iter(range(1000))

    def task() -> Work:
        clock.advance(1.0)
        return Work(tokens=np.array([next(calls) > 20]).astype(np.int64))

    result = measure({"A": task}, clock=clock)
    assert result.invalid is not None
    assert "chose other tokens than in its first run" in result.invalid


def test_arms_that_do_different_amounts_of_work_are_not_timed() -> None:
    clock = ManualClock()
    tasks: dict[str, Task] = {"A": TimedTask(clock, 1.0), "B": TimedTask(clock, 1.0, tokens=np.zeros((1, 5), np.int64))}
    result = measure(tasks, clock=clock)
    assert result.invalid == "A and B do different amounts of work: (1, 2) and (1, 5) tokens."
    assert result.compare("A", "B") is None


@pytest.mark.parametrize("same_model", [False, True])
def test_only_arms_that_are_the_same_model_have_to_agree_on_tokens(same_model: bool) -> None:
    clock = ManualClock()
    tasks: dict[str, Task] = {"A": TimedTask(clock, 1.0), "B": TimedTask(clock, 1.0, tokens=np.array([[1, 3]], np.int64))}
    result = measure(tasks, MeasureConfig(same_model=same_model), clock=clock)
    if same_model:
        assert result.invalid is not None
        assert "A and B are said to be the same model, but chose different tokens." in result.invalid
        assert result.samples == {"A": [], "B": []}
    else:
        assert result.invalid is None


def test_an_arm_that_fails_is_counted_and_named_and_its_samples_are_kept() -> None:
    clock, calls = ManualClock(), iter(range(1000))

    def task() -> Work:
        if next(calls) == 12:
            raise RuntimeError("out of memory\nand a long story")
        clock.advance(1.0)
        return Work(tokens=np.zeros((1, 2), np.int64))

    result = measure({"A": TimedTask(clock, 1.0), "B": task}, clock=clock)
    assert result.invalid == "B failed: out of memory"
    assert result.failed == 1
    assert len(result.samples["A"]) > 0
    assert result.compare("A", "B") is None


def test_a_clock_that_stands_still_makes_the_run_invalid() -> None:
    result = measure({"A": TimedTask(ManualClock(), 0.0)}, clock=ManualClock())
    assert result.invalid is not None
    assert "clock did not advance" in result.invalid


def test_the_warm_up_lasts_until_times_are_stable() -> None:
    clock = ManualClock()
    cooling = [2.0 ** (10 - i) for i in range(12)] + [0.5]
    result = measure({"A": TimedTask(clock, *cooling)}, MeasureConfig(), clock=clock, blocks=4)
    assert result.warm
    assert 12 <= result.warmup_rounds <= 18
    assert {s.seconds for s in result.samples["A"]} == {0.5}


def test_the_warm_up_is_bounded_and_says_that_it_was_not_enough() -> None:
    clock = ManualClock()
    growing = [1.3**i for i in range(60)]
    result = measure({"A": TimedTask(clock, *growing)}, MeasureConfig(warmup_rounds=9), clock=clock, blocks=4)
    assert not result.warm
    assert result.warmup_rounds == 9
    assert result.invalid is None


def test_the_garbage_collector_comes_back_after_an_interrupt() -> None:
    with pytest.raises(KeyboardInterrupt), frozen_gc():
        raise KeyboardInterrupt
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0


def test_an_interrupt_is_not_taken_for_a_failing_arm() -> None:
    def task() -> Work:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure({"A": task}, clock=ManualClock())


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"blocks": 0}, "blocks"),
        ({"sessions": 0}, "--sessions"),
        ({"budget_s": 0.0}, "--budget"),
        ({"warmup_rounds": 0}, "warmup_rounds"),
        ({"stable_within": 1.0}, "stable_within"),
    ],
)
def test_settings_out_of_range_are_named(settings: dict[str, float], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        MeasureConfig(**settings)  # type: ignore[arg-type]


def test_measuring_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="no arm"):
        measure({}, clock=ManualClock())
