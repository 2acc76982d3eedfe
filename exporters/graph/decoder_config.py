"""What decoder templates need of `config.json`, checked field by field.

`DecoderConfig` describes every supported decoder; `read_base_config` reads the fields that nearly all share under the same names,
and each architecture's own `read` changes what it does otherwise. A value of a kind that is not supported is an InputError that
names what is; a field that is missing or makes no sense is a FormatError.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from maskpro_deploy.errors import FormatError, InputError
from maskpro_deploy.exporters.graph.rope import RopeConfig, read_number, read_rope

# config's name of an activation -> the operators that compute it (`layers.Layers.activation`)
ACTIVATIONS = {
    "silu": "silu", "swish": "silu", "relu": "relu", "gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh",
}  # fmt: skip
_LAYER_TYPES = ("full_attention", "sliding_attention")


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderConfig:
    """Sizes and kinds of a decoder."""

    model_type: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_length: int  # the longest sequence, in tokens
    scale: float  # factor of the attention scores
    windows: tuple[int | None, ...]  # how far each layer looks back, itself included; None for all the way
    ropes: tuple[RopeConfig | None, ...]  # rotary embedding of each layer; None for a layer without
    intermediate_size: int = 0
    norm_eps: float = 0.0
    tied: bool = False
    activation: str = ""
    attention_bias: bool = False  # which projections have a bias: q, k and v; o; the feed-forward ones
    output_bias: bool = False
    mlp_bias: bool = False
    attention_softcap: float | None = None  # scores x become cap * tanh(x / cap); None for no cap
    logit_softcap: float | None = None


def read_base_config(config: Mapping[str, Any], *, activation: str = "hidden_act", eps: str = "rms_norm_eps") -> DecoderConfig:
    """Read LLaMA's fields, which most architectures share; `activation` and `eps` name the fields of these two."""
    hidden, heads = read_positive(config, "hidden_size"), read_positive(config, "num_attention_heads")
    kv_heads = read_positive(config, "num_key_value_heads", heads)
    head_dim = read_positive(config, "head_dim", max(1, hidden // heads))
    if heads % kv_heads:
        raise FormatError(f"config.json: num_attention_heads {heads} is no multiple of num_key_value_heads {kv_heads}.")
    layers = read_positive(config, "num_hidden_layers")
    bias = bool(config.get("attention_bias", False))
    rope = read_rope(config, head_dim)
    return DecoderConfig(
        model_type=str(config["model_type"]),
        vocab_size=read_positive(config, "vocab_size"),
        hidden_size=hidden,
        intermediate_size=read_positive(config, "intermediate_size"),
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        max_length=read_positive(config, "max_position_embeddings"),
        norm_eps=read_number(config, eps),
        tied=bool(config.get("tie_word_embeddings", False)),
        activation=read_activation(config, activation, "silu"),
        attention_bias=bias,
        output_bias=bias,
        mlp_bias=bool(config.get("mlp_bias", False)),
        scale=head_dim**-0.5,
        windows=(None,) * layers,
        ropes=(rope,) * layers,
    )


def read_unturned_config(config: Mapping[str, Any], *, eps: str, activation: str, bias: bool) -> DecoderConfig:
    """As `read_base_config`, with learned positions in place of RoPE; `activation` is a default, `bias` holds for all."""
    base = read_base_config({**config, "hidden_act": "silu"}, eps=eps)
    return dataclasses.replace(
        base,
        activation=read_activation(config, "activation_function", activation),
        attention_bias=bias,
        output_bias=bias,
        mlp_bias=bias,
        ropes=(None,) * base.num_layers,
    )


def read_activation(config: Mapping[str, Any], field: str, default: str) -> str:
    """The kind of activation."""
    value = config.get(field) or default
    check_supported(field, value, ACTIVATIONS)
    return ACTIVATIONS[value]


def read_windows(config: Mapping[str, Any], default: Sequence[str]) -> tuple[int | None, ...]:
    """How far each layer looks back, from its kind in `layer_types`, or in `default`, and `sliding_window`."""
    types = config.get("layer_types")
    types = list(default) if types is None else types
    if not isinstance(types, list) or len(types) != len(default):
        raise FormatError(f"config.json: layer_types must name one kind for each of the {len(default)} layers.")
    for kind in types:
        check_supported("layer_types", kind, _LAYER_TYPES)
    return tuple(read_positive(config, "sliding_window") if kind == "sliding_attention" else None for kind in types)


def read_switched_windows(config: Mapping[str, Any], default: Sequence[str]) -> tuple[int | None, ...]:
    """As `read_windows`, if `use_sliding_window` says so; else all the way."""
    if not config.get("use_sliding_window") or config.get("sliding_window") is None:
        return (None,) * len(default)
    return read_windows(config, default)


def read_same_windows(config: Mapping[str, Any], layers: int) -> tuple[int | None, ...]:
    """How far each layer looks back where all do alike, from `sliding_window`; all the way where it is null."""
    window = None if config.get("sliding_window") is None else read_positive(config, "sliding_window")
    return (window,) * layers


def check_supported(field: str, value: object, known: Collection[str]) -> None:
    """Refuse what is not known."""
    if value not in known:
        raise InputError(f"config.json: {field} {value!r} is not supported. Supported: {', '.join(known)}.")


def require_value(config: Mapping[str, Any], field: str, value: object) -> None:
    """Refuse any but the one supported value of a field, its default."""
    if (actual := config.get(field, value)) != value:
        raise InputError(f"config.json: {field} {actual!r} is not supported; only {value!r} is.")


def read_positive(config: Mapping[str, Any], field: str, default: int | None = None) -> int:
    """A whole number above 0."""
    value = config.get(field)
    if value is None:
        value = default
    if value is None:
        raise FormatError(f"config.json has no {field!r}; the export needs it.")
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
        raise FormatError(f"config.json: {field} must be a whole number above 0, found {value!r}.")
    return value


def read_softcap(config: Mapping[str, Any], field: str) -> float | None:
    """An optional softcap."""
    return None if config.get(field) is None else read_number(config, field)
