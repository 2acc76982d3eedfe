"""Simulated runs whose true answer is known: how often a verdict calls a difference that is not there, or finds one that is.

A run has `P` pairs of sessions and two cases (such as prefill and decode) that share them. For each case and arm, a session has
a level of its own, a quarter of whose variance the cases have in common; what a session measures drifts, is noisy, and has
spikes. The shape of the levels is what the verdict has to cope with:

    normal        levels scatter normally
    heavy-tailed  by Student's t with 3 degrees of freedom
    disturbed     normally, but one session in fifty is slower by a third
    skewed        only ever slower, by exponential amounts
    measured      ratios of pairs as drawn from `MEASURED`, each with either sign: the arms are alike

The two arms are alike but for a planted slowdown, so a verdict without one is a false alarm. Only the ratios of the parameters
matter to false alarms; they are chosen after `MEASURED`.

Shapes: `N` runs, `C` cases, `P` pairs, `K` blocks of a session, `R` samples of an arm in a block.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from maskpro_deploy.bench import intervals, stats
from maskpro_deploy.bench.arms import SAMPLES_PER_BLOCK
from maskpro_deploy.errors import ConfigError

Array = npt.NDArray[np.float64]
Draw = Callable[[np.random.Generator, tuple[int, ...]], Array]

CASES = 2
LEVEL = 0.025  # standard deviation of the level of a session
_SHARED = 0.25  # of the variance of levels: by the cases of a run
_BLOCKS = 2
_NOISE, _DRIFT = 0.03, 0.01  # of a sample, and from one to the next
_SPIKES, _SPIKE = 0.05, 0.3  # part of the samples, and by how much they are slower on average
_DISTURBED, _DISTURBANCE = 0.02, 0.33
_CHUNK = 250  # runs at a time: bounds the memory

# logarithms of the ratios of 24 pairs of sessions of the demo bundle against itself (prefill of 64 tokens, decode at context 64):
# 2 cores of a shared virtual machine, on which others computed meanwhile; how: docs/benchmark.md
MEASURED = np.array(
    [
        *(0.018, 0.033, -0.023, 0.074, -0.022, 0.011, -0.018, 0.101, -0.023, -0.029, 0.033, -0.348),
        *(-0.018, 0.023, 0.034, -0.007, -0.05, 0.083, -0.002, -0.025, -0.015, -0.004, -0.001, 0.068),
        *(-0.011, 0.015, 0.024, -0.027, 0.006, 0.027, 0.013, -0.012, -0.054, 0.027, -0.009, -0.052),
        *(-0.102, -0.067, 0.131, -0.028, -0.019, 0.11, -0.049, -0.023, 0.04, -0.215, 0.098, 0.026),
    ]
).reshape(CASES, 24)


SHAPES: dict[str, Draw | None] = {  # levels in units of LEVEL; None: pairs are drawn from MEASURED
    "normal": lambda rng, shape: rng.normal(0.0, 1.0, shape),
    "heavy-tailed": lambda rng, shape: rng.standard_t(3, shape) / np.sqrt(3.0),
    "disturbed": lambda rng, shape: rng.normal(0.0, 1.0, shape) + (rng.random(shape) < _DISTURBED) * (_DISTURBANCE / LEVEL),
    "skewed": lambda rng, shape: rng.exponential(1.0, shape),
    "measured": None,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """What the verdicts of simulated runs came to, as parts of the runs."""

    alone: float  # runs that call a difference in their first case, judged alone
    together: float  # runs that call one in either of their two cases, judged together
    found: float  # runs that call the first arm faster in their first case, judged alone
    found_together: float  # the same, judged together with the second case


def count_verdicts(shape: str, *, pairs: int, runs: int, seed: int = 0, slowdown: float = 0.0) -> Counts:
    """Simulate runs of so many pairs of sessions, with one of `SHAPES`, and judge them as the benchmark does.

    The second arm is slower by `slowdown`, a fraction; without one, every verdict is a false alarm.
    """
    if shape not in SHAPES or runs < 1:
        raise ConfigError(f"cannot simulate {runs} runs of noise {shape!r}. Known: {', '.join(SHAPES)}.")
    rng = np.random.default_rng([seed, pairs, list(SHAPES).index(shape)])
    chunks = [min(_CHUNK, runs - start) for start in range(0, runs, _CHUNK)]
    logs = np.concatenate([draw_pair_ratios(rng, shape, count, pairs, slowdown) for count in chunks])  # (N, C, P)
    alone, together = (find_differences(logs, comparisons=count) for count in (1, CASES))
    faster = intervals.trimmed_mean(logs).centre[:, 0] > 0
    return Counts(
        alone=float(alone[:, 0].mean()),
        together=float(together.any(axis=1).mean()),
        found=float((alone[:, 0] & faster).mean()),
        found_together=float((together[:, 0] & faster).mean()),
    )


def find_differences(logs: Array, *, comparisons: int) -> npt.NDArray[np.bool_]:
    """Which comparisons a verdict calls different, where it holds together with so many.  # (..., P) -> (...)"""
    estimate = intervals.trimmed_mean(logs)
    degrees = float(estimate.degrees.flat[0])
    bound = estimate.error * intervals.half_width(1.0, degrees, stats.each_confidence(comparisons))
    different: npt.NDArray[np.bool_] = np.abs(estimate.centre) > bound
    return different


def draw_pair_ratios(rng: np.random.Generator, shape: str, runs: int, pairs: int, slowdown: float = 0.0) -> Array:
    """Logarithms of the ratios of pairs; above 0 the first arm is faster.  # (N, C, P)"""
    draw = SHAPES[shape]
    if draw is None:
        drawn = MEASURED[:, rng.integers(MEASURED.shape[1], size=(runs, pairs))].swapaxes(0, 1)  # (N, C, P)
        signed: Array = drawn * rng.choice((-1.0, 1.0), (runs, 1, pairs)) + np.log1p(slowdown)
        return signed
    return stats.pair_log_ratio(*draw_session_times(rng, draw, runs, pairs, slowdown))


def draw_session_times(rng: np.random.Generator, draw: Draw, runs: int, pairs: int, slowdown: float = 0.0) -> tuple[Array, Array]:
    """Times of both arms in blocks A B B A and B A A B.  # two of (N, C, P, K, R)"""
    size = (runs, CASES, pairs, _BLOCKS, 2 * SAMPLES_PER_BLOCK)
    steps = rng.normal(0.0, _DRIFT, (*size[:3], size[3] * size[4]))
    drift = np.cumsum(steps, axis=-1).reshape(size)
    spikes = (rng.random(size) < _SPIKES) * rng.exponential(_SPIKE, size)
    slots = np.exp(drift + rng.normal(0.0, _NOISE, size)) * (1.0 + spikes)
    even = (np.arange(_BLOCKS) % 2 == 0)[:, None]
    outer, inner = slots[..., [0, 3]], slots[..., [1, 2]]
    shared, own = draw(rng, (2, runs, 1, pairs, 1, 1)), draw(rng, (2, *size[:3], 1, 1))
    levels = np.exp(LEVEL * (np.sqrt(_SHARED) * shared + np.sqrt(1.0 - _SHARED) * own))  # (arms, N, C, P, 1, 1)
    return np.where(even, outer, inner) * levels[0], np.where(even, inner, outer) * levels[1] * (1.0 + slowdown)
