"""Tiny models that compute well in fp32 and break in half precision, each in another place.

Factors are powers of two, so that what is scaled up here and down there is the same model in fp32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Bad:
    """A model, how it is exported, and what the refusal says.

    Attributes:
        family: a name in `architectures.DECODERS`, or any `model_type`.
        change: changes its weights in place.
        words: a regular expression that the error matches.
        dtype: the half-precision type that breaks.
        settings: further settings of the export.
        fields: further fields of its config.
    """

    family: str
    change: Callable[[dict[str, Any]], None]
    words: str
    dtype: str = "fp16"
    settings: dict[str, Any] = field(default_factory=dict)
    fields: dict[str, Any] = field(default_factory=dict)


def scaled(**powers: int) -> Callable[[dict[str, Any]], None]:
    """Multiplies all weights whose names contain a word by a power of two; two underscores stand for a dot."""

    def change(weights: dict[str, Any]) -> None:
        for word, power in powers.items():
            names = [name for name in weights if word.replace("__", ".") in name]
            assert names, word
            for name in names:
                weights[name] = weights[name] * 2.0**power

    return change


def moved(word: str, by: float) -> Callable[[dict[str, Any]], None]:
    """Adds a number to every value of the weights whose names contain a word."""

    def change(weights: dict[str, Any]) -> None:
        names = [name for name in weights if word in name]
        assert names, word
        for name in names:
            weights[name] = weights[name] + by

    return change


def scaled_up_half(weights: dict[str, Any]) -> None:
    """Multiplies the rows of the fused weight that make `up`; down_proj makes up for it."""
    for name in weights:
        if "gate_up" in name:
            weights[name][64:] *= 2.0**15
    scaled(down_proj=-15)(weights)


UNTIED = {"tie_word_embeddings": False}
NOT_EQUAL = "does not agree with the checkpoint"
TOO_COARSE = "is too coarse for this model"
MODELS = {
    # -- overflow ---------------------------------------------------------------------------------------------------------
    "output of the MLP": Bad("smollm3", scaled(up_proj=11, down_proj=11), r"layer 0, /model/layers.0/mlp/down_proj reaches"),
    "gate times up": Bad("qwen3", scaled(gate_proj=9, up_proj=9, down_proj=-12), r"layer 0, /model/layers.0/mlp/gated reaches"),
    "up, in a fused weight": Bad(
        "phi3",
        scaled_up_half,
        r"layer 0, /model/layers.0/mlp/up_proj reaches",
    ),
    "output of attention": Bad("qwen2", scaled(v_proj=8, o_proj=9), r"layer 0, /model/layers.0/self_attn/o_proj reaches"),
    "values": Bad("llama with yarn", scaled(v_proj=15, o_proj=-14), r"layer 0, /model/layers.0/self_attn/v_proj reaches"),
    "queries before their norm": Bad("qwen3", scaled(q_proj=15), r"layer 0, /model/layers.0/self_attn/q_proj reaches"),
    "keys, with small queries": Bad(
        "mistral with a window",
        scaled(k_proj=15, q_proj=-15),
        r"layer 0, /model/layers.0/self_attn/k_proj reaches",
        settings={"forms": ("static",)},
    ),
    "scores that are spelled out": Bad(
        "gemma2",
        scaled(q_proj=8, k_proj=8),
        r"layer 0, /model/layers.0/self_attn/scores reaches",
        fields={"query_pre_attn_scalar": 12 * 2**32},
    ),
    "residual stream, layer upon layer": Bad(
        "llama with dynamic", scaled(up_proj=6, down_proj=6), r"layer [12], /model/layers.[12]/add_\w+ reaches"
    ),
    "the same in one node with the norm": Bad(
        "llama with dynamic",
        scaled(up_proj=6, down_proj=6),
        r"layer [12], /model/layers.[12]/add_\w+ reaches",
        settings={"forms": ("gqa",)},
    ),
    "scaled embedding": Bad("gemma3", scaled(embed_tokens=14), r"embedding, /model/embed_tokens/scale reaches", fields=UNTIED),
    "last norm, with a small head": Bad(
        "qwen2", lambda w: scaled(lm_head=-14, model__norm=14)(w), r"head, /model/norm reaches", fields=UNTIED
    ),
    "logits before they are scaled": Bad(
        "granite", scaled(lm_head=15), r"head, /lm_head reaches", fields={"logits_scaling": 2.0**15, **UNTIED}
    ),
    "LayerNorm's outputs": Bad("gpt2", scaled(mlp__c_fc=9, mlp__c_proj=9), r"layer 0, /transformer/h.0/mlp/c_proj\S* reaches"),
    "integers with half-precision scales": Bad(
        "smollm3",
        scaled(up_proj=11, down_proj=11),
        r"layer 0, /model/layers.0/mlp/down_proj reaches",
        settings={"quantize": "int8", "block_size": 16},
    ),
    "weights before a norm": Bad("gemma2", scaled(mlp__down_proj=18), r"the largest fp16 number is 65504"),
    # -- underflow --------------------------------------------------------------------------------------------------------
    "weights of a norm": Bad(
        "smollm3",
        scaled(input_layernorm=-26, q_proj=13, k_proj=13, v_proj=15, o_proj=11),
        r"32 of 32 nonzero values of model.layers.\d.input_layernorm.weight become 0 in fp16",
    ),
    "kept weights, scaled up elsewhere": Bad(
        "qwen2",
        scaled(up_proj=-26, down_proj=15, post_attention_layernorm=11, gate_proj=-11),
        r"nonzero values of model.layers.\d.mlp.up_proj.weight become 0 in fp16",
    ),
    "outputs before a norm without epsilon": Bad(
        "gemma2",
        scaled(v_proj=-16, o_proj=-16),
        r"layer 0, /model/layers.0/self_attn/o_proj reaches .* vanish to zero in fp16",
        fields={"rms_norm_eps": 1e-30},
    ),
    "outputs that nearly vanish before it": Bad(
        "gemma2", scaled(v_proj=-13, o_proj=-13), TOO_COARSE, fields={"rms_norm_eps": 1e-30}
    ),
    # -- too few digits ---------------------------------------------------------------------------------------------------
    "positions far from zero": Bad("gpt2", moved("wpe", 256.0), NOT_EQUAL, dtype="bf16"),
    "positions further from zero": Bad("opt", moved("embed_positions", 512.0), NOT_EQUAL),
    "biases far from zero": Bad("gpt2", moved("mlp.c_proj.bias", 1024.0), TOO_COARSE),
    "a stream of large numbers": Bad("opt", moved("fc2.bias", 512.0), TOO_COARSE, dtype="bf16"),
    "parallel parts far from zero": Bad("gpt_neox", moved("dense_4h_to_h.bias", 512.0), TOO_COARSE, dtype="bf16"),
}
