"""GPT-2: learned positions, LayerNorm, biases everywhere, and weights stored as [K, N] already.

h = tokens[t] + positions[p]
for every layer:
    h = h + c_proj(attention(split(c_attn(x))))     x = layer_norm(h)
    h = h + c_proj(gelu(c_fc(x)))                   x = layer_norm(h)
logits = tokens' layer_norm(h)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from maskpro_deploy.exporters.architectures.template import Template
from maskpro_deploy.exporters.graph.builder import Graph
from maskpro_deploy.exporters.graph.decoder_config import DecoderConfig, read_positive, read_unturned_config, require_value
from maskpro_deploy.exporters.graph.layers import Layers, Part

_NAMES = {
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "max_position_embeddings": "n_positions",
}


def read(config: Mapping[str, Any]) -> DecoderConfig:
    """GPT-2 has names of its own for the common fields."""
    common = {name: read_positive(config, own) for name, own in _NAMES.items()}
    inner = read_positive(config, "n_inner", 4 * common["hidden_size"])
    eps = {"layer_norm_epsilon": 1e-5, "tie_word_embeddings": True}
    require_value(config, "scale_attn_weights", True)
    require_value(config, "scale_attn_by_inverse_layer_idx", False)
    require_value(config, "add_cross_attention", False)
    fields = {**eps, **config, **common, "intermediate_size": inner}
    return read_unturned_config(fields, eps="layer_norm_epsilon", activation="gelu_new", bias=True)


def build(m: Layers) -> Graph:
    """The whole graph."""
    e, f = m.config.hidden_size, m.config.intermediate_size
    h = m.add("transformer.add_positions", m.embedding("transformer.wte"), m.positions("transformer.wpe"))
    for i in range(m.config.num_layers):
        block = f"transformer.h.{i}"
        three = [Part(module=f"{block}.attn.c_attn", start=start, whole=3 * e, transposed=False) for start in (0, e, 2 * e)]
        x = m.attention(
            i,
            f"{block}.attn",
            m.layer_norm(f"{block}.ln_1", h),
            names=("q_proj", "k_proj", "v_proj", "c_proj"),
            parts=three,
            out=Part(module=f"{block}.attn.c_proj", transposed=False),
        )
        h = m.add(f"{block}.add_attention", h, x)
        x = m.layer_norm(f"{block}.ln_2", h)
        fed = m.linear(f"{block}.mlp.c_fc", x, e, f, bias=True, part=Part(module=f"{block}.mlp.c_fc", transposed=False))
        fed = m.activation(fed, f"/transformer/h.{i}/mlp")
        fed = m.linear(f"{block}.mlp.c_proj", fed, f, e, bias=True, part=Part(module=f"{block}.mlp.c_proj", transposed=False))
        h = m.add(f"{block}.add_mlp", h, fed)
    return m.logits(m.layer_norm("transformer.ln_f", h), "lm_head", "transformer.wte")


TEMPLATES = {
    "gpt2": Template(
        read=read, build=build, models="GPT-2", special="learned positions, LayerNorm, biases", prefix="transformer."
    )
}
