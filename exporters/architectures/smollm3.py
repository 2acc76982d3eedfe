"""SmolLM3: LLaMA's layers, of which every fourth has no rotary embedding (NoPE).

q = q_proj(x)                in layers 3, 7, 11, ...
q = rope(q_proj(x))          in all others
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from maskpro_deploy.errors import FormatError
from maskpro_deploy.exporters.architectures import llama
from maskpro_deploy.exporters.architectures.template import Template
from maskpro_deploy.exporters.graph.decoder_config import DecoderConfig, read_base_config, read_positive, read_switched_windows
from maskpro_deploy.exporters.graph.rope import read_rope

_DEFAULT_THETA = 2e6


def read(config: Mapping[str, Any]) -> DecoderConfig:
    """`no_rope_layers` holds 1 for a layer WITH rotary embedding."""
    base = read_base_config({"tie_word_embeddings": True, **config})
    interval = read_positive(config, "no_rope_layer_interval", 4)
    turned = config.get("no_rope_layers")
    turned = [int((i + 1) % interval != 0) for i in range(base.num_layers)] if turned is None else turned
    if not isinstance(turned, list) or len(turned) != base.num_layers:
        raise FormatError(f"config.json: no_rope_layers must have one entry for each of the {base.num_layers} layers.")
    rope = read_rope(config, base.head_dim, _DEFAULT_THETA)
    windows = read_switched_windows(config, ["full_attention" if has else "sliding_attention" for has in turned])
    return dataclasses.replace(base, ropes=tuple(rope if has else None for has in turned), windows=windows)


TEMPLATES = {"smollm3": Template(read=read, build=llama.build, models="SmolLM3", special="layers without rotary embedding")}
