"""The LLaMA decoder (LLaMA, SmolLM2, and Mistral, whose layers may look back through a window only).

h = embedding[tokens]
for every layer:
    h = h + o_proj(attention(rope(q_proj(x)), rope(k_proj(x)), v_proj(x)))     x = rms_norm(h)
    h = h + down_proj(silu(gate_proj(x)) * up_proj(x))                         x = rms_norm(h)
logits = lm_head(rms_norm(h))
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from maskpro_deploy.exporters.architectures.template import Template
from maskpro_deploy.exporters.graph.builder import Graph
from maskpro_deploy.exporters.graph.decoder_config import DecoderConfig, read_base_config, read_same_windows
from maskpro_deploy.exporters.graph.layers import Layers


def read(config: Mapping[str, Any]) -> DecoderConfig:
    """LLaMA's fields are the common ones."""
    return read_base_config(config)


def read_mistral(config: Mapping[str, Any]) -> DecoderConfig:
    """Mistral has no biases; `sliding_window` holds for all layers or, where it is null, for none."""
    base = read_base_config(config)
    windows = read_same_windows(config, base.num_layers)
    return dataclasses.replace(base, windows=windows, attention_bias=False, output_bias=False, mlp_bias=False)


def build(m: Layers, *, head_norm: bool = False) -> Graph:
    """The whole graph; with `head_norm`, q and k of each head are normed before they are turned."""
    h = m.embedding("model.embed_tokens")
    for i in range(m.config.num_layers):
        block = f"model.layers.{i}"
        x = m.rms_norm(f"{block}.input_layernorm", h)
        x = m.attention(i, f"{block}.self_attn", x, head_norm=head_norm)
        h = m.add(f"{block}.add_attention", h, x)
        x = m.gated_mlp(f"{block}.mlp", m.rms_norm(f"{block}.post_attention_layernorm", h))
        h = m.add(f"{block}.add_mlp", h, x)
    return m.logits(m.rms_norm("model.norm", h), "lm_head", "model.embed_tokens")


TEMPLATES = {
    "llama": Template(read=read, build=build, models="LLaMA 2 and 3, SmolLM2"),
    "mistral": Template(read=read_mistral, build=build, models="Mistral", special="a window in all layers, or in none"),
}
