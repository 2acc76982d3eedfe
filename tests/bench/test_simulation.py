"""How often verdicts of simulated runs are wrong; the laws that `scripts/bench_trust --simulate` counts."""

from __future__ import annotations

import numpy as np
import pytest

from maskpro_deploy.bench import simulation, stats
from maskpro_deploy.errors import ConfigError

RUNS = 2000


@pytest.mark.parametrize("pairs", [4, 8, 12, 24])
@pytest.mark.parametrize("shape", simulation.SHAPES)
def test_equal_arms_are_called_different_in_less_than_one_run_of_twenty(shape: str, pairs: int) -> None:
    """Alone, and as one of two comparisons that share their sessions."""
    found = simulation.count_verdicts(shape, pairs=pairs, runs=RUNS, seed=1)
    assert found.alone < 0.05
    assert found.together < 0.05
    assert found.alone > 0.01  # an interval that hardly ever misses is too wide to be a 95 % one


def test_two_comparisons_judged_alone_would_call_a_difference_too_often() -> None:
    """Why verdicts are adjusted: a run has two chances to be wrong."""
    rng = np.random.default_rng(0)
    logs = simulation.draw_pair_ratios(rng, "normal", RUNS, 12)
    different = simulation.find_differences(logs, comparisons=1).any(axis=1).mean()
    assert different > 0.05


@pytest.mark.parametrize("shape", ["normal", "heavy-tailed", "skewed", "measured"])
def test_a_planted_difference_is_found(shape: str) -> None:
    few, many = (simulation.count_verdicts(shape, pairs=n, runs=500, slowdown=0.05) for n in (12, 24))
    assert few.found > 0.75
    assert many.found_together > 0.95


def test_a_large_difference_is_found_through_disturbed_sessions() -> None:
    assert simulation.count_verdicts("disturbed", pairs=12, runs=500, slowdown=0.1).found > 0.9


def test_runs_are_judged_as_the_benchmark_judges_them() -> None:
    draw = simulation.SHAPES["disturbed"]
    assert draw is not None
    first, second = simulation.draw_session_times(np.random.default_rng(2), draw, 20, 8, 0.05)  # (N, C, P, K, R)
    different = simulation.find_differences(stats.pair_log_ratio(first, second), comparisons=2)
    for run in range(20):
        ratios = [stats.compare_sessions(list(first[run, case]), list(second[run, case])) for case in range(2)]
        assert [r is not None and r.judge(2, 0.02).differs for r in ratios] == list(different[run])


def test_the_same_seed_gives_the_same_counts() -> None:
    one, again, other = (simulation.count_verdicts("normal", pairs=8, runs=300, seed=seed) for seed in (3, 3, 4))
    assert one == again != other


def test_noise_that_is_not_known_is_refused() -> None:
    with pytest.raises(ConfigError, match="Known: normal"):
        simulation.count_verdicts("pink", pairs=8, runs=10)
