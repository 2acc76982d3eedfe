"""Tiny random checkpoints of the decoder families that transformers builds: what `scripts/check_families` runs.

A family is a `model_type` and the fields of its `config.json` that make it small. Its weights are random and three times as large
as transformers initialises them, and its norms and biases are moved, so that what is built wrongly shows in the logits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

VOCAB = 320
_SPECIAL = {"<s>": 0, "</s>": 1, "<pad>": 2}
_SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCAB,
    "max_position_embeddings": 512,
}
_OLD_SIZES: dict[str, Any] = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 512, "vocab_size": VOCAB}
_TOKENS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}

_HEADS_16 = {"head_dim": 16}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
_LOCAL_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
_ROUTED_EXPERTS = {
    "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "first_k_dense_replace": 1, "n_group": 1,
    "topk_group": 1,
}  # fmt: skip
_SHARED_EXPERT = {"shared_expert_intermediate_size": 64}
_LATENT = {
    "num_key_value_heads": 4, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 16,
}  # fmt: skip
_WINDOW_AND_FULL = {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]}
_LINEAR_AND_FULL = {
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16, "linear_value_head_dim": 16,
    "layer_types": ["linear_attention", "full_attention"],
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Family:
    """One kind of decoder."""

    model_type: str
    fields: Mapping[str, Any]

    @classmethod
    def of(cls, model_type: str, *groups: Mapping[str, Any], **fields: Any) -> Family:
        """A family whose config has today's names of sizes."""
        merged: dict[str, Any] = dict(_SIZES) | _TOKENS
        for group in groups:
            merged |= group
        return cls(model_type, merged | fields)

    @classmethod
    def named_otherwise(cls, model_type: str, **fields: Any) -> Family:
        """A family whose config has names of its own for the sizes."""
        return cls(model_type, {**_TOKENS, "vocab_size": VOCAB, **fields})


def _llama(**fields: Any) -> Family:
    return Family.of("llama", fields)


def _rope(kind: str, **fields: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **fields}}


FAMILIES: dict[str, Family] = {
    # llama, and what its config can ask for
    "llama": _llama(),
    "llama, linear rope": _llama(**_rope("linear", factor=2.0)),
    "llama, dynamic rope": _llama(**_rope("dynamic", factor=2.0)),
    "llama, yarn": _llama(**_rope("yarn", factor=4.0, original_max_position_embeddings=128)),
    "llama, llama3 rope": _llama(
        **_rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=128)
    ),
    "llama, biases": _llama(attention_bias=True, mlp_bias=True),
    "llama, tied": _llama(tie_word_embeddings=True),
    "llama, wide heads": _llama(head_dim=32),
    "llama, one key head": _llama(num_key_value_heads=1),
    "llama, gelu": _llama(hidden_act="gelu"),
    "llama, heads of 12": _llama(hidden_size=48, num_key_value_heads=4),
    # dense decoders
    "apertus": Family.of("apertus"),
    "arcee": Family.of("arcee"),
    "biogpt": Family.of("biogpt"),
    "bitnet": Family.of("bitnet"),
    "bloom": Family.named_otherwise("bloom", hidden_size=64, n_layer=2, n_head=4),
    "codegen": Family.named_otherwise("codegen", **_OLD_SIZES, rotary_dim=8),
    "cohere": Family.of("cohere"),
    "cohere2": Family.of("cohere2", _WINDOW_AND_FULL),
    "ernie4_5": Family.of("ernie4_5", _HEADS_16),
    "exaone4": Family.of("exaone4", _HEADS_16, _WINDOW_AND_FULL),
    "falcon": Family.named_otherwise(
        "falcon", hidden_size=64, num_hidden_layers=2, num_attention_heads=4, new_decoder_architecture=False, multi_query=True
    ),
    "falcon, new": Family.named_otherwise(
        "falcon", hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_kv_heads=2, new_decoder_architecture=True
    ),
    "falcon, alibi": Family.named_otherwise(
        "falcon", hidden_size=64, num_hidden_layers=2, num_attention_heads=4, multi_query=False, alibi=True, parallel_attn=False
    ),
    "gemma": Family.of("gemma", _HEADS_16),
    "gemma2": Family.of("gemma2", _HEADS_16, query_pre_attn_scalar=16, sliding_window=16),
    "gemma3_text": Family.of("gemma3_text", _HEADS_16, _WINDOW_AND_FULL, query_pre_attn_scalar=16),
    "gemma3n_text": Family.of(
        "gemma3n_text", _HEADS_16, hidden_size_per_layer_input=16, vocab_size_per_layer_input=VOCAB, num_kv_shared_layers=0,
        altup_num_inputs=2, laurel_rank=8, layer_types=["sliding_attention", "full_attention"],
        activation_sparsity_pattern=[0.0, 0.0], intermediate_size=[128, 128],
    ),
    "gemma4_text": Family.of(
        "gemma4_text", _HEADS_16, _WINDOW_AND_FULL, global_head_dim=16, hidden_size_per_layer_input=16,
        vocab_size_per_layer_input=VOCAB, num_kv_shared_layers=0,
    ),
    "glm": Family.of("glm", _HEADS_16),
    "glm4": Family.of("glm4", _HEADS_16),
    "gpt2": Family.named_otherwise("gpt2", **_OLD_SIZES),
    "gpt_bigcode": Family.named_otherwise("gpt_bigcode", **_OLD_SIZES),
    "gpt_neo": Family.named_otherwise(
        "gpt_neo", hidden_size=64, num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]], window_size=16,
        max_position_embeddings=512,
    ),
    "gpt_neox": Family.of("gpt_neox"),
    "gptj": Family.named_otherwise("gptj", **_OLD_SIZES, rotary_dim=8),
    "granite": Family.of(
        "granite", attention_multiplier=0.1, logits_scaling=4.0, residual_multiplier=0.5, embedding_multiplier=3.0
    ),
    "helium": Family.of("helium", _HEADS_16),
    "hunyuan_v1_dense": Family.of("hunyuan_v1_dense", _HEADS_16),
    "minicpm3": Family.of("minicpm3", _LATENT, q_lora_rank=32),
    "ministral": Family.of("ministral", _HEADS_16, _WINDOW_AND_FULL),
    "mistral": Family.of("mistral", sliding_window=16),
    "mpt": Family.named_otherwise("mpt", d_model=64, n_layers=2, n_heads=4, max_seq_len=512),
    "nemotron": Family.of("nemotron"),
    "olmo": Family.of("olmo"),
    "olmo2": Family.of("olmo2"),
    "olmo3": Family.of("olmo3", _WINDOW_AND_FULL),
    "opt": Family.named_otherwise(
        "opt", hidden_size=64, ffn_dim=128, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=512,
        word_embed_proj_dim=64,
    ),
    "opt, 350M": Family.named_otherwise(
        "opt", hidden_size=64, ffn_dim=128, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=512,
        word_embed_proj_dim=32, do_layer_norm_before=False,
    ),
    "persimmon": Family.of("persimmon"),
    "phi": Family.of("phi"),
    "phi3": Family.of("phi3"),
    "qwen2": Family.of("qwen2"),
    "qwen3": Family.of("qwen3", _HEADS_16),
    "seed_oss": Family.of("seed_oss", _HEADS_16),
    "smollm3": Family.of("smollm3"),
    "stablelm": Family.of("stablelm"),
    "starcoder2": Family.of("starcoder2"),
    "vaultgemma": Family.of("vaultgemma", _HEADS_16, _WINDOW_AND_FULL, query_pre_attn_scalar=16),
    "xglm": Family.named_otherwise("xglm", d_model=64, num_layers=2, attention_heads=4, ffn_dim=128, max_position_embeddings=512),
    "cwm": Family.of("cwm", _HEADS_16, _WINDOW_AND_FULL),
    "diffllama": Family.of("diffllama"),
    "doge": Family.of("doge"),
    "gpt_neox_japanese": Family.of("gpt_neox_japanese"),
    "youtu": Family.of("youtu", _LATENT, q_lora_rank=32),
    # mixtures of experts
    "solar_open": Family.of("solar_open", _HEADS_16, _ROUTED_EXPERTS),
    "flex_olmo": Family.of("flex_olmo", num_experts=4, num_experts_per_tok=2),
    "minimax_m2": Family.of("minimax_m2", _HEADS_16, _LOCAL_EXPERTS),
    "hunyuan_v1_moe": Family.of("hunyuan_v1_moe", _HEADS_16, num_experts=4, moe_topk=2),
    "jetmoe": Family.of("jetmoe", num_local_experts=4, num_experts_per_tok=2, kv_channels=16),
    "dbrx": Family.named_otherwise(
        "dbrx", d_model=64, n_heads=4, n_layers=2, max_seq_len=512,
        attn_config={"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 10000.0},
        ffn_config={"ffn_hidden_size": 64, "moe_num_experts": 4, "moe_top_k": 2},
    ),
    "deepseek_v2": Family.of("deepseek_v2", _LATENT, _ROUTED_EXPERTS, q_lora_rank=None),
    "deepseek_v3": Family.of("deepseek_v3", _LATENT, _ROUTED_EXPERTS, q_lora_rank=32),
    "dots1": Family.of("dots1", _ROUTED_EXPERTS, num_key_value_heads=4, n_shared_experts=1),
    "ernie4_5_moe": Family.of(
        "ernie4_5_moe", moe_num_experts=4, moe_k=2, moe_intermediate_size=64, moe_layer_start_index=1, moe_layer_end_index=1
    ),
    "glm4_moe": Family.of("glm4_moe", _HEADS_16, _ROUTED_EXPERTS),
    "gpt_oss": Family.of("gpt_oss", _HEADS_16, _LOCAL_EXPERTS, _WINDOW_AND_FULL),
    "granitemoe": Family.of("granitemoe", _LOCAL_EXPERTS),
    "mixtral": Family.of("mixtral", _LOCAL_EXPERTS),
    "olmoe": Family.of("olmoe", num_experts=4, num_experts_per_tok=2),
    "phimoe": Family.of("phimoe", _LOCAL_EXPERTS),
    "qwen2_moe": Family.of("qwen2_moe", _EXPERTS, _SHARED_EXPERT),
    "qwen3_moe": Family.of("qwen3_moe", _HEADS_16, _EXPERTS),
    # layers that are no attention: state spaces, linear attention, recurrence, convolutions
    "falcon_h1": Family.of(
        "falcon_h1", mamba_d_ssm=64, mamba_n_heads=4, mamba_d_head=16, mamba_d_state=16, mamba_n_groups=1
    ),
    "granitemoehybrid": Family.of(
        "granitemoehybrid", _LOCAL_EXPERTS, shared_intermediate_size=64, layer_types=["mamba", "attention"], mamba_n_heads=4,
        mamba_d_head=32, mamba_d_state=16, mamba_expand=2,
    ),
    "jamba": Family.of(
        "jamba", num_experts=4, num_experts_per_tok=2, attn_layer_period=2, attn_layer_offset=1, expert_layer_period=2,
        expert_layer_offset=1, mamba_d_state=8, use_mamba_kernels=False,
    ),
    "lfm2": Family.of("lfm2", layer_types=["conv", "full_attention"], block_auto_adjust_ff_dim=False),
    "lfm2_moe": Family.of("lfm2_moe", _EXPERTS, layer_types=["conv", "full_attention"], num_dense_layers=1),
    "mamba": Family.named_otherwise("mamba", hidden_size=64, num_hidden_layers=2, state_size=8),
    "mamba2": Family.named_otherwise(
        "mamba2", hidden_size=64, num_hidden_layers=2, state_size=16, num_heads=8, head_dim=16, n_groups=1
    ),
    "minimax": Family.of("minimax", _HEADS_16, _LOCAL_EXPERTS, layer_types=["linear_attention", "full_attention"]),
    "nemotron_h": Family.of(
        "nemotron_h", _HEADS_16, hybrid_override_pattern="M*", layers_block_type=None, mamba_num_heads=8, mamba_head_dim=16,
        ssm_state_size=16, n_groups=1,
    ),
    "qwen3_5_text": Family.of("qwen3_5_text", _HEADS_16, _LINEAR_AND_FULL),
    "qwen3_next": Family.of("qwen3_next", _HEADS_16, _EXPERTS, _SHARED_EXPERT, _LINEAR_AND_FULL),
    "recurrent_gemma": Family.of(
        "recurrent_gemma", lru_width=64, attention_window_size=16, block_types=["recurrent", "attention"]
    ),
    "rwkv": Family.named_otherwise("rwkv", hidden_size=64, num_hidden_layers=2, context_length=512),
    "zamba2": Family.of(
        "zamba2", mamba_d_state=16, n_mamba_heads=4, mamba_headdim=32, layers_block_type=["mamba", "hybrid"],
        use_mamba_kernels=False, num_mem_blocks=1, adapter_rank=8, num_key_value_heads=4,
    ),
}  # fmt: skip


def write_family(name: str, folder: Path) -> Path:
    """Write the checkpoint of a family, as transformers saves it, with a tokenizer of bytes."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    family = FAMILIES[name]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family.model_type, **family.fields))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                parameter.mul_(3)
            else:  # a norm or a bias that is built wrongly shows, too
                parameter.add_(torch.randn(parameter.shape) * 0.2)
    model.eval().save_pretrained(folder)
    _write_tokenizer(folder)
    return folder


def _write_tokenizer(folder: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = _SPECIAL | {letter: len(_SPECIAL) + number for number, letter in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
