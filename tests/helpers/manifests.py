"""Manifests that tests write or give to what reads one."""

from __future__ import annotations

from typing import Any

from maskpro_deploy.manifest import ModelShape


def small_shape(**changes: Any) -> ModelShape:
    """The shape of a small model; `changes` replace some of its fields."""
    sizes: dict[str, Any] = {"num_layers": 1, "num_heads": 1, "num_kv_heads": 1, "head_dim": 4, "hidden_size": 4}
    base = {"name": "m", "architecture": "LlamaForCausalLM", "vocab_size": 8, "max_length": 16, "eos_token_ids": (2,), **sizes}
    return ModelShape(**(base | changes))
