"""What a decoder template needs from `config.json`, checked field by field.

Both generations of RoPE fields are read: `rope_parameters`, and the older `rope_theta` with `rope_scaling`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from maskpro_deploy.errors import FormatError, InputError

ROPE_KINDS = ("default", "linear", "llama3")
ACTIVATIONS = ("silu", "swish")
# model_type -> may it be exported; what differs between them is checked in `DecoderConfig.parse`
ARCHITECTURES = ("llama", "mistral")


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeConfig:
    """Rotary position embedding: base frequency and how it is stretched.

    Attributes:
        kind: one of `ROPE_KINDS`.
        theta: base of the frequencies.
        factor: by how much positions are stretched ("linear", "llama3").
        low_freq_factor, high_freq_factor, original_length: the band of wavelengths in which "llama3" blends.
    """

    kind: str
    theta: float
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_length: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderConfig:
    """Sizes and kinds of a LLaMA-like decoder."""

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_length: int
    norm_eps: float
    tied: bool
    attention_bias: bool
    mlp_bias: bool
    rope: RopeConfig

    @classmethod
    def parse(cls, config: Mapping[str, Any]) -> DecoderConfig:
        """Read `config.json`.

        Raises:
            InputError: the model is of a kind that has no template; the message names what is supported.
            FormatError: a field is missing or makes no sense.
        """
        model_type = str(config.get("model_type", "none"))
        _supported("model_type", model_type, ARCHITECTURES)
        _supported("hidden_act", config.get("hidden_act", "silu"), ACTIVATIONS)
        if (window := config.get("sliding_window")) is not None and config.get("use_sliding_window", True):
            raise InputError(
                f"config.json: sliding_window {window} is not supported; only full attention is (sliding_window null)."
            )
        hidden, heads = _positive(config, "hidden_size"), _positive(config, "num_attention_heads")
        kv_heads = _positive(config, "num_key_value_heads", heads)
        head_dim = _positive(config, "head_dim", hidden // heads)
        if heads % kv_heads:
            raise FormatError(f"config.json: num_attention_heads {heads} is no multiple of num_key_value_heads {kv_heads}.")
        if head_dim % 2:
            raise FormatError(f"config.json: head_dim {head_dim} is odd; rotary embedding needs pairs.")
        eps = config.get("rms_norm_eps")
        if not isinstance(eps, (int, float)) or eps <= 0:
            raise FormatError(f"config.json: rms_norm_eps must be a number above 0, found {eps!r}.")
        return cls(
            model_type=model_type,
            vocab_size=_positive(config, "vocab_size"),
            hidden_size=hidden,
            intermediate_size=_positive(config, "intermediate_size"),
            num_layers=_positive(config, "num_hidden_layers"),
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_dim=head_dim,
            max_length=_positive(config, "max_position_embeddings"),
            norm_eps=float(eps),
            tied=bool(config.get("tie_word_embeddings", False)),
            attention_bias=bool(config.get("attention_bias", False)),
            mlp_bias=bool(config.get("mlp_bias", False)),
            rope=_rope(config),
        )


def _rope(config: Mapping[str, Any]) -> RopeConfig:
    """RoPE from `rope_parameters`, or from `rope_theta` and `rope_scaling`."""
    fields: dict[str, Any] = {"rope_theta": config.get("rope_theta", 10000.0)}
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
    kind = kinds[0] if kinds else "default"
    _supported("rope_type", kind, ROPE_KINDS)
    if fields.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0)) not in (None, 1, 1.0):
        raise InputError("config.json: partial_rotary_factor other than 1 is not supported: whole heads are rotated.")
    rope = RopeConfig(kind=kind, theta=_number(fields, "rope_theta"))
    if kind == "default":
        return rope
    if kind == "linear":
        return RopeConfig(kind=kind, theta=rope.theta, factor=_number(fields, "factor"))
    return RopeConfig(
        kind=kind,
        theta=rope.theta,
        factor=_number(fields, "factor"),
        low_freq_factor=_number(fields, "low_freq_factor"),
        high_freq_factor=_number(fields, "high_freq_factor"),
        original_length=int(_number(fields, "original_max_position_embeddings")),
    )


def _supported(field: str, value: object, supported: tuple[str, ...]) -> None:
    if value not in supported:
        raise InputError(f"config.json: {field} {value!r} is not supported. Supported: {', '.join(supported)}.")


def _positive(config: Mapping[str, Any], field: str, default: int | None = None) -> int:
    value = config.get(field)
    if value is None:
        value = default
    if value is None:
        raise FormatError(f"config.json has no {field!r}; the export needs it.")
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
        raise FormatError(f"config.json: {field} must be a whole number above 0, found {value!r}.")
    return value


def _number(fields: Mapping[str, Any], field: str) -> float:
    value = fields.get(field)
    if not isinstance(value, (int, float)) or isinstance(value, bool) or value <= 0:
        raise FormatError(f"config.json: RoPE needs {field!r} as a number above 0, found {value!r}.")
    return float(value)
