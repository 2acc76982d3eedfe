"""OPT: learned positions that begin at row 2, LayerNorm, biases, ReLU.

h = tokens[t] + positions[p + 2]
for every layer:
    h = h + out_proj(attention(q_proj(x), k_proj(x), v_proj(x)))     x = layer_norm(h)
    h = h + fc2(relu(fc1(x)))                                        x = layer_norm(h)
logits = tokens' layer_norm(h)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from maskpro_deploy.exporters.architectures.template import Template
from maskpro_deploy.exporters.graph.builder import Graph
from maskpro_deploy.exporters.graph.decoder_config import DecoderConfig, read_positive, read_unturned_config, require_value
from maskpro_deploy.exporters.graph.layers import Layers

_POSITION_OFFSET = 2


def read(config: Mapping[str, Any]) -> DecoderConfig:
    """OPT with norms before its parts, as all of its sizes but 350M have them."""
    hidden = read_positive(config, "hidden_size")
    require_value(config, "do_layer_norm_before", True)
    require_value(config, "_remove_final_layer_norm", False)
    require_value(config, "layer_norm_elementwise_affine", True)
    require_value(config, "word_embed_proj_dim", hidden)
    own = {"intermediate_size": read_positive(config, "ffn_dim"), "layer_norm_eps": 1e-5, "tie_word_embeddings": True}
    bias = bool(config.get("enable_bias", True))
    return read_unturned_config({**own, **config}, eps="layer_norm_eps", activation="relu", bias=bias)


def build(m: Layers) -> Graph:
    """The whole graph."""
    e, f, bias = m.config.hidden_size, m.config.intermediate_size, m.config.mlp_bias
    positions = m.positions("model.decoder.embed_positions", offset=_POSITION_OFFSET)
    h = m.add("model.decoder.add_positions", m.embedding("model.decoder.embed_tokens"), positions)
    for i in range(m.config.num_layers):
        block = f"model.decoder.layers.{i}"
        x = m.layer_norm(f"{block}.self_attn_layer_norm", h)
        x = m.attention(i, f"{block}.self_attn", x, names=("q_proj", "k_proj", "v_proj", "out_proj"))
        h = m.add(f"{block}.add_attention", h, x)
        x = m.layer_norm(f"{block}.final_layer_norm", h)
        x = m.activation(m.linear(f"{block}.fc1", x, e, f, bias=bias), f"/model/decoder/layers.{i}")
        h = m.add(f"{block}.add_mlp", h, m.linear(f"{block}.fc2", x, f, e, bias=bias))
    return m.logits(m.layer_norm("model.decoder.final_layer_norm", h), "lm_head", "model.decoder.embed_tokens")


TEMPLATES = {
    "opt": Template(read=read, build=build, models="OPT, without its 350M", special="learned positions, LayerNorm, ReLU")
}
