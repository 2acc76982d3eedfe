"""Statistics of timings: robust summaries, and a comparison that says no more than the samples do.

Timings on a shared machine are skewed, drift, and come in correlated runs. So: medians and MAD instead of means, percentiles
only where there are samples beyond them, and for two arms the ratio of medians with a *paired block bootstrap*:

1. Each block holds samples of both arms, taken one after the other. Every sample is divided by its block's geometric mean over
   both arms, so that drift from block to block, which both arms share, cancels.
2. The ratio is the baseline's median over the candidate's, of these relative times.
3. Whole blocks are drawn with replacement, so that correlation inside a block stays inside. The percentile interval is widened
   about the estimate by sqrt(K / (K - 1)) t / z, since the bootstrap alone is too narrow for few blocks.

In simulated runs with spikes and drift (4 % noise, 10 to 60 blocks) the interval misses the truth in 2 to 8 % of runs; with
strong drift, 30 blocks show a 5 % difference in 9 runs of 10, where the plain ratio of medians shows it in 4.

Two sessions of one model (two times that it was loaded) differ by some per cent for as long as they live, whatever runs in them:
their weights lie in other pages of memory. No number of samples out of one pair of sessions sees that. So the unit of
`compare_sessions` is the *pair of sessions*:

1. Inside a pair, blocks as above: the logarithm of the ratio of medians of relative times.
2. The ratio is the Hodges-Lehmann centre of these logarithms (the median of all means of two): nearly as exact as the mean on
   quiet pairs, and as deaf as the median to single pairs that something disturbed.
3. Whole pairs are drawn with replacement, with the same widening for few of them.

Shapes: `K` blocks, `R` samples of one arm in a block, `S` bootstrap resamples, `P` pairs of sessions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from maskpro_deploy.errors import ConfigError

Array = npt.NDArray[np.float64]

RESAMPLES = 10_000
CONFIDENCE = 0.95
MIN_BLOCKS = 10  # with fewer, no bootstrap interval deserves its 95 %
MIN_SESSIONS = 8  # likewise for pairs of sessions: simulated, 2 to 6 % of intervals miss from here on, 7 % with 6 pairs
FASTER, SLOWER, NO_DIFFERENCE = "faster", "slower", "no difference seen at this n"
_CHUNK_VALUES = 4_000_000  # bounds the memory of one bootstrap step


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """One arm's samples in a few figures, in the samples' unit.

    Attributes:
        mad: median absolute deviation from the median (not scaled).
        cv: standard deviation over mean; None for one sample.
        p90: None where fewer than 10 / (1 - 0.90) samples stand behind it; so are `p95` and `p99`.
    """

    count: int
    median: float
    mean: float
    std: float | None
    minimum: float
    maximum: float
    mad: float
    cv: float | None
    p90: float | None
    p95: float | None
    p99: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """How much faster one arm is than another.

    Attributes:
        speedup: time of the baseline over time of the candidate, drift removed; above 1 the candidate is faster.
        speedup_of_medians: the same from the plain medians of all samples, for comparison with a table of medians.
        low, high: bounds of the interval.
        confidence: of the interval, 0.95.
        blocks: how many blocks stand behind it.
        verdict: `FASTER`, `SLOWER` or `NO_DIFFERENCE`, for the candidate.
        sessions: how many independent pairs of sessions stand behind it; None: all blocks ran in one.
        session_sd: standard deviation of one pair's logarithm of the ratio; None as above.
    """

    speedup: float
    speedup_of_medians: float
    low: float
    high: float
    confidence: float
    blocks: int
    verdict: str
    sessions: int | None = None
    session_sd: float | None = None


def percentile(samples: Sequence[float] | Array, p: float) -> float | None:
    """The `p` quantile (0 < p < 1), or None if fewer than 10 samples are expected beyond it."""
    if not 0.0 < p < 1.0:
        raise ConfigError(f"percentile {p} is out of range: above 0 and below 1.")
    # the small slack keeps 10 / (1 - 0.9) = 100.00000000000001 from asking for 101 samples
    if len(samples) < 10.0 / (1.0 - p) - 1e-6:
        return None
    return float(np.quantile(np.asarray(samples, dtype=np.float64), p))


def median_absolute_deviation(samples: Sequence[float] | Array) -> float:
    """Median distance from the median."""
    values = np.asarray(samples, dtype=np.float64)
    return float(np.median(np.abs(values - np.median(values))))


def summarise(samples: Sequence[float] | Array) -> Summary:
    """Summarise samples; nothing is trimmed.

    Raises:
        ConfigError: there are none, or one is not finite.
    """
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
        mad=median_absolute_deviation(values),
        cv=std / mean if std is not None and mean > 0 else None,
        p90=percentile(values, 0.90),
        p95=percentile(values, 0.95),
        p99=percentile(values, 0.99),
    )


def _resampled_medians(arms: Sequence[Array], resamples: int, seed: int) -> Array:
    """Medians of each arm over the same drawn blocks.  # arms of (K, R) -> (S, arms)"""
    blocks = arms[0].shape[0]
    rng = np.random.default_rng(seed)
    step = max(1, _CHUNK_VALUES // max(arm.size for arm in arms))
    out = np.empty((resamples, len(arms)))
    for start in range(0, resamples, step):
        stop = min(start + step, resamples)
        draws = rng.integers(blocks, size=(stop - start, blocks))
        for i, arm in enumerate(arms):
            out[start:stop, i] = np.median(arm[draws].reshape(stop - start, -1), axis=1)
    return out


def _checked(samples: npt.ArrayLike, name: str) -> Array:
    """Samples as (K, R), positive and finite."""
    array = np.asarray(samples, dtype=np.float64)
    if array.ndim == 1:
        array = array[:, None]
    if array.ndim != 2 or array.size == 0 or not np.isfinite(array).all() or (array <= 0).any():
        raise ConfigError(f"{name}: expected positive finite times in blocks (blocks, samples), found shape {array.shape}.")
    return array


def compare(
    candidate: npt.ArrayLike,
    baseline: npt.ArrayLike,
    *,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> Ratio | None:
    """Compare the times of two arms that ran in the same blocks.

    Args:
        candidate: times of one arm.  # (K, R)
        baseline: times of the other in the same blocks.  # (K, R')
        resamples: bootstrap draws.
        confidence: of the interval.
        seed: of the draws.

    Returns:
        The ratio with its interval and verdict, or None for fewer than `MIN_BLOCKS` blocks.

    Raises:
        ConfigError: the arms have different numbers of blocks, or a time is not positive.
    """
    a, b = _checked(candidate, "candidate"), _checked(baseline, "baseline")
    if a.shape[0] != b.shape[0]:
        raise ConfigError(f"paired arms need the same blocks: {a.shape[0]} and {b.shape[0]}.")
    if a.shape[0] < MIN_BLOCKS:
        return None
    of_medians = float(np.median(b) / np.median(a))
    a, b = _relative(a, b)
    speedup = float(np.median(b) / np.median(a))
    medians = _resampled_medians((a, b), resamples, seed)  # (S, 2)
    low, high = _interval(np.log(medians[:, 1] / medians[:, 0]), math.log(speedup), a.shape[0], confidence)
    low, high = math.exp(low), math.exp(high)
    return Ratio(
        speedup=speedup,
        speedup_of_medians=of_medians,
        low=low,
        high=high,
        confidence=confidence,
        blocks=int(a.shape[0]),
        verdict=_verdict(low, high),
    )


def _relative(a: Array, b: Array) -> tuple[Array, Array]:
    """Times of both arms over the geometric mean of their block.  # (K, R), (K, R')"""
    level = np.exp(np.log(np.concatenate([a, b], axis=1)).mean(axis=1, keepdims=True))  # (K, 1)
    return a / level, b / level


def _verdict(low: float, high: float) -> str:
    return FASTER if low > 1.0 else SLOWER if high < 1.0 else NO_DIFFERENCE


def compare_sessions(
    candidate: Sequence[npt.ArrayLike],
    baseline: Sequence[npt.ArrayLike],
    *,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> Ratio | None:
    """Compare the times of two arms over pairs of sessions, each pair opened anew.

    Args:
        candidate: times of one arm, pair by pair, each in blocks.  # P of (K, R)
        baseline: times of the other in the same pairs and blocks.  # P of (K, R')
        resamples: bootstrap draws.
        confidence: of the interval.
        seed: of the draws.

    Returns:
        The ratio with its interval and verdict, or None for fewer than `MIN_SESSIONS` pairs.

    Raises:
        ConfigError: the arms have different pairs or blocks, or a time is not positive.
    """
    if len(candidate) != len(baseline):
        raise ConfigError(f"paired arms need the same sessions: {len(candidate)} and {len(baseline)}.")
    if len(candidate) < MIN_SESSIONS:
        return None
    pairs = [(_checked(a, "candidate"), _checked(b, "baseline")) for a, b in zip(candidate, baseline, strict=True)]
    if any(a.shape[0] != b.shape[0] for a, b in pairs):
        raise ConfigError("paired arms need the same blocks in every session.")
    relative = [_relative(a, b) for a, b in pairs]
    ratios = np.array([math.log(np.median(b) / np.median(a)) for a, b in relative])  # (P,)
    centre, low, high = centre_interval(ratios, resamples=resamples, confidence=confidence, seed=seed)
    low, high = math.exp(low), math.exp(high)
    return Ratio(
        speedup=math.exp(centre),
        speedup_of_medians=float(
            np.median(np.concatenate([b.ravel() for _, b in pairs])) / np.median(np.concatenate([a.ravel() for a, _ in pairs]))
        ),
        low=low,
        high=high,
        confidence=confidence,
        blocks=sum(a.shape[0] for a, _ in pairs),
        verdict=_verdict(low, high),
        sessions=len(pairs),
        session_sd=float(ratios.std(ddof=1)),
    )


def compare_unpaired(
    candidate: Sequence[npt.ArrayLike],
    baseline: Sequence[npt.ArrayLike],
    *,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> Ratio | None:
    """Compare the sessions of two runs that were not interleaved: what drifted between the runs counts as a difference.

    Args:
        candidate: times of one arm, session by session.  # P of (K, R)
        baseline: times of the other.  # P' of (K', R')
        resamples: bootstrap draws; sessions of the two runs are drawn independently.
        confidence: of the interval.
        seed: of the draws.

    Returns:
        The ratio (Hodges-Lehmann: the median of the ratios of all pairs of session medians), or None where a run has fewer than
        `MIN_SESSIONS` sessions.
    """
    fewest = min(len(candidate), len(baseline))
    if fewest < MIN_SESSIONS:
        return None
    a = np.array([np.log(np.median(_checked(p, "candidate"))) for p in candidate])  # (P,)
    b = np.array([np.log(np.median(_checked(p, "baseline"))) for p in baseline])  # (P',)
    rng = np.random.default_rng(seed)
    step = max(1, _CHUNK_VALUES // (len(a) * len(b)))
    draws = []
    for start in range(0, resamples, step):
        count = min(step, resamples - start)
        left, right = (v[rng.integers(len(v), size=(count, len(v)))] for v in (a, b))
        draws.append(_shift(left, right))
    centre = float(_shift(a, b))
    low, high = _interval(np.concatenate(draws), centre, fewest, confidence)
    low, high = math.exp(low), math.exp(high)
    whole = [np.concatenate([_checked(p, "samples").ravel() for p in portions]) for portions in (candidate, baseline)]
    return Ratio(
        speedup=math.exp(centre),
        speedup_of_medians=float(np.median(whole[1]) / np.median(whole[0])),
        low=low,
        high=high,
        confidence=confidence,
        blocks=sum(len(_checked(p, "candidate")) for p in candidate),
        verdict=_verdict(low, high),
        sessions=fewest,
    )


def _shift(a: Array, b: Array) -> Array:
    """The median of all differences b - a along the last axis.  # (..., P), (..., P') -> (...)"""
    differences = b[..., None, :] - a[..., :, None]
    shift: Array = np.median(differences.reshape(*differences.shape[:-2], -1), axis=-1)
    return shift


def hodges_lehmann(values: Array) -> Array:
    """The median of the means of all pairs of values, each with itself too, along the last axis.  # (..., P) -> (...)"""
    i, j = np.triu_indices(values.shape[-1])
    centre: Array = np.median((values[..., i] + values[..., j]) / 2.0, axis=-1)
    return centre


def centre_interval(
    values: Array, *, resamples: int = RESAMPLES, confidence: float = CONFIDENCE, seed: int = 0
) -> tuple[float, float, float]:
    """The Hodges-Lehmann centre of independent values and the bounds of its bootstrap interval, widened for few values."""
    count = len(values)
    rng = np.random.default_rng(seed)
    step = max(1, _CHUNK_VALUES // (count * (count + 1) // 2))
    draws = [
        hodges_lehmann(values[rng.integers(count, size=(min(step, resamples - start), count))])
        for start in range(0, resamples, step)
    ]
    centre = float(hodges_lehmann(values))
    low, high = _interval(np.concatenate(draws), centre, count, confidence)
    return centre, low, high


def _interval(draws: Array, estimate: float, blocks: int, confidence: float) -> tuple[float, float]:
    """The percentile interval of bootstrap draws, widened about the estimate for few blocks."""
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(draws, (tail, 1.0 - tail))
    z = NormalDist().inv_cdf(1.0 - tail)
    widen = math.sqrt(blocks / (blocks - 1)) * student_t(z, blocks - 1) / z
    return estimate - widen * max(0.0, estimate - float(low)), estimate + widen * max(0.0, float(high) - estimate)


def student_t(z: float, degrees: int) -> float:
    """The t quantile that belongs to the normal quantile `z` (Cornish-Fisher; 0.001 off at 9 degrees of freedom)."""
    first = (z**3 + z) / (4 * degrees)
    second = (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * degrees**3)
    return z + first + second + third


def finite(value: float | None) -> float | None:
    """The value for JSON: None instead of NaN and infinity."""
    return value if value is not None and math.isfinite(value) else None
