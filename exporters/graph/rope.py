"""Rotary position embedding (RoPE): as `config.json` describes it, and its tables of cosines and sines, computed in float64.

Both generations of fields are read: `rope_parameters`, and the older `rope_theta` with `rope_scaling`. Pair i of a head turns by
the angle p * f_i at position p, with f_i = theta ** (-2 i / D). Shapes: `P` positions, `D` size of the part of a head that is
turned.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from maskpro_deploy.errors import FormatError, InputError

ROPE_KINDS = ("default", "linear", "dynamic", "llama3", "yarn", "longrope")
_DEFAULT_THETA = 10000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeConfig:
    """Rotary position embedding: base frequency and how it is stretched."""

    kind: str  # one of `ROPE_KINDS`
    theta: float  # base of the frequencies
    dim: int = 0  # how many values of a head are turned; 0 for all
    factor: float = 1.0  # by how much positions are stretched
    original_length: int = 0  # the length that the model was first trained for
    low_freq_factor: float = 1.0  # the band of turns in which "llama3" blends
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0  # the same for "yarn", and whether its bounds are whole numbers
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float = 1.0  # factor of the cosines and sines ("yarn" and "longrope")
    short_factor: tuple[float, ...] = ()  # divisors of the frequencies up to and beyond `original_length` ("longrope")
    long_factor: tuple[float, ...] = ()


def read_rope(config: Mapping[str, Any], head_dim: int, default_theta: float = _DEFAULT_THETA) -> RopeConfig:
    """RoPE from `rope_parameters`, or from `rope_theta` and `rope_scaling`; refuses as `decoder_config`."""
    fields: dict[str, Any] = {"rope_theta": config.get("rope_theta", default_theta)}
    kinds: list[str] = []
    for place in ("rope_scaling", "rope_parameters"):
        value = config.get(place)
        if value is None:
            continue
        if not isinstance(value, dict):
            raise FormatError(f"config.json: {place} must be an object, found {value!r}.")
        fields |= value
        kinds.append(str(value.get("rope_type", value.get("type", "default"))))
    if len(set(kinds)) > 1:
        raise FormatError(f"config.json: rope_scaling says {kinds[0]!r}, rope_parameters says {kinds[1]!r}. Remove one of them.")
    return make_rope(kinds[0] if kinds else "default", fields, config, head_dim)


def make_rope(kind: str, fields: Mapping[str, Any], config: Mapping[str, Any], head_dim: int) -> RopeConfig:
    """RoPE of one kind from its own fields."""
    kind = "longrope" if kind == "su" else kind
    if kind not in ROPE_KINDS:
        raise InputError(f"config.json: rope_type {kind!r} is not supported. Supported: {', '.join(ROPE_KINDS)}.")
    basic: dict[str, Any] = {"theta": read_number(fields, "rope_theta"), "dim": _read_dim(fields, config, head_dim)}
    if kind in ("default", "dynamic"):
        # "dynamic" stretches only beyond max_position_embeddings, which no export reaches
        return RopeConfig(kind=kind, **basic)
    if kind == "linear":
        return RopeConfig(kind=kind, factor=read_number(fields, "factor"), **basic)
    original = "original_max_position_embeddings"
    basic["original_length"] = int(read_number({original: config.get(original), **fields}, original))
    if kind == "llama3":
        bands: dict[str, Any] = {name: read_number(fields, name) for name in ("factor", "low_freq_factor", "high_freq_factor")}
        return RopeConfig(kind=kind, **basic, **bands)
    if kind == "yarn":
        return RopeConfig(kind=kind, **basic, **_read_yarn(fields, config, basic["original_length"]))
    return RopeConfig(kind=kind, **basic, **_read_longrope(fields, config, basic["original_length"], basic["dim"]))


def _read_dim(fields: Mapping[str, Any], config: Mapping[str, Any], head_dim: int) -> int:
    """How many values of a head are turned."""
    share = fields.get("partial_rotary_factor", config.get("partial_rotary_factor"))
    share = 1.0 if share is None else read_number({"partial_rotary_factor": share}, "partial_rotary_factor")
    dim = int(head_dim * share)
    if dim % 2 or not 0 < dim <= head_dim:
        raise FormatError(f"config.json: RoPE would turn {dim} of head_dim {head_dim}; it turns pairs, so {dim} must not be odd.")
    return dim


def _read_stretch(fields: Mapping[str, Any], config: Mapping[str, Any], original: int) -> float:
    """The factor, by default from the two lengths."""
    if fields.get("factor") is not None:
        return read_number(fields, "factor")
    return read_number(config, "max_position_embeddings") / original


def _read_yarn(fields: Mapping[str, Any], config: Mapping[str, Any], original: int) -> dict[str, Any]:
    factor = _read_stretch(fields, config, original)

    def temperature(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1 if factor > 1 else 1.0

    attention = fields.get("attention_factor")
    if attention is None:
        both = fields.get("mscale"), fields.get("mscale_all_dim")
        attention = temperature(both[0]) / temperature(both[1]) if both[0] and both[1] else temperature(1)
    return {
        "factor": factor,
        "attention_factor": float(attention),
        "beta_fast": float(fields.get("beta_fast") or 32),
        "beta_slow": float(fields.get("beta_slow") or 1),
        "truncate": bool(fields.get("truncate", True)),
    }


def _read_longrope(fields: Mapping[str, Any], config: Mapping[str, Any], original: int, dim: int) -> dict[str, Any]:
    factor = _read_stretch(fields, config, original)
    attention = fields.get("attention_factor")
    if attention is None:
        attention = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    lists: dict[str, Any] = {}
    for name in ("short_factor", "long_factor"):
        values = fields.get(name)
        if not isinstance(values, list) or len(values) != dim // 2 or not all(isinstance(v, (int, float)) for v in values):
            raise FormatError(f"config.json: RoPE needs {name!r} as a list of {dim // 2} numbers, found {values!r:.60}.")
        lists[name] = tuple(float(v) for v in values)
    return {"factor": factor, "attention_factor": float(attention), **lists}


def read_number(fields: Mapping[str, Any], field: str) -> float:
    """A number above 0."""
    value = fields.get(field)
    if not isinstance(value, (int, float)) or isinstance(value, bool) or value <= 0:
        raise FormatError(f"config.json: {field} must be a number above 0, found {value!r}.")
    return float(value)


Floats = npt.NDArray[np.float64]


def compute_frequencies(rope: RopeConfig, head_dim: int, *, beyond: bool = False) -> Floats:
    """The angle per position of each pair; "longrope" has others `beyond` the original length.  # (D / 2,)"""
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
    """A table that is computed as it is read: whole, one of a model for long texts takes more memory than all else here."""

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
