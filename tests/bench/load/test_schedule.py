from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskpro_deploy.bench.load.schedule import ClosedLoop, OpenLoop, draw_arrivals
from maskpro_deploy.errors import ConfigError


@given(st.integers(1, 300), st.floats(0.01, 1e4), st.sampled_from([0.3, 1.0, 4.0, math.inf]), st.integers(0, 2**32))
def test_arrivals_ascend_and_end_when_the_rate_says(count: int, rate: float, burstiness: float, seed: int) -> None:
    times = draw_arrivals(OpenLoop(rate=rate, burstiness=burstiness), count, (seed,))
    assert times.shape == (count,)
    assert (np.diff(times) >= 0).all()
    assert times[0] >= 0
    assert times[-1] == pytest.approx(count / rate, rel=1e-9)
    assert (times == draw_arrivals(OpenLoop(rate=rate, burstiness=burstiness), count, (seed,))).all()


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 4.0])
def test_gaps_have_the_spread_of_their_distribution(burstiness: float) -> None:
    gaps = np.diff(draw_arrivals(OpenLoop(rate=10.0, burstiness=burstiness), 40_000, (1,)))
    assert gaps.mean() == pytest.approx(0.1, rel=0.01)
    assert gaps.std() / gaps.mean() == pytest.approx(1 / math.sqrt(burstiness), rel=0.05)
    if burstiness == 1.0:  # exponential: the part of gaps beyond one mean is 1 / e
        assert (gaps > 0.1).mean() == pytest.approx(math.exp(-1), abs=0.01)


def test_an_infinite_burstiness_is_a_constant_rate_and_an_infinite_rate_is_all_at_once() -> None:
    assert draw_arrivals(OpenLoop(rate=4.0, burstiness=math.inf), 4, (0,)).tolist() == [0.25, 0.5, 0.75, 1.0]
    assert draw_arrivals(OpenLoop(rate=math.inf), 3, (0,)).tolist() == [0.0, 0.0, 0.0]


def test_another_seed_is_another_timetable() -> None:
    assert (draw_arrivals(OpenLoop(rate=1.0), 5, (0,)) != draw_arrivals(OpenLoop(rate=1.0), 5, (1,))).any()


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan])
def test_what_is_no_rate_is_refused(value: float) -> None:
    with pytest.raises(ConfigError, match="--request-rate"):
        OpenLoop(rate=value)
    with pytest.raises(ConfigError, match="--burstiness"):
        OpenLoop(rate=1.0, burstiness=value)


def test_labels() -> None:
    assert OpenLoop(rate=2.5).label == "2.5 requests/s, Poisson"
    assert OpenLoop(rate=2.5, burstiness=math.inf).label == "2.5 requests/s, constant"
    assert ClosedLoop(concurrency=4).label == "concurrency 4"
    with pytest.raises(ConfigError, match="--concurrency 0"):
        ClosedLoop(concurrency=0)
