"""Statistics of timings: robust summaries, and comparisons that say no more than the samples do.

Timings on a shared machine are skewed, drift, and come in correlated runs. So: medians and MAD instead of means, percentiles
only where there are samples beyond them, and for two arms the ratio of times inside *blocks*: each holds samples of both arms,
taken one after the other, so that drift from block to block, which both arms share, cancels. The interval is that of a trimmed
mean of the logarithms of these ratios, with Student's t (see `intervals`).

Two sessions of the same model (two times that it was loaded) can differ by a few per cent throughout their lifetime: their
weights are in other pages of memory. No number of samples from one pair of sessions shows that. So the unit of
`compare_sessions` is the *pair of sessions*: each gives one value, the logarithm of the ratio of medians, of times relative to
their block.

One run makes several comparisons, and they share their sessions, so they are not independent. `Ratio.judge` makes all verdicts
of a run hold together: with `C` comparisons, each verdict uses the interval of the level 1 - 0.05 / C (Bonferroni, which needs no
independence). The interval in reports stays the plain one.

Shapes: `K` blocks, `R` samples of one arm in a block, `P` pairs of sessions.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from maskpro_deploy.bench import intervals
from maskpro_deploy.errors import ConfigError, check_range

Array = npt.NDArray[np.float64]

CONFIDENCE = 0.95
LEAST_DIFFERENCE = 0.02  # smaller differences interest nobody, by default
MIN_BLOCKS = 10  # of one pair of sessions; with fewer, a few disturbed blocks decide
MIN_SESSIONS = 8  # pairs; from here on the interval trims a disturbed one
FASTER, SLOWER, NO_DIFFERENCE, NO_INTEREST = "faster", "slower", "no difference seen", "no difference of interest"


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """One arm's samples in a few figures, in the samples' unit."""

    count: int
    median: float
    mean: float
    std: float | None
    minimum: float
    maximum: float
    mad: float  # median absolute deviation from the median (not scaled)
    cv: float | None  # standard deviation over mean; None for one sample
    p90: float | None  # None where fewer than 10 / (1 - 0.90) samples stand behind it; so are `p95` and `p99`
    p95: float | None
    p99: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """How much faster one arm is than another."""

    speedup: float  # time of the baseline over time of the candidate, drift removed; above 1 the candidate is faster
    speedup_of_medians: float  # the same from the plain medians of all samples, for comparison with a table of medians
    low: float  # of the interval of this comparison alone
    high: float  # likewise
    confidence: float  # of the interval, 0.95
    error: float  # standard error of the logarithm of the ratio
    degrees: float  # of freedom that stand behind it
    blocks: int  # how many blocks stand behind the ratio
    verdict: str  # `FASTER`, `SLOWER`, `NO_DIFFERENCE` or `NO_INTEREST`, for the candidate
    comparisons: int = 1  # how many were made in the run; their verdicts hold together with `confidence`
    least_difference: float = LEAST_DIFFERENCE  # the smallest difference of interest, as a fraction
    sessions: int | None = None  # how many independent pairs of sessions stand behind it; None: all blocks ran in one
    session_sd: float | None = None  # standard deviation of one pair's logarithm of the ratio; None as above

    @property
    def differs(self) -> bool:
        """Whether a difference was seen, of whatever size."""
        return self.verdict in (FASTER, SLOWER)

    @property
    def below_interest(self) -> bool:
        """Whether the ratio is nearer to 1 than the least difference of interest."""
        return abs(math.log(self.speedup)) < math.log1p(self.least_difference)

    def judge(self, comparisons: int, least_difference: float) -> Ratio:
        """The same figures with the verdict that holds together with those of all comparisons of a run."""
        low, high = _compute_bounds(self.speedup, self.error, self.degrees, each_confidence(comparisons, self.confidence))
        return dataclasses.replace(
            self,
            verdict=_choose_verdict(low, high, least_difference),
            comparisons=max(1, comparisons),
            least_difference=least_difference,
        )


def each_confidence(comparisons: int, confidence: float = CONFIDENCE) -> float:
    """The level of each of several verdicts that hold together with `confidence`."""
    return 1.0 - (1.0 - confidence) / max(1, comparisons)


def check_least_difference(value: float) -> None:
    """Refuse a least difference of interest that is none, with a `ConfigError`."""
    check_range("--least-difference", value, least=0, below=1, note="0.02 is 2 %")


def _compute_bounds(speedup: float, error: float, degrees: float, confidence: float) -> tuple[float, float]:
    half = intervals.half_width(error, degrees, confidence)
    return speedup * math.exp(-half), speedup * math.exp(half)


def _choose_verdict(low: float, high: float, least_difference: float) -> str:
    if low > 1.0 or high < 1.0:
        return FASTER if low > 1.0 else SLOWER
    within = low * (1.0 + least_difference) >= 1.0 and high <= 1.0 + least_difference
    return NO_INTEREST if within else NO_DIFFERENCE


def percentile(samples: Sequence[float] | Array, p: float) -> float | None:
    """The `p` quantile (0 < p < 1), or None if fewer than 10 samples are expected beyond it."""
    check_range("percentile", p, above=0, below=1)
    # the small slack keeps 10 / (1 - 0.9) = 100.00000000000001 from asking for 101 samples
    if len(samples) < 10.0 / (1.0 - p) - 1e-6:
        return None
    return float(np.quantile(np.asarray(samples, dtype=np.float64), p))


def summarise(samples: Sequence[float] | Array) -> Summary:
    """Summarise samples; nothing is trimmed. A `ConfigError` where there are none, or one is not finite."""
    values = np.asarray(samples, dtype=np.float64)
    if values.size == 0 or not np.isfinite(values).all():
        raise ConfigError("a summary needs at least one sample, and all of them finite.")
    mean = float(values.mean())
    std = float(values.std(ddof=1)) if values.size > 1 else None
    return Summary(
        count=int(values.size),
        median=float(np.median(values)),
        mean=mean,
        std=std,
        minimum=float(values.min()),
        maximum=float(values.max()),
        mad=float(np.median(np.abs(values - np.median(values)))),
        cv=std / mean if std is not None and mean > 0 else None,
        p90=percentile(values, 0.90),
        p95=percentile(values, 0.95),
        p99=percentile(values, 0.99),
    )


def summarise_if_any(samples: Sequence[float]) -> Summary | None:
    """The same; None without samples."""
    return summarise(samples) if samples else None


def _check_times(samples: npt.ArrayLike, name: str) -> Array:
    """Samples as (K, R), positive and finite."""
    array = np.asarray(samples, dtype=np.float64)
    if array.ndim == 1:
        array = array[:, None]
    if array.ndim != 2 or array.size == 0 or not np.isfinite(array).all() or (array <= 0).any():
        raise ConfigError(f"{name}: expected positive finite times in blocks (blocks, samples), found shape {array.shape}.")
    return array


def compare(candidate: npt.ArrayLike, baseline: npt.ArrayLike, *, confidence: float = CONFIDENCE) -> Ratio | None:
    """Compare the times of two arms that ran in the same blocks.  # (K, R), (K, R')

    None for fewer than `MIN_BLOCKS` blocks; a `ConfigError` for different blocks, or a time that is not positive.
    """
    a, b = _check_times(candidate, "candidate"), _check_times(baseline, "baseline")
    if a.shape[0] != b.shape[0]:
        raise ConfigError(f"paired arms need the same blocks: {a.shape[0]} and {b.shape[0]}.")
    if a.shape[0] < MIN_BLOCKS:
        return None
    logs = np.median(np.log(b), axis=1) - np.median(np.log(a), axis=1)  # (K,)
    return _make_ratio(intervals.trimmed_mean(logs), [a], [b], confidence)


def compare_sessions(
    candidate: Sequence[npt.ArrayLike], baseline: Sequence[npt.ArrayLike], *, confidence: float = CONFIDENCE
) -> Ratio | None:
    """Compare the times of two arms over pairs of sessions, opened again for each pair.  # P of (K, R), P of (K, R')

    None for fewer than `MIN_SESSIONS` pairs; a `ConfigError` for different pairs or blocks, or a time that is not positive.
    """
    if len(candidate) != len(baseline):
        raise ConfigError(f"paired arms need the same sessions: {len(candidate)} and {len(baseline)}.")
    if len(candidate) < MIN_SESSIONS:
        return None
    a, b = [_check_times(x, "candidate") for x in candidate], [_check_times(x, "baseline") for x in baseline]
    if any(x.shape[0] != y.shape[0] for x, y in zip(a, b, strict=True)):
        raise ConfigError("paired arms need the same blocks in every session.")
    logs = np.array([float(pair_log_ratio(x, y)) for x, y in zip(a, b, strict=True)])  # (P,)
    ratio = _make_ratio(intervals.trimmed_mean(logs), a, b, confidence)
    return dataclasses.replace(ratio, sessions=len(logs), session_sd=float(logs.std(ddof=1)))


def compare_unpaired(
    candidate: Sequence[npt.ArrayLike], baseline: Sequence[npt.ArrayLike], *, confidence: float = CONFIDENCE
) -> Ratio | None:
    """Compare the sessions of two runs that were not interleaved: what drifted between the runs counts as a difference.

    The ratio is that of the trimmed geometric means of the session medians, or None where a run has fewer than `MIN_SESSIONS`
    sessions.  # P of (K, R), P' of (K', R')
    """
    fewest = min(len(candidate), len(baseline))
    if fewest < MIN_SESSIONS:
        return None
    a, b = [_check_times(x, "candidate") for x in candidate], [_check_times(x, "baseline") for x in baseline]
    medians = [np.array([np.log(np.median(x)) for x in portions]) for portions in (a, b)]  # (P,), (P',)
    return dataclasses.replace(_make_ratio(intervals.difference(*medians), a, b, confidence), sessions=fewest)


def pair_log_ratio(candidate: Array, baseline: Array) -> Array:
    """The logarithm of the ratio of medians, of times relative to their block.  # (..., K, R), (..., K, R') -> (...)"""
    a, b = np.log(candidate), np.log(baseline)
    level = np.concatenate([a, b], axis=-1).mean(axis=-1, keepdims=True)  # (..., K, 1)
    ratio: Array = _median_of_blocks(b - level) - _median_of_blocks(a - level)
    return ratio


def _median_of_blocks(logs: Array) -> Array:
    """The logarithm of the median time.  # (..., K, R) -> (...)"""
    median: Array = np.log(np.median(np.exp(logs).reshape(*logs.shape[:-2], -1), axis=-1))
    return median


def _make_ratio(estimate: intervals.Estimate, candidate: Sequence[Array], baseline: Sequence[Array], confidence: float) -> Ratio:
    """The comparison that an estimate of the logarithm amounts to, judged alone."""
    speedup, error, degrees = math.exp(float(estimate.centre)), float(estimate.error), float(estimate.degrees)
    low, high = _compute_bounds(speedup, error, degrees, confidence)
    whole = [np.median(np.concatenate([x.ravel() for x in portions])) for portions in (candidate, baseline)]
    return Ratio(
        speedup=speedup,
        speedup_of_medians=float(whole[1] / whole[0]),
        low=low,
        high=high,
        confidence=confidence,
        error=error,
        degrees=degrees,
        blocks=sum(x.shape[0] for x in candidate),
        verdict=_choose_verdict(low, high, LEAST_DIFFERENCE),
    )


def finite(value: float | None) -> float | None:
    """The value for JSON: None instead of NaN and infinity."""
    return value if value is not None and math.isfinite(value) else None


def find_break_even(verdicts: Mapping[int, str]) -> int | None:
    """The smallest measured size from which on every measured size is faster by its verdict; None if the largest is not."""
    smallest = None
    for size in sorted(verdicts, reverse=True):
        if verdicts[size] != FASTER:
            break
        smallest = size
    return smallest
