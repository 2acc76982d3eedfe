"""Tiny random checkpoints of every architecture, made by transformers itself."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

SIZES = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GEMMA = {"head_dim": 8, "query_pre_attn_scalar": 12, "sliding_window": 24}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 128}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0, 1.1, 1.3],
    "long_factor": [1.5, 3.0, 9.0],
    "original_max_position_embeddings": 400,
    "partial_rotary_factor": 0.75,
}
DECODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama with yarn": ("llama", {"rope_parameters": YARN}),
    "llama with dynamic": ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}),
    "mistral with a window": ("mistral", {"sliding_window": 40}),
    "qwen2": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2 with windows": ("qwen2", {"use_sliding_window": True, "sliding_window": 30, "max_window_layers": 1}),
    "qwen3": ("qwen3", {"head_dim": 16}),
    "smollm3": ("smollm3", {"no_rope_layer_interval": 2}),
    "gemma2": ("gemma2", GEMMA),
    "gemma3": ("gemma3_text", {**GEMMA, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}),
    "phi3": ("phi3", {"sliding_window": 48}),
    "phi4 with longrope": (
        "phi3",
        {"hidden_size": 32, "rope_parameters": LONGROPE, "original_max_position_embeddings": 400, "tie_word_embeddings": True},
    ),
    "gpt2": ("gpt2", {}),
    "opt": ("opt", {"ffn_dim": 64, "word_embed_proj_dim": 32}),
}


def make(name: str, folder: Path, tokenizer_from: Path, **changes: Any) -> Path:
    """Write the checkpoint of a decoder in `DECODERS`, or of any `model_type`, with the tokenizer of another one."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    kind, own = DECODERS.get(name, (name, {}))
    sizes = dict(SIZES)
    if kind in ("gpt2", "opt"):
        sizes = {k: v for k, v in sizes.items() if k not in ("intermediate_size", "num_key_value_heads")}
    config = AutoConfig.for_model(kind, **{**sizes, **own, **changes})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for tensor in model.state_dict().values():  # large enough that different tokens get clearly different logits
            tensor.copy_(torch.randn(tensor.shape) * 0.25 + (1.0 if tensor.dim() == 1 else 0.0))
    model.tie_weights()
    model.save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tokenizer_from / file, folder / file)
    return folder
