"""Laws of measurements over several sessions, on a clock that only moves when told."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise

import numpy as np
import pytest
from simulated import ManualClock

from maskpro_deploy.bench import stats
from maskpro_deploy.bench.arms import MeasureConfig, Work
from maskpro_deploy.bench.sessions import MakeTask, Opener, Run, Sessions
from maskpro_deploy.errors import ConfigError, InputError

QUICK = MeasureConfig(blocks=2, sessions=8, warmup_rounds=6)
TOKENS = np.array([[1, 2]], np.int64)


class Model:
    """Opens sessions whose calls take `seconds`, times the luck of the session, times noise."""

    def __init__(
        self,
        name: str,
        clock: ManualClock,
        *,
        seconds: float = 1.0,
        luck: Callable[[], float] = lambda: 1.0,
        noise: Callable[[], float] = lambda: 1.0,
        open_s: float = 0.0,
        log: list[str] | None = None,
    ) -> None:
        self.name, self.clock, self.seconds, self.luck, self.noise, self.open_s = name, clock, seconds, luck, noise, open_s
        self.log = [] if log is None else log
        self.alive = 0

    def opener(self) -> Opener[str]:
        @contextmanager
        def opened() -> Iterator[MakeTask[str]]:
            self.clock.advance(self.open_s)
            self.log.append(f"+{self.name}")
            self.alive += 1
            luck = self.luck()

            def work() -> Work:
                self.clock.advance(self.seconds * luck * self.noise())
                self.log.append(self.name)
                return Work(tokens=TOKENS)

            try:
                yield lambda case: work
            finally:
                self.alive -= 1
                self.log.append(f"-{self.name}")

        return opened


def sessions(
    *models: Model, config: MeasureConfig = QUICK, cases: tuple[str, ...] = ("case",), self_test: bool = True
) -> Sessions[str]:
    clock = models[0].clock
    return Sessions({m.name: m.opener() for m in models}, cases, config, self_test=self_test, clock=clock, wall=clock)


def events(log: list[str]) -> str:
    """What was opened and closed, without the calls."""
    return " ".join(e for e in log if e[0] in "+-")


def test_each_session_opens_all_arms_in_turning_order_and_then_the_first_one_again() -> None:
    clock, log = ManualClock(), list[str]()
    config = MeasureConfig(blocks=1, sessions=2, warmup_rounds=1)
    sessions(Model("A", clock, log=log), Model("B", clock, log=log), config=config).measure()
    assert events(log) == "+A +B -B +A -A -A +B +A -B +A -A -A"


def test_what_runs_before_what_is_the_same_for_both_arms_over_two_sessions() -> None:
    """Else one arm would follow itself more often than the other, and what it left in the caches would count for it."""
    clock, log = ManualClock(), list[str]()
    config = MeasureConfig(blocks=3, sessions=5, warmup_rounds=1)
    sessions(Model("A", clock, log=log), Model("B", clock, log=log), config=config, self_test=False).measure()
    text = "".join(log)
    starts = [i for i in range(len(text)) if text[i : i + 4] in ("+A+B", "+B+A")]
    parts = [text[a:b] for a, b in zip(starts, [*starts[1:], None], strict=True)]
    assert len(parts) == 5
    swapped = str.maketrans("AB", "BA")
    calls = [part[4:].split("-")[0] for part in parts]
    assert calls[1].translate(swapped) == calls[2] == calls[3].translate(swapped) == calls[4]
    follows = [a + b for part in calls[1:3] for a, b in pairwise(part)]
    assert follows.count("AA") == follows.count("BB") > 0
    assert follows.count("AB") == follows.count("BA")


def test_never_more_models_are_open_than_there_are_arms() -> None:
    clock, seen = ManualClock(), list[int]()
    a, b = Model("A", clock), Model("B", clock)
    a.noise = b.noise = lambda: float(seen.append(a.alive + b.alive) or 1.0)  # type: ignore[func-returns-value]
    sessions(a, b).measure()
    assert set(seen) == {2}
    assert a.alive == b.alive == 0


def test_every_case_gets_its_samples_in_every_session() -> None:
    clock = ManualClock()
    run = sessions(Model("A", clock), Model("B", clock, seconds=2.0), cases=("one", "two")).measure()
    assert run.sessions == 8
    for measurement in run.measurements.values():
        assert [p.shape for p in measurement.portions("A")] == [(2, 2)] * 8
        ratio = measurement.compare("A", "B")
        assert ratio is not None
        assert (ratio.speedup, ratio.sessions) == (pytest.approx(2.0), 8)


def test_the_luck_of_sessions_is_not_taken_for_a_difference() -> None:
    """Sessions off by 3 % with hardly any noise inside: one pair would show a difference nearly always."""
    false = 0
    for seed in range(24):
        clock, rng = ManualClock(), np.random.default_rng(seed)
        luck = lambda rng=rng: float(np.exp(rng.normal(0, 0.03)))  # noqa: E731
        noise = lambda rng=rng: float(np.exp(rng.normal(0, 0.002)))  # noqa: E731
        models = [Model(name, clock, luck=luck, noise=noise) for name in "AB"]
        ratio = sessions(*models, self_test=False).measure().measurements["case"].compare("A", "B")
        assert ratio is not None
        assert ratio.session_sd is not None
        assert 0.01 < ratio.session_sd < 0.1
        false += ratio.differs
    assert false <= 2


def test_a_planted_slowdown_is_seen_through_the_luck_of_sessions() -> None:
    found = 0
    for seed in range(10):
        clock, rng = ManualClock(), np.random.default_rng(seed)
        luck = lambda rng=rng: float(np.exp(rng.normal(0, 0.025)))  # noqa: E731
        models = [Model("A", clock, luck=luck), Model("B", clock, seconds=1.05, luck=luck)]
        config = MeasureConfig(blocks=1, sessions=14, warmup_rounds=6)
        ratio = sessions(*models, config=config, self_test=False).measure().measurements["case"].compare("A", "B")
        assert ratio is not None
        found += ratio.verdict == stats.FASTER
    assert found >= 9


def test_a_budget_is_filled_with_sessions_and_kept() -> None:
    clock = ManualClock()
    started = clock()
    config = MeasureConfig(blocks=3, sessions=40, budget_s=600.0, warmup_rounds=6)
    run = sessions(Model("A", clock, open_s=5.0), Model("B", clock, open_s=5.0), config=config).measure()
    assert 0.85 * 600 < clock() - started <= 600
    assert run.sessions >= 10
    assert run.sessions % 2 == 0


def test_a_budget_is_not_filled_beyond_the_sessions_asked_for() -> None:
    clock = ManualClock()
    config = MeasureConfig(blocks=1, sessions=12, budget_s=1e5, warmup_rounds=6)
    assert sessions(Model("A", clock), config=config).measure().sessions == 12


def test_a_budget_that_is_too_short_still_gives_a_comparison() -> None:
    clock = ManualClock()
    run = sessions(Model("A", clock), Model("B", clock), config=MeasureConfig(budget_s=1.0, warmup_rounds=6)).measure()
    assert run.sessions == stats.MIN_SESSIONS
    assert run.measurements["case"].compare("A", "B") is not None


def test_the_self_test_compares_two_sessions_of_the_first_arm() -> None:
    clock, rng = ManualClock(), np.random.default_rng(0)
    model = Model("A", clock, luck=lambda: float(np.exp(rng.normal(0, 0.03))))
    test = sessions(model).measure().judge_self_test()
    assert test.passed is True
    assert test.attempts[-1].session_sd is not None
    assert test.attempts[-1].session_sd > 0.01  # two sessions, not one twice


def test_the_self_test_catches_a_loop_that_favours_one_name() -> None:
    """Slow are the sessions that go by the second name: the 2nd and 3rd that are opened, the 6th and 7th, and so on."""
    clock, opened = ManualClock(), iter(range(1000))
    test = sessions(Model("A", clock, luck=lambda: 1.1 if next(opened) % 4 in (1, 2) else 1.0)).measure().judge_self_test()
    assert test.passed is False
    assert len(test.attempts) == 2
    assert test.attempts[0].speedup == pytest.approx(1.1)


def test_a_self_test_of_too_few_sessions_tells_nothing() -> None:
    clock = ManualClock()
    test = sessions(Model("A", clock), config=MeasureConfig(blocks=2, sessions=3)).measure().judge_self_test()
    assert (test.passed, test.attempts) == (None, ())


def test_an_arm_that_cannot_be_opened_at_all_is_the_users_error() -> None:
    @contextmanager
    def broken() -> Iterator[MakeTask[str]]:
        raise InputError("no such bundle")
        yield

    with pytest.raises(InputError, match="no such bundle"):
        Sessions({"A": broken}, ["case"], QUICK).measure()


def test_an_arm_that_cannot_be_opened_again_makes_the_run_invalid_and_keeps_the_samples() -> None:
    clock = ManualClock()
    good, opened = Model("A", clock).opener(), iter(range(100))

    @contextmanager
    def failing() -> Iterator[MakeTask[str]]:
        if next(opened) == 4:
            raise RuntimeError("out of memory")
        with good() as make:
            yield make

    run = Sessions({"A": failing}, ["case"], QUICK, clock=clock, wall=clock).measure()
    assert run.measurements["case"].invalid == "A failed: out of memory"
    assert run.measurements["case"].sessions == 2
    assert run.measurements["case"].failed == 1


@pytest.mark.parametrize(("jump_s", "invalid"), [(0.0, False), (0.3, False), (-30.0, True), (3600.0, True)])
def test_a_clock_that_jumps_makes_the_run_invalid(jump_s: float, invalid: bool) -> None:
    clock = ManualClock()
    model = Model("A", clock)
    driver = Sessions(
        {"A": model.opener()}, ["case"], QUICK, clock=clock, wall=lambda: clock() + (jump_s if clock() > 150.0 else 0.0)
    )
    reason = driver.measure().measurements["case"].invalid
    assert (reason is not None) == invalid
    assert reason is None or "the clock jumped" in reason


def test_a_run_goes_on_where_it_was_left() -> None:
    clock, saved = ManualClock(), list[int]()
    config = MeasureConfig(blocks=1, sessions=3, warmup_rounds=1)
    run: Run[str] = sessions(Model("A", clock), config=config).measure()
    more = MeasureConfig(blocks=1, sessions=9, warmup_rounds=1)
    Sessions(
        {"A": Model("A", clock).opener()},
        ["case"],
        more,
        run=run,
        clock=clock,
        wall=clock,
        after=lambda r: saved.append(r.sessions),
    ).measure()
    assert saved == [4, 5, 6, 7, 8, 9]
    assert [s.session for s in run.measurements["case"].samples["A"]] == sorted([*range(9)] * 2)
    assert run.judge_self_test().passed is True


def test_the_garbage_collector_rests_while_timing() -> None:
    clock, seen = ManualClock(), list[bool]()
    model = Model("A", clock, noise=lambda: (seen.append(gc.isenabled()), 1.0)[1])
    assert gc.isenabled()
    sessions(model).measure()
    assert not any(seen)
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0


def test_nothing_to_measure_is_refused() -> None:
    with pytest.raises(ConfigError, match="nothing to measure"):
        Sessions({}, ["case"], QUICK)
