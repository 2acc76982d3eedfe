"""A tiny real LLaMA checkpoint with a tokenizer, made in code without torch."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from maskpro_deploy.checkpoint import Checkpoint
from maskpro_deploy.data import BUILTIN, load_text
from maskpro_deploy.masks import MaskSet
from maskpro_deploy.pattern import NMPattern

VOCAB = 320
HIDDEN = 32
INTERMEDIATE = 64
HEADS, KV_HEADS, HEAD_DIM = 4, 2, 8
LAYERS = 2

CHAT_TEMPLATE = (
    "{% for message in messages %}<|start|>{{ message['role'] }}\n{{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)


def tiny_config() -> dict[str, object]:
    """`config.json` of the tiny model."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": VOCAB,
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "hidden_act": "silu",
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
        "tie_word_embeddings": True,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
        "dtype": "float32",
    }


def tiny_tokenizer() -> Tokenizer:
    """A byte-level BPE tokenizer trained on the built-in text: every string encodes and decodes to itself."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=["<|text|>", "<|start|>", "<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([load_text(BUILTIN).documents[0]], trainer)
    return tokenizer


def tiny_weights(seed: int = 0) -> dict[str, np.ndarray]:
    """Random weights of a size that gives clearly different logits for different tokens."""
    rng = np.random.default_rng(seed)

    def draw(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) * 0.25).astype(np.float32)

    weights = {"model.embed_tokens.weight": draw(VOCAB, HIDDEN), "model.norm.weight": 1 + draw(HIDDEN)}
    for i in range(LAYERS):
        block = f"model.layers.{i}"
        weights |= {
            f"{block}.input_layernorm.weight": 1 + draw(HIDDEN),
            f"{block}.post_attention_layernorm.weight": 1 + draw(HIDDEN),
            f"{block}.self_attn.q_proj.weight": draw(HEADS * HEAD_DIM, HIDDEN),
            f"{block}.self_attn.k_proj.weight": draw(KV_HEADS * HEAD_DIM, HIDDEN),
            f"{block}.self_attn.v_proj.weight": draw(KV_HEADS * HEAD_DIM, HIDDEN),
            f"{block}.self_attn.o_proj.weight": draw(HIDDEN, HEADS * HEAD_DIM),
            f"{block}.mlp.gate_proj.weight": draw(INTERMEDIATE, HIDDEN),
            f"{block}.mlp.up_proj.weight": draw(INTERMEDIATE, HIDDEN),
            f"{block}.mlp.down_proj.weight": draw(HIDDEN, INTERMEDIATE),
        }
    return weights


def write_tiny(folder: Path, seed: int = 0) -> Path:
    """A complete tiny checkpoint in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tiny_weights(seed), folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(tiny_config()))
    tiny_tokenizer().save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|end|>", "bos_token": "<|start|>"}))
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    return folder


def magnitude_masks(checkpoint: Checkpoint, pattern: NMPattern) -> MaskSet:
    """The masks that keep the largest weights of every group of all projections."""
    names = [name for name in checkpoint.names if "_proj." in name]
    masks = {name: pattern.top(np.abs(checkpoint.tensor(name))) for name in names}
    return MaskSet.from_arrays(pattern, masks, checkpoint.dense_sha256(names))
