"""Weights that hold a pattern, and damage to them."""

from __future__ import annotations

import ml_dtypes
import numpy as np
from hypothesis import strategies as st

from maskpro_deploy.pattern import NMPattern

FLOATS = [
    np.dtype(t) for t in (np.float64, np.float32, np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2)
]
STORED = [*FLOATS, np.dtype(ml_dtypes.float8_e4m3fnuz), np.dtype(ml_dtypes.float8_e5m2fnuz), np.dtype(np.int8)]
PATTERNS = [NMPattern(*p) for p in ((1, 2), (2, 4), (1, 4), (4, 8), (8, 16), (3, 5), (2, 3), (5, 32))]
seeds = st.integers(0, 2**32 - 1)


def lawful(rng: np.random.Generator, shape: tuple[int, ...], axis: int, pattern: NMPattern, dtype: np.dtype) -> np.ndarray:
    """Values with exactly N nonzeros in every group along `axis`, exact in every dtype."""
    moved = [shape[i] for i in range(len(shape)) if i != axis] + [shape[axis]]
    mask = pattern.top(rng.random(moved))
    values = rng.integers(1, 7, size=moved) * rng.choice([-1, 1], size=moved)
    return np.ascontiguousarray(np.moveaxis(np.where(mask, values, 0), -1, axis)).astype(dtype)


def zero_coordinates(rng: np.random.Generator, array: np.ndarray, *, zero: bool) -> tuple[int, ...]:
    """A random place that is zero, or one that is not."""
    places = np.argwhere((array.astype(np.float64) == 0) == zero)
    return tuple(int(i) for i in places[rng.integers(len(places))])


def damaged(rng: np.random.Generator, array: np.ndarray, kind: str) -> tuple[np.ndarray, tuple[int, ...]]:
    """A copy with one weight changed ("filled", "erased" or "nan"), and where."""
    at = zero_coordinates(rng, array, zero=kind == "filled")
    copy = array.copy()
    copy[at] = {"filled": 1, "erased": 0, "nan": np.nan}[kind]
    return copy, at


def holds_by_hand(array: np.ndarray, axis: int, pattern: NMPattern, *, at_most: bool = False) -> bool:
    """The law, checked group by group in plain Python."""
    lines = np.moveaxis(array.astype(np.float64), axis, -1).reshape(-1, array.shape[axis])
    if array.shape[axis] % pattern.m or not np.isfinite(lines).all():
        return False
    for line in lines:
        for start in range(0, line.size, pattern.m):
            count = sum(value != 0 for value in line[start : start + pattern.m])
            if count > pattern.n or (count < pattern.n and not at_most):
                return False
    return True
