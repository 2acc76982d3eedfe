"""Laws of the timing loop, on a clock that only moves when told."""

from __future__ import annotations

import gc

import numpy as np
import pytest
from simulated import ManualClock, TimedTask

from maskpro_deploy.bench import stats
from maskpro_deploy.bench.arms import MeasureConfig, Work, block_order, frozen_gc, measure, self_test
from maskpro_deploy.errors import ConfigError

QUICK = MeasureConfig(blocks=10, warmup_rounds=6)


def test_blocks_run_there_and_back_and_alternate() -> None:
    assert block_order(["A", "B"], 0) == ["A", "B", "B", "A"]
    assert block_order(["A", "B"], 1) == ["B", "A", "A", "B"]
    assert block_order(["A", "B", "C"], 2) == ["A", "B", "C", "C", "B", "A"]


def test_arms_are_checked_then_warmed_up_then_interleaved() -> None:
    clock, log = ManualClock(), list[str]()
    tasks = {name: TimedTask(clock, 1.0, log=log, name=name) for name in "AB"}
    measure(tasks, MeasureConfig(blocks=2, warmup_rounds=6), clock=clock)
    assert "".join(log) == "AABB" + "AB" * 6 + "ABBA" + "BAAB"


def test_every_sample_is_kept_with_its_block_and_place() -> None:
    clock = ManualClock()
    result = measure({"A": TimedTask(clock, 1.0), "B": TimedTask(clock, 3.0)}, QUICK, clock=clock)
    assert result.invalid is None
    assert [(s.block, s.position) for s in result.samples["A"][:4]] == [(0, 0), (0, 3), (1, 1), (1, 2)]
    assert [(s.block, s.position) for s in result.samples["B"][:4]] == [(0, 1), (0, 2), (1, 0), (1, 3)]
    assert result.blocks("B").tolist() == [[3.0, 3.0]] * 10
    ratio = result.compare("A", "B")
    assert ratio is not None
    assert ratio.speedup == pytest.approx(3.0)


def test_an_arm_that_is_not_deterministic_is_not_timed() -> None:
    clock = ManualClock()
    tokens = iter(range(100))
    result = measure({"A": lambda: Work(tokens=np.array([next(tokens)]))}, QUICK, clock=clock)
    assert result.invalid == "A is not deterministic: two runs over the same input chose different tokens."
    assert result.samples == {"A": []}


def test_an_arm_that_changes_its_mind_later_makes_the_run_invalid() -> None:
    clock, calls = ManualClock(), iter(range(1000))

    def task() -> Work:
        clock.advance(1.0)
        return Work(tokens=np.array([next(calls) > 20]).astype(np.int64))

    result = measure({"A": task}, QUICK, clock=clock)
    assert result.invalid is not None
    assert "chose other tokens than in its first run" in result.invalid


def test_arms_that_do_different_amounts_of_work_are_not_timed() -> None:
    clock = ManualClock()
    tasks = {"A": TimedTask(clock, 1.0), "B": TimedTask(clock, 1.0, tokens=np.zeros((1, 5), np.int64))}
    result = measure(tasks, QUICK, clock=clock)
    assert result.invalid == "A and B do different amounts of work: (1, 2) and (1, 5) tokens."
    assert result.compare("A", "B") is None


@pytest.mark.parametrize("same_model", [False, True])
def test_only_arms_that_are_the_same_model_have_to_agree_on_tokens(same_model: bool) -> None:
    clock = ManualClock()
    tasks = {"A": TimedTask(clock, 1.0), "B": TimedTask(clock, 1.0, tokens=np.array([[1, 3]], np.int64))}
    result = measure(tasks, MeasureConfig(blocks=10, same_model=same_model), clock=clock)
    if same_model:
        assert result.invalid == "A and B are said to be the same model, but chose different tokens."
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

    result = measure({"A": TimedTask(clock, 1.0), "B": task}, QUICK, clock=clock)
    assert result.invalid == "B failed: out of memory"
    assert result.failed == 1
    assert len(result.samples["A"]) > 0
    assert result.compare("A", "B") is None


def test_a_clock_that_stands_still_makes_the_run_invalid() -> None:
    result = measure({"A": TimedTask(ManualClock(), 0.0)}, QUICK, clock=ManualClock())
    assert result.invalid is not None
    assert "clock did not advance" in result.invalid


def test_the_warm_up_lasts_until_times_are_stable() -> None:
    clock = ManualClock()
    cooling = [2.0 ** (10 - i) for i in range(12)] + [0.5]
    result = measure({"A": TimedTask(clock, *cooling)}, MeasureConfig(blocks=4), clock=clock)
    assert result.warm
    assert 12 <= result.warmup_rounds <= 18
    assert {s.seconds for s in result.samples["A"]} == {0.5}


def test_the_warm_up_is_bounded_and_says_that_it_was_not_enough() -> None:
    clock = ManualClock()
    growing = [1.3**i for i in range(60)]
    result = measure({"A": TimedTask(clock, *growing)}, MeasureConfig(blocks=4, warmup_rounds=9), clock=clock)
    assert not result.warm
    assert result.warmup_rounds == 9
    assert result.invalid is None


def test_a_budget_ends_the_run_after_whole_pairs_of_blocks() -> None:
    clock = ManualClock()
    tasks = {"A": TimedTask(clock, 1.0), "B": TimedTask(clock, 1.0)}
    spent = measure(tasks, MeasureConfig(blocks=500, budget_s=100.0), clock=clock)
    assert len(spent.blocks("A")) == 22  # 16 s of checks and warm-up, then 4 s a block
    short = measure(tasks, MeasureConfig(blocks=500, budget_s=1.0), clock=clock)
    assert len(short.blocks("A")) == stats.MIN_BLOCKS


def test_the_garbage_collector_rests_while_timing() -> None:
    clock, seen = ManualClock(), list[bool]()

    def task() -> Work:
        clock.advance(1.0)
        seen.append(gc.isenabled())
        return Work(tokens=np.zeros(1, np.int64))

    assert gc.isenabled()
    measure({"A": task}, QUICK, clock=clock)
    assert not any(seen[2:])  # the first two runs are the check
    assert gc.isenabled()


def test_the_garbage_collector_comes_back_after_an_interrupt() -> None:
    with pytest.raises(KeyboardInterrupt), frozen_gc():
        raise KeyboardInterrupt
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0


def test_an_interrupt_is_not_taken_for_a_failing_arm() -> None:
    def task() -> Work:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure({"A": task}, QUICK)


def test_the_self_test_sees_no_difference_in_an_even_arm() -> None:
    clock, rng = ManualClock(), np.random.default_rng(0)
    task = TimedTask(clock, *(1.0 + 0.02 * rng.standard_normal(500)))
    found = self_test(task, MeasureConfig(blocks=20), clock=clock)
    assert found.passed is True
    assert found.attempts[-1].low <= 1.0 <= found.attempts[-1].high


def test_the_self_test_catches_a_loop_that_favours_one_place() -> None:
    # slower in exactly the calls that belong to the second arm: checks and warm-up take 16 calls, blocks are ABBA BAAB
    slow = {1, 2, 4, 7}
    clock = ManualClock()
    pattern = [1.0] * 16 + [1.1 if i % 8 in slow else 1.0 for i in range(40)]
    found = self_test(TimedTask(clock, *pattern, *pattern), MeasureConfig(blocks=10, warmup_rounds=6), clock=clock)
    assert found.passed is False
    assert len(found.attempts) == 2
    assert found.attempts[0].speedup == pytest.approx(1.1)


def test_a_self_test_of_too_few_blocks_tells_nothing() -> None:
    clock = ManualClock()
    found = self_test(TimedTask(clock, 1.0), MeasureConfig(blocks=2), clock=clock)
    assert found.passed is None
    assert found.attempts == ()


def test_a_self_test_of_a_failing_arm_says_why() -> None:
    def task() -> Work:
        raise RuntimeError("broken")

    found = self_test(task, QUICK)
    assert found.passed is False
    assert found.invalid == "A failed: broken"


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"blocks": 0}, "--samples"),
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
        measure({}, QUICK)
