"""Cosine and sine tables of rotary position embedding (RoPE), computed in float64.

Pair i of a head turns by the angle p * f_i at position p, with f_i = theta ** (-2 i / D). Shapes: `P` positions, `D` head size.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from maskpro_deploy.exporters.model_config import RopeConfig


def frequencies(rope: RopeConfig, head_dim: int) -> npt.NDArray[np.float64]:
    """The angle per position of each pair.  # (D / 2,)"""
    f = rope.theta ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    if rope.kind == "linear":
        return f / rope.factor
    if rope.kind == "llama3":
        return _llama3(f, rope)
    return f


def _llama3(f: npt.NDArray[np.float64], rope: RopeConfig) -> npt.NDArray[np.float64]:
    """Long wavelengths are stretched, short ones kept, those between blended linearly in turns per original context."""
    turns = rope.original_length * f / (2 * np.pi)
    blend = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    keep = np.clip(blend, 0.0, 1.0)
    return (1 - keep) * f / rope.factor + keep * f


def tables(rope: RopeConfig, head_dim: int, length: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Cosines and sines for positions 0 to `length` - 1.  # (P, D / 2) each"""
    angles = np.outer(np.arange(length, dtype=np.float64), frequencies(rope, head_dim))
    return np.cos(angles), np.sin(angles)
