"""Laws of the statistics; distributions are simulated and seeded, no clock is involved."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskpro_deploy.bench import stats
from maskpro_deploy.bench.intervals import half_width
from maskpro_deploy.errors import ConfigError

Array = npt.NDArray[np.float64]
times = st.lists(st.floats(1e-4, 1e3), min_size=1, max_size=60)


def noisy(rng: np.random.Generator, blocks: int, slowdown: float = 1.0, drift: float = 0.02) -> tuple[Array, Array]:
    """Times of two arms in ABBA and BAAB blocks: shared drift, skewed noise, spikes; the second is slower by `slowdown`."""
    walk = np.cumsum(rng.normal(0, drift, blocks * 4)).reshape(blocks, 4)
    spikes = (rng.random((blocks, 4)) < 0.05) * rng.exponential(0.5, (blocks, 4))
    slots = np.exp(walk + rng.normal(0, 0.04, (blocks, 4))) * (1 + spikes)
    outer, inner = slots[:, [0, 3]], slots[:, [1, 2]]
    even = (np.arange(blocks) % 2 == 0)[:, None]
    return np.where(even, outer, inner), np.where(even, inner, outer) * slowdown


@given(times)
def test_a_summary_agrees_with_the_definitions(values: list[float]) -> None:
    found = stats.summarise(values)
    ordered = sorted(values)
    middle = len(ordered) // 2
    median = ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
    assert found.median == pytest.approx(median)
    assert found.minimum == ordered[0]
    assert found.maximum == ordered[-1]
    assert found.count == len(values)
    distances = sorted(abs(v - median) for v in values)
    assert ordered[0] - 1e-9 <= found.median <= ordered[-1] + 1e-9
    assert distances[0] - 1e-9 <= found.mad <= distances[-1] + 1e-9
    if found.std is not None:
        assert found.std == pytest.approx(
            np.sqrt(sum((v - found.mean) ** 2 for v in values) / (len(values) - 1)), rel=1e-6, abs=1e-9
        )
        assert found.cv == pytest.approx(found.std / found.mean)
    else:
        assert len(values) == 1


@pytest.mark.parametrize(("p", "needed"), [(0.5, 20), (0.9, 100), (0.95, 200), (0.99, 1000)])
def test_a_percentile_needs_ten_samples_beyond_it(p: float, needed: int) -> None:
    assert stats.percentile(list(range(needed - 1)), p) is None
    assert stats.percentile(list(range(needed)), p) == pytest.approx(p * (needed - 1))


@pytest.mark.parametrize("p", [0.0, 1.0, -0.1, 1.5])
def test_a_percentile_out_of_range_is_refused(p: float) -> None:
    with pytest.raises(ConfigError, match="out of range"):
        stats.percentile([1.0], p)


@pytest.mark.parametrize("values", [[], [1.0, float("nan")], [float("inf")]])
def test_a_summary_needs_finite_samples(values: list[float]) -> None:
    with pytest.raises(ConfigError, match="finite"):
        stats.summarise(values)


def test_an_arm_against_its_like_is_called_different_in_less_than_one_run_of_twenty() -> None:
    rng = np.random.default_rng(7)
    runs = 1000
    different = sum(_compare(*noisy(rng, 30)).differs for _ in range(runs))
    assert different <= 0.05 * runs
    assert different >= 1  # an interval that never misses is too wide to be a 95 % one


@pytest.mark.parametrize("slowdown", [1.05, 1.10])
def test_a_planted_slowdown_is_found_in_noise_and_drift(slowdown: float) -> None:
    rng = np.random.default_rng(11)
    runs = 60
    verdicts = [_compare(*noisy(rng, 40, slowdown)).verdict for _ in range(runs)]
    assert verdicts.count(stats.FASTER) >= 0.9 * runs  # the first arm is the faster one
    assert stats.SLOWER not in verdicts


def test_the_interval_covers_the_planted_ratio() -> None:
    rng = np.random.default_rng(3)
    found = [_compare(*noisy(rng, 30, 1.07)) for _ in range(100)]
    assert sum(r.low <= 1.07 <= r.high for r in found) >= 90


@given(st.integers(0, 2**31), st.integers(stats.MIN_BLOCKS, 30))
def test_swapping_the_arms_inverts_the_ratio(seed: int, blocks: int) -> None:
    a, b = noisy(np.random.default_rng(seed), blocks)
    there, back = _compare(a, b), _compare(b, a)
    assert there.speedup * back.speedup == pytest.approx(1.0)
    assert there.low == pytest.approx(1 / back.high)
    assert there.low <= there.speedup <= there.high


@given(st.integers(0, 2**31), st.floats(1e-3, 1e3))
def test_drift_that_both_arms_share_changes_nothing(seed: int, unit: float) -> None:
    rng = np.random.default_rng(seed)
    a, b = noisy(rng, 12)
    level = unit * np.exp(rng.normal(0, 1, (12, 1)))
    plain, drifted = _compare(a, b), _compare(a * level, b * level)
    assert drifted.speedup == pytest.approx(plain.speedup)
    assert drifted.low == pytest.approx(plain.low)


def test_arms_without_noise_have_an_interval_of_no_width() -> None:
    found = _compare(np.full((10, 2), 2.0), np.full((10, 2), 3.0))
    assert (found.speedup, found.low, found.high) == pytest.approx((1.5, 1.5, 1.5))
    assert found.verdict == stats.FASTER
    assert found.blocks == 10


def test_too_few_blocks_give_no_verdict() -> None:
    short = np.ones((stats.MIN_BLOCKS - 1, 2))
    assert stats.compare(short, short) is None


def test_arms_that_did_not_run_in_the_same_blocks_are_refused() -> None:
    with pytest.raises(ConfigError, match="same blocks"):
        stats.compare(np.ones((12, 2)), np.ones((11, 2)))


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf")])
def test_times_that_are_none_are_refused(bad: float) -> None:
    times = np.ones((12, 2))
    times[3, 1] = bad
    with pytest.raises(ConfigError, match="positive finite"):
        stats.compare(times, np.ones((12, 2)))


def lucky(rng: np.random.Generator, pairs: int, slowdown: float = 1.0, luck: float = 0.03) -> tuple[list[Array], list[Array]]:
    """Times of two arms over pairs of sessions, each off by its own luck; one in twenty is badly disturbed."""
    a, b = [], []
    for _ in range(pairs):
        left, right = noisy(rng, 2, slowdown, drift=0.01)
        off = np.exp(rng.normal(0, luck, 2) + (rng.random(2) < 0.025) * 0.2)
        a.append(left * off[0])
        b.append(right * off[1])
    return a, b


def _over_sessions(a: list[Array], b: list[Array]) -> stats.Ratio:
    found = stats.compare_sessions(a, b)
    assert found is not None
    return found


@pytest.mark.parametrize("pairs", [stats.MIN_SESSIONS, 12, 20])
def test_the_luck_of_sessions_is_called_a_difference_in_less_than_one_run_of_twenty(pairs: int) -> None:
    rng = np.random.default_rng(pairs)
    runs = 300
    false = sum(_over_sessions(*lucky(rng, pairs)).differs for _ in range(runs))
    assert 1 <= false <= 0.05 * runs


def test_blocks_alone_would_take_the_luck_of_sessions_for_a_difference() -> None:
    """Why the unit is the pair of sessions: many blocks of one pair see its luck, and call it a difference."""
    rng = np.random.default_rng(1)
    runs, false = 60, 0
    for _ in range(runs):
        a, b = noisy(rng, 60, drift=0.01)
        false += _compare(a * np.exp(rng.normal(0, 0.03)), b).differs
    assert false >= 0.4 * runs


def test_a_planted_slowdown_is_found_over_sessions() -> None:
    rng = np.random.default_rng(5)
    found = [_over_sessions(*lucky(rng, 24, 1.05, luck=0.02)) for _ in range(40)]
    assert sum(r.verdict == stats.FASTER for r in found) >= 36
    assert sum(r.low <= 1.05 <= r.high for r in found) >= 36


@given(st.integers(0, 2**31), st.integers(stats.MIN_SESSIONS, 12))
def test_swapping_the_arms_inverts_the_ratio_over_sessions(seed: int, pairs: int) -> None:
    a, b = lucky(np.random.default_rng(seed), pairs)
    there, back = (stats.compare_sessions(x, y) for x, y in ((a, b), (b, a)))
    assert there is not None
    assert back is not None
    assert there.speedup * back.speedup == pytest.approx(1.0)
    assert there.low == pytest.approx(1 / back.high)
    assert there.low <= there.speedup <= there.high


def test_sessions_that_are_not_paired_are_refused() -> None:
    portions = [np.ones((2, 2))] * stats.MIN_SESSIONS
    assert stats.compare_sessions(portions[1:], portions[1:]) is None
    with pytest.raises(ConfigError, match="same sessions"):
        stats.compare_sessions(portions, portions[1:])
    with pytest.raises(ConfigError, match="same blocks"):
        stats.compare_sessions(portions, [np.ones((3, 2)), *portions[1:]])


def test_verdicts_of_several_comparisons_need_more_evidence_than_one() -> None:
    alone = _ratio(1.04, error=0.015, degrees=7.0)
    assert alone.judge(1, 0.02).verdict == stats.FASTER
    together = alone.judge(20, 0.02)
    assert together.verdict == stats.NO_DIFFERENCE
    assert (together.comparisons, together.low, together.high) == (20, alone.low, alone.high)


@pytest.mark.parametrize("count", [1, 2, 7, 96])
def test_verdicts_hold_together_at_the_stated_level(count: int) -> None:
    assert count * (1 - stats.each_confidence(count)) == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("speedup", "error", "least", "verdict"),
    [
        (1.00, 0.004, 0.02, stats.NO_INTEREST),
        (1.00, 0.004, 0.001, stats.NO_DIFFERENCE),
        (1.00, 0.04, 0.02, stats.NO_DIFFERENCE),
        (1.01, 0.006, 0.02, stats.NO_DIFFERENCE),  # more than 2 % is not excluded
        (1.01, 0.001, 0.02, stats.FASTER),  # a difference is a difference, however small
        (0.99, 0.001, 0.02, stats.SLOWER),
        (1.00, 0.004, 0.0, stats.NO_DIFFERENCE),
    ],
)
def test_a_verdict_says_no_difference_of_interest_only_if_a_larger_one_is_excluded(
    speedup: float, error: float, least: float, verdict: str
) -> None:
    found = _ratio(speedup, error=error, degrees=9.0).judge(1, least)
    assert found.verdict == verdict
    assert found.differs == (verdict in (stats.FASTER, stats.SLOWER))


@given(st.floats(0.9, 1.1), st.floats(0.0, 0.05), st.floats(0.0, 0.1))
def test_swapping_the_arms_swaps_the_verdict(speedup: float, error: float, least: float) -> None:
    there = _ratio(speedup, error=error, degrees=9.0).judge(2, least).verdict
    back = _ratio(1.0 / speedup, error=error, degrees=9.0).judge(2, least).verdict
    swapped = {stats.FASTER: stats.SLOWER, stats.SLOWER: stats.FASTER}
    assert back == swapped.get(there, there)


@pytest.mark.parametrize("value", [-0.01, 1.0, float("nan")])
def test_a_least_difference_out_of_range_is_refused(value: float) -> None:
    with pytest.raises(ConfigError, match=r"--least-difference .* is out of range"):
        stats.check_least_difference(value)


def _ratio(speedup: float, *, error: float, degrees: float) -> stats.Ratio:
    half = half_width(error, degrees, 0.95)
    return stats.Ratio(
        speedup=speedup,
        speedup_of_medians=speedup,
        low=speedup * np.exp(-half),
        high=speedup * np.exp(half),
        confidence=0.95,
        error=error,
        degrees=degrees,
        blocks=20,
        verdict=stats.NO_DIFFERENCE,
    )


def _compare(a: Array, b: Array) -> stats.Ratio:
    found = stats.compare(a, b)
    assert found is not None
    return found
