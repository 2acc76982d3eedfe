"""Phi-3 and Phi-4: LLaMA's layers with q, k, v in one tensor, gate and up in one, and part of each head turned.

q, k, v  = split(qkv_proj(x))
gate, up = split(gate_up_proj(x))
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from maskpro_deploy.exporters.architectures import llama
from maskpro_deploy.exporters.architectures.template import Template
from maskpro_deploy.exporters.graph.builder import Graph
from maskpro_deploy.exporters.graph.decoder_config import DecoderConfig
from maskpro_deploy.exporters.graph.layers import Layers, Part


def read(config: Mapping[str, Any]) -> DecoderConfig:
    """As Mistral; the size of a head follows from the others."""
    return llama.read_mistral({**config, "head_dim": None})


def build(m: Layers) -> Graph:
    """The whole graph."""
    c = m.config
    q, kv, f = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim, c.intermediate_size
    h = m.embedding("model.embed_tokens")
    for i in range(c.num_layers):
        block = f"model.layers.{i}"
        qkv, both = f"{block}.self_attn.qkv_proj", f"{block}.mlp.gate_up_proj"
        heads = [Part(module=qkv, start=start, whole=q + 2 * kv) for start in (0, q, q + kv)]
        halves = [Part(module=both, start=start, whole=2 * f) for start in (0, f)]
        x = m.rms_norm(f"{block}.input_layernorm", h)
        x = m.attention(i, f"{block}.self_attn", x, parts=heads)
        h = m.add(f"{block}.add_attention", h, x)
        x = m.rms_norm(f"{block}.post_attention_layernorm", h)
        h = m.add(f"{block}.add_mlp", h, m.gated_mlp(f"{block}.mlp", x, parts=halves))
    return m.logits(m.rms_norm("model.norm", h), "lm_head", "model.embed_tokens")


TEMPLATES = {
    "phi3": Template(
        read=read,
        build=build,
        models="Phi-3, Phi-4, Phi-4-mini",
        special="fused q, k, v and gate, up (taken apart); part of a head turned; longrope",
    )
}
