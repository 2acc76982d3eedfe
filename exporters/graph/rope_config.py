"""Rotary position embedding (RoPE) as `config.json` describes it.

Both generations of fields are read: `rope_parameters`, and the older `rope_theta` with `rope_scaling`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from maskpro_deploy.errors import FormatError, InputError

ROPE_KINDS = ("default", "linear", "dynamic", "llama3", "yarn", "longrope")
_DEFAULT_THETA = 10000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeConfig:
    """Rotary position embedding: base frequency and how it is stretched.

    Attributes:
        kind: one of `ROPE_KINDS`.
        theta: base of the frequencies.
        dim: how many values of a head are turned; 0 for all.
        factor: by how much positions are stretched.
        original_length: the length that the model was first trained for.
        low_freq_factor, high_freq_factor: the band of turns in which "llama3" blends.
        beta_fast, beta_slow, truncate: the same for "yarn", and whether its bounds are whole numbers.
        attention_factor: factor of the cosines and sines ("yarn" and "longrope").
        short_factor, long_factor: divisors of the frequencies up to and beyond `original_length` ("longrope").
    """

    kind: str
    theta: float
    dim: int = 0
    factor: float = 1.0
    original_length: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float = 1.0
    short_factor: tuple[float, ...] = ()
    long_factor: tuple[float, ...] = ()


def read_rope(config: Mapping[str, Any], head_dim: int, default_theta: float = _DEFAULT_THETA) -> RopeConfig:
    """RoPE from `rope_parameters`, or from `rope_theta` and `rope_scaling`.

    Raises:
        InputError: a kind that is not supported.
        FormatError: a field is missing or makes no sense.
    """
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
    """RoPE of one kind from its own fields.

    Raises:
        InputError: the kind is not supported.
        FormatError: a field is missing or makes no sense.
    """
    kind = "longrope" if kind == "su" else kind
    if kind not in ROPE_KINDS:
        raise InputError(f"config.json: rope_type {kind!r} is not supported. Supported: {', '.join(ROPE_KINDS)}.")
    basic: dict[str, Any] = {"theta": _read_number(fields, "rope_theta"), "dim": _read_dim(fields, config, head_dim)}
    if kind in ("default", "dynamic"):
        # "dynamic" stretches only beyond max_position_embeddings, which no export reaches
        return RopeConfig(kind=kind, **basic)
    if kind == "linear":
        return RopeConfig(kind=kind, factor=_read_number(fields, "factor"), **basic)
    original = "original_max_position_embeddings"
    basic["original_length"] = int(_read_number({original: config.get(original), **fields}, original))
    if kind == "llama3":
        bands: dict[str, Any] = {name: _read_number(fields, name) for name in ("factor", "low_freq_factor", "high_freq_factor")}
        return RopeConfig(kind=kind, **basic, **bands)
    if kind == "yarn":
        return RopeConfig(kind=kind, **basic, **_read_yarn(fields, config, basic["original_length"]))
    return RopeConfig(kind=kind, **basic, **_read_longrope(fields, config, basic["original_length"], basic["dim"]))


def _read_dim(fields: Mapping[str, Any], config: Mapping[str, Any], head_dim: int) -> int:
    """How many values of a head are turned."""
    share = fields.get("partial_rotary_factor", config.get("partial_rotary_factor"))
    share = 1.0 if share is None else _read_number({"partial_rotary_factor": share}, "partial_rotary_factor")
    dim = int(head_dim * share)
    if dim % 2 or not 0 < dim <= head_dim:
        raise FormatError(f"config.json: RoPE would turn {dim} of head_dim {head_dim}; it turns pairs, so {dim} must not be odd.")
    return dim


def _read_stretch(fields: Mapping[str, Any], config: Mapping[str, Any], original: int) -> float:
    """The factor, by default from the two lengths."""
    if fields.get("factor") is not None:
        return _read_number(fields, "factor")
    return _read_number(config, "max_position_embeddings") / original


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


def _read_number(fields: Mapping[str, Any], field: str) -> float:
    value = fields.get(field)
    if not isinstance(value, (int, float)) or isinstance(value, bool) or value <= 0:
        raise FormatError(f"config.json: RoPE needs {field!r} as a number above 0, found {value!r}.")
    return float(value)
