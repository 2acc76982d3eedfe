"""When requests are sent.

*Open loop*: arrivals follow a timetable that is drawn before the first request and never waits for the server, as users do
not. Gaps are exponential (a Poisson process), or gamma-distributed with another burstiness, or all equal. *Closed loop*: a fixed
number of requests is under way; each answer triggers the next request, so the load slows down with the server, and its tail
latencies look better than users would find them (coordinated omission). It answers how much a server can do, not how it feels.

Shapes: `N` requests.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from maskpro_deploy.errors import check_range

Seed = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenLoop:
    """Arrivals at a rate."""

    rate: float  # requests a second, on average; inf sends all at once
    burstiness: float = 1.0  # shape of the gamma distribution of gaps: 1 is Poisson, less comes in bursts, inf is a constant rate

    def __post_init__(self) -> None:
        check_range("--request-rate", self.rate, above=0)
        check_range("--burstiness", self.burstiness, above=0, note="1 is Poisson, inf a constant rate")

    @property
    def label(self) -> str:
        """How reports call it."""
        if math.isinf(self.rate):
            return "all at once"
        kind = {1.0: "Poisson", math.inf: "constant"}.get(self.burstiness, f"gamma {self.burstiness:g}")
        return f"{self.rate:g} requests/s, {kind}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClosedLoop:
    """A fixed number of requests under way."""

    concurrency: int

    def __post_init__(self) -> None:
        check_range("--concurrency", self.concurrency, least=1)

    @property
    def label(self) -> str:
        """How reports call it."""
        return f"concurrency {self.concurrency}"


Load = OpenLoop | ClosedLoop


def draw_arrivals(load: OpenLoop, count: int, seed: Seed) -> npt.NDArray[np.float64]:
    """Send times in seconds after the start, ascending.  # (N,)

    The gaps are scaled so that the last request is sent after exactly `count / rate`, as vLLM's benchmark does: otherwise the
    offered rate of a short run would itself be off by some per cent.
    """
    if math.isinf(load.rate):
        return np.zeros(count)
    rng = np.random.default_rng(seed)
    gaps = np.ones(count) if math.isinf(load.burstiness) else rng.standard_gamma(load.burstiness, count)
    times = np.cumsum(gaps)
    scaled: npt.NDArray[np.float64] = times * (count / load.rate / times[-1])
    return scaled
