"""Qwen2 and Qwen3: LLaMA's layers, with a bias on q, k and v (Qwen2) or a norm of each head's q and k (Qwen3).

Qwen2    q = rope(q_proj(x) + b)
Qwen3    q = rope(rms_norm(q_proj(x)))          the norm over one head
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any

from maskpro_deploy.exporters.architectures import llama
from maskpro_deploy.exporters.architectures.template import Template
from maskpro_deploy.exporters.graph.decoder_config import DecoderConfig, read_base_config, read_switched_windows


def read_qwen2(config: Mapping[str, Any]) -> DecoderConfig:
    """q, k and v always have a bias, o never."""
    return dataclasses.replace(_read_common(config), attention_bias=True, output_bias=False, mlp_bias=False)


def read_qwen3(config: Mapping[str, Any]) -> DecoderConfig:
    """The common fields; heads are 128 wide where the config does not say."""
    return dataclasses.replace(_read_common({"head_dim": 128, **config}), mlp_bias=False)


def _read_common(config: Mapping[str, Any]) -> DecoderConfig:
    """Layers from `max_window_layers` on look back through a window, if `use_sliding_window` says so."""
    base = read_base_config(config)
    first = config.get("max_window_layers", 28)
    default = ["sliding_attention" if i >= first else "full_attention" for i in range(base.num_layers)]
    return dataclasses.replace(base, windows=read_switched_windows(config, default))


TEMPLATES = {
    "qwen2": Template(
        read=read_qwen2,
        build=llama.build,
        models="Qwen2, Qwen2.5",
        special="biases on q, k, v; windows in the upper layers, where switched on",
    ),
    "qwen3": Template(
        read=read_qwen3, build=partial(llama.build, head_norm=True), models="Qwen3", special="a norm of each head's q and k"
    ),
}
