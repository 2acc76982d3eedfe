"""Cosine and sine tables of rotary position embedding (RoPE), computed in float64.

Pair i of a head turns by the angle p * f_i at position p, with f_i = theta ** (-2 i / D). Shapes: `P` positions, `D` size of
the part of a head that is turned.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from maskpro_deploy.exporters.graph.rope_config import RopeConfig

Floats = npt.NDArray[np.float64]


def compute_frequencies(rope: RopeConfig, head_dim: int, *, beyond: bool = False) -> Floats:
    """The angle per position of each pair.  # (D / 2,)

    Args:
        rope: kind and fields.
        head_dim: size of a head.
        beyond: for sequences longer than the original length, which "longrope" treats otherwise.
    """
    dim = rope.dim or head_dim
    f: Floats = rope.theta ** (-np.arange(0, dim, 2, dtype=np.float64) / dim)
    if rope.kind == "linear":
        return f / rope.factor
    if rope.kind == "llama3":
        return _blend_llama3(f, rope)
    if rope.kind == "yarn":
        return _blend_yarn(f, rope, dim)
    if rope.kind == "longrope":
        stretched: Floats = f / np.asarray(rope.long_factor if beyond else rope.short_factor)
        return stretched
    return f


def _blend_llama3(f: Floats, rope: RopeConfig) -> Floats:
    """Long wavelengths are stretched, short ones kept, those between blended linearly in turns per original context."""
    turns = rope.original_length * f / (2 * np.pi)
    blend = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    keep = np.clip(blend, 0.0, 1.0)
    return (1 - keep) * f / rope.factor + keep * f


def _blend_yarn(f: Floats, rope: RopeConfig, dim: int) -> Floats:
    """Pairs of many turns are kept, those of few stretched, those between blended linearly in their number."""

    def pair(turns: float) -> float:
        """The (fractional) pair that makes so many turns in the original context."""
        return dim * math.log(rope.original_length / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = pair(rope.beta_fast), pair(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    stretch = np.clip((np.arange(dim // 2) - low) / max(high - low, 1e-3), 0.0, 1.0)
    result: Floats = stretch * f / rope.factor + (1 - stretch) * f
    return result


def make_tables(rope: RopeConfig, head_dim: int, length: int) -> tuple[Table, Table]:
    """Cosines and sines for positions 0 to `length` - 1.  # (P, D / 2) each

    For "longrope" that reaches beyond its original length there are two tables, one behind the other: rows up to
    `second_table_start` serve sequences within that length, the following ones those that are longer.
    """
    return Table(rope, head_dim, length, np.cos), Table(rope, head_dim, length, np.sin)


class Table:
    """A table that is computed as it is read: whole, one of a model for long texts takes more memory than all else here.

    Args:
        rope: kind and fields.
        head_dim: size of a head.
        length: positions.
        function: of the angles.
    """

    def __init__(self, rope: RopeConfig, head_dim: int, length: int, function: Callable[[Floats], Floats]) -> None:
        self._factor, self._function = rope.attention_factor, function
        self._first = second_table_start(rope, length) or length
        self._near = compute_frequencies(rope, head_dim)
        self._far = compute_frequencies(rope, head_dim, beyond=True)
        self.shape: tuple[int, ...] = (length + second_table_start(rope, length), len(self._near))

    def __getitem__(self, rows: slice) -> Floats:
        index = np.arange(*rows.indices(self.shape[0]))[:, None]
        beyond = index >= self._first
        angles = np.where(beyond, index - self._first, index) * np.where(beyond, self._far, self._near)
        return self._function(angles) * self._factor


def second_table_start(rope: RopeConfig, length: int) -> int:
    """The row at which the table for long sequences begins; 0 if there is none."""
    return rope.original_length if rope.kind == "longrope" and length > rope.original_length else 0
