"""Intervals of few values: a trimmed mean with Student's t (Yuen 1974, Biometrika 61).

A benchmark has 8 to 40 independent values, the logarithms of the ratios of pairs of sessions. Most scatter normally; now and then
something disturbs a pair badly, and the plain mean loses its power to a single such pair. A rank test has no interval for so few
values at the levels that many comparisons need. So from each end one value in ten is trimmed, one at least from 8 values on, and

1. the centre is the mean of the `H = P - 2 G` values that are left;
2. its standard error comes from the *winsorised* values (each trimmed one replaced by its nearest kept one): with their sum of
   squared deviations `Q`, the error is sqrt(Q / (H (H - 1)));
3. the interval is the centre +- t * error, with Student's t of `H - 1` degrees of freedom.

Trimmed at so few values, t is an approximation. So an interval is made for `_CAUTION` of the error that it is said to have: an
interval called 95 % is one of 96.5 %. `scripts/bench_trust --simulate` counts how often it misses.

Shapes: `P` values, `G` trimmed at each end, `H` left.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from maskpro_deploy.errors import ConfigError

Array = npt.NDArray[np.float64]

_TRIMMED = 0.1  # of the values, at each end
_LEAST_TRIMMED = 8  # of fewer values, none: the error would have too few degrees of freedom
_CAUTION = 0.7
_FRACTION_TERMS = 500  # far more than the continued fraction takes


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A centre and how far off it may be; arrays where many were computed at once."""

    centre: Array  # the estimate.  # (...)
    error: Array  # its standard error.  # (...)
    degrees: Array  # of freedom that stand behind the error.  # (...)

    def interval(self, confidence: float) -> tuple[float, float]:
        """The bounds of a single estimate."""
        half = half_width(float(self.error), float(self.degrees), confidence)
        return float(self.centre) - half, float(self.centre) + half


def half_width(error: float, degrees: float, confidence: float) -> float:
    """Half the width of an interval whose centre has this standard error; `confidence` of such hold the truth, or more."""
    return error * student_t(1.0 - _CAUTION * (1.0 - confidence), degrees)


def trimmed_mean(values: Array) -> Estimate:
    """The trimmed mean along the last axis, of two values or more, with its error.  # (..., P) -> (...)"""
    count = values.shape[-1]
    if count < 2:
        raise ConfigError(f"an interval needs at least two values; found {count}.")
    cut = max(int(count >= _LEAST_TRIMMED), int(_TRIMMED * count + 1e-9))
    kept = count - 2 * cut
    ordered = np.sort(values, axis=-1)
    winsorised = np.clip(ordered, ordered[..., cut, None], ordered[..., count - 1 - cut, None])
    squares = winsorised.var(axis=-1) * count  # (...)
    centre = ordered[..., cut : count - cut].mean(axis=-1)
    return Estimate(
        centre=centre, error=np.sqrt(squares / (kept * (kept - 1))), degrees=np.full_like(squares, kept - 1, dtype=np.float64)
    )


def difference(a: Array, b: Array) -> Estimate:
    """The trimmed mean of `b` less that of `a`, drawn independently (Yuen and Welch).  # (..., P), (..., P') -> (...)"""
    left, right = trimmed_mean(a), trimmed_mean(b)
    squares = [left.error**2, right.error**2]
    whole = squares[0] + squares[1]
    shares = squares[0] ** 2 / left.degrees + squares[1] ** 2 / right.degrees
    least = np.minimum(left.degrees, right.degrees)
    degrees = np.divide(whole**2, shares, out=np.array(least, dtype=np.float64), where=np.asarray(shares > 0))
    return Estimate(centre=right.centre - left.centre, error=np.sqrt(whole), degrees=degrees)


@lru_cache(maxsize=4096)
def student_t(confidence: float, degrees: float) -> float:
    """The t within which a Student-t variable stays with probability `confidence`; exact to 10 digits.

    A confidence of 0.95 gives the 97.5 % quantile. The degrees of freedom need not be whole.
    """
    if not 0.0 < confidence < 1.0 or not degrees > 0.0:
        raise ConfigError(f"Student's t of confidence {confidence} and {degrees} degrees of freedom is not defined.")
    beyond = 1.0 - confidence
    low, high = 0.0, 1.0
    while _beyond(high, degrees) > beyond:
        low, high = high, 2.0 * high
    while high - low > 1e-13 * high:
        middle = (low + high) / 2.0
        if middle in (low, high):
            break
        low, high = (middle, high) if _beyond(middle, degrees) > beyond else (low, middle)
    return (low + high) / 2.0


def _beyond(t: float, degrees: float) -> float:
    """The probability that a Student-t variable is further from 0 than `t`."""
    return _incomplete_beta(degrees / (degrees + t * t), degrees / 2.0, 0.5)


def _incomplete_beta(x: float, a: float, b: float) -> float:
    """The regularised incomplete beta function (Abramowitz and Stegun 26.5.8)."""
    if x <= 0.0 or x >= 1.0:
        return min(1.0, max(0.0, x))
    if x > (a + 1.0) / (a + b + 2.0):  # where the fraction converges slowly
        return 1.0 - _incomplete_beta(1.0 - x, b, a)
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    return math.exp(log_front) / (a * _beta_fraction(x, a, b))


def _beta_fraction(x: float, a: float, b: float) -> float:
    """The continued fraction of the incomplete beta function, by Lentz's method."""
    value = c = 1.0
    d = 0.0
    for i in range(1, _FRACTION_TERMS):
        m = i // 2
        if i % 2:
            term = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        else:
            term = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        d = 1.0 / (1.0 + term * d)
        c = 1.0 + term / c
        value *= c * d
        if abs(c * d - 1.0) < 1e-15:
            break
    return value
