"""Gemma 2 and 3 (text): norms before and after each part, a scaled embedding, windows in most layers.

    h = embedding[tokens] * sqrt(E)
    for every layer:
        h = h + norm(o_proj(attention(...)))                            x = norm(h)
        h = h + norm(down_proj(gelu(gate_proj(x)) * up_proj(x)))        x = norm(h)
    norm(x) = x / rms(x) * (1 + weight)

Gemma 2 caps its attention scores and its logits: cap * tanh(x / cap). Gemma 3 norms q and k of each head instead, and turns
them by two kinds of rotary embedding: one in the layers with a window, one in those without.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from functools import partial
from typing import Any

from maskpro_deploy.errors import FormatError
from maskpro_deploy.exporters.architectures.template import Template
from maskpro_deploy.exporters.graph.builder import Graph
from maskpro_deploy.exporters.graph.decoder_config import (
    DecoderConfig,
    read_base_config,
    read_positive,
    read_softcap,
    read_windows,
    require_value,
)
from maskpro_deploy.exporters.graph.layers import Layers
from maskpro_deploy.exporters.graph.rope import RopeConfig, make_rope, read_number

_DEFAULTS = {"tie_word_embeddings": True, "hidden_activation": "gelu_pytorch_tanh", "head_dim": 256, "sliding_window": 4096}
_GLOBAL_THETA, _LOCAL_THETA = 1e6, 1e4


def read_gemma2(config: Mapping[str, Any]) -> DecoderConfig:
    """Every second layer, from the first on, has a window."""
    caps = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
    return _read_common({**_DEFAULTS, **caps, **config}, every=2)


def read_gemma3(config: Mapping[str, Any]) -> DecoderConfig:
    """All layers but every sixth have a window, and a rotary embedding of their own."""
    config = {**_DEFAULTS, **config}
    require_value(config, "use_bidirectional_attention", False)
    ropes = _read_two_ropes(config, read_positive(config, "head_dim"))
    plain = {k: v for k, v in config.items() if k not in ("rope_parameters", "rope_scaling")}
    base = _read_common(plain, every=read_positive(config, "sliding_window_pattern", 6))
    # the attention cap of the config is not used by this architecture
    chosen = tuple(ropes["full_attention" if window is None else "sliding_attention"] for window in base.windows)
    return dataclasses.replace(base, ropes=chosen, attention_softcap=None)


def _read_common(config: Mapping[str, Any], every: int) -> DecoderConfig:
    base = read_base_config(config, activation="hidden_activation")
    default = ["sliding_attention" if (i + 1) % every else "full_attention" for i in range(base.num_layers)]
    return dataclasses.replace(
        base,
        mlp_bias=False,
        scale=read_number({"query_pre_attn_scalar": 256, **config}, "query_pre_attn_scalar") ** -0.5,
        windows=read_windows(config, default),
        attention_softcap=read_softcap(config, "attn_logit_softcapping"),
        logit_softcap=read_softcap(config, "final_logit_softcapping"),
    )


def _read_two_ropes(config: Mapping[str, Any], head_dim: int) -> dict[str, RopeConfig]:
    """From `rope_parameters` with one object for each kind of layer, or from the older fields."""
    ropes = {}
    places = config.get("rope_parameters") or {}
    older = {
        "full_attention": {"rope_theta": config.get("rope_theta", _GLOBAL_THETA), **(config.get("rope_scaling") or {})},
        "sliding_attention": {"rope_theta": config.get("rope_local_base_freq", _LOCAL_THETA)},
    }
    for kind, default in older.items():
        own = places.get(kind) or {}
        if not isinstance(own, dict):
            raise FormatError(f"config.json: rope_parameters of {kind} must be an object, found {own!r}.")
        fields = {**default, **own}
        ropes[kind] = make_rope(str(fields.get("rope_type", fields.get("type", "default"))), fields, config, head_dim)
    return ropes


def build(m: Layers, *, head_norm: bool) -> Graph:
    """The whole graph; with `head_norm`, q and k of each head are normed before they are turned."""

    def norm(module: str, x: str) -> str:
        return m.rms_norm(module, x, plus=1.0)

    h = m.embedding("model.embed_tokens", scale=math.sqrt(m.config.hidden_size))
    for i in range(m.config.num_layers):
        block = f"model.layers.{i}"
        x = norm(f"{block}.input_layernorm", h)
        x = m.attention(i, f"{block}.self_attn", x, head_norm=head_norm, plus=1.0)
        h = m.add(f"{block}.add_attention", h, norm(f"{block}.post_attention_layernorm", x))
        x = m.gated_mlp(f"{block}.mlp", norm(f"{block}.pre_feedforward_layernorm", h))
        h = m.add(f"{block}.add_mlp", h, norm(f"{block}.post_feedforward_layernorm", x))
    return m.logits(norm("model.norm", h), "lm_head", "model.embed_tokens")


TEMPLATES = {
    "gemma2": Template(
        read=read_gemma2,
        build=partial(build, head_norm=False),
        models="Gemma 2",
        special="four norms a layer, capped scores and logits, windows in every other layer",
    ),
    "gemma3_text": Template(
        read=read_gemma3,
        build=partial(build, head_norm=True),
        models="Gemma 3 (text)",
        special="four norms a layer, normed heads, two kinds of rotary embedding",
    ),
}
