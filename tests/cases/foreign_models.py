"""Tiny random models of several families whose inner linear weights hold strict 2:4; one of them can be filled in again.

Embeddings, norms, biases and the output head are dense. A kept weight is at least half as large as the largest one, so that no
quantisation rounds it to zero. Works with transformers 4 and 5.
"""

from __future__ import annotations

import copy
import itertools
import math
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

HIDDEN, LAYERS, HEADS, INNER, VOCAB, LENGTH = 64, 2, 4, 128, 300, 44
_SIZES = {"hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "vocab_size": VOCAB}
_DECODER = {**_SIZES, "intermediate_size": INNER, "max_position_embeddings": LENGTH, "pad_token_id": 0}
_ENCODER = {**_DECODER, "type_vocab_size": 2, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
_EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": INNER, "shared_expert_intermediate_size": INNER}
# family -> (transformers' class, fields of its config)
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", {**_DECODER, "num_key_value_heads": 2}),
    "llama-tied": ("LlamaForCausalLM", {**_DECODER, "num_key_value_heads": 2, "tie_word_embeddings": True}),
    "mistral": ("MistralForCausalLM", {**_DECODER, "num_key_value_heads": 2, "sliding_window": 16}),
    "qwen2": ("Qwen2ForCausalLM", {**_DECODER, "num_key_value_heads": 2}),
    "qwen3": ("Qwen3ForCausalLM", {**_DECODER, "num_key_value_heads": 2, "head_dim": 16}),
    "gemma": ("GemmaForCausalLM", {**_DECODER, "num_key_value_heads": 1, "head_dim": 16}),
    "gemma2": ("Gemma2ForCausalLM", {**_DECODER, "num_key_value_heads": 2, "head_dim": 16, "sliding_window": 16}),
    "phi3": ("Phi3ForCausalLM", {**_DECODER, "num_key_value_heads": 2, "original_max_position_embeddings": LENGTH}),
    "phi": ("PhiForCausalLM", {**_DECODER, "num_key_value_heads": 4}),
    "gpt2": (
        "GPT2LMHeadModel",
        {"n_embd": HIDDEN, "n_layer": LAYERS, "n_head": HEADS, "vocab_size": VOCAB, "n_positions": LENGTH},
    ),
    "opt": ("OPTForCausalLM", {**_DECODER, "ffn_dim": INNER, "word_embed_proj_dim": HIDDEN}),
    "gpt_neox": ("GPTNeoXForCausalLM", {**_DECODER, "use_parallel_residual": True}),
    "mixtral": ("MixtralForCausalLM", {**_DECODER, "num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen2_moe": ("Qwen2MoeForCausalLM", {**_DECODER, **_EXPERTS, "num_key_value_heads": 2, "num_experts": 4}),
    "bert": ("BertModel", _ENCODER),
    "bert-mlm": ("BertForMaskedLM", _ENCODER),
    "bert-classifier": ("BertForSequenceClassification", _ENCODER),
    "roberta": ("RobertaModel", _ENCODER),
    "distilbert": (
        "DistilBertModel",
        {
            "dim": HIDDEN,
            "n_layers": LAYERS,
            "n_heads": HEADS,
            "hidden_dim": INNER,
            "vocab_size": VOCAB,
            "max_position_embeddings": LENGTH,
        },
    ),
    "vit": ("ViTModel", {**_SIZES, "intermediate_size": INNER, "image_size": 16, "patch_size": 4, "num_channels": 4}),
}
_SPECIAL = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_OUTSIDE = ("lm_head", "embed_out", "classifier", "cls.predictions.decoder", "embed_tokens", "word_embeddings", "wte")


class Encoder(nn.Module):
    """A Transformer encoder of torch.nn, with its packed projections (nn.MultiheadAttention)."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(HIDDEN, HEADS, INNER, dropout=0.0, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, length, hidden) -> the same."""
        encoded: torch.Tensor = self.layers(x)
        return encoded


class Perceptron(nn.Module):
    """A plain network that ends in a product which is no output head."""

    def __init__(self) -> None:
        super().__init__()
        sizes = (HIDDEN, INNER, INNER, HIDDEN)
        self.layers = nn.ModuleList(nn.Linear(k, n) for k, n in itertools.pairwise(sizes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, hidden) -> the same."""
        for layer in self.layers:
            x = nn.functional.gelu(layer(x))
        return x


PLAIN: dict[str, Callable[[], nn.Module]] = {"encoder": Encoder, "perceptron": Perceptron}


def build(family: str, *, attention: str = "eager") -> nn.Module:
    """The sparse model of a family, in evaluation mode; the same at every call."""
    torch.manual_seed(0)
    if family in PLAIN:
        model = PLAIN[family]()
    else:
        import transformers

        name, fields = FAMILIES[family]
        kind = getattr(transformers, name)
        special = {} if family in ("vit", "distilbert") else _SPECIAL
        config = kind.config_class(**{**special, **fields})
        config._attn_implementation = attention
        config._experts_implementation = "batched_mm"  # the others have no ONNX form; transformers 4 takes no notice
        model = kind(config, add_pooling_layer=False) if family in ("bert", "roberta", "vit") else kind(config)
    fill(model, family)
    return model.eval().requires_grad_(False)


def fill(model: nn.Module, family: str) -> None:
    """Set every parameter from its name."""
    axes = inner_weights(model)
    for name, parameter in model.named_parameters():
        rng = np.random.default_rng(zlib.crc32(f"{family} {name}".encode()))
        values = _values(rng, tuple(parameter.shape), axes[name]) if name in axes else _around(rng, name, tuple(parameter.shape))
        with torch.no_grad():
            parameter.copy_(torch.from_numpy(values))


def inner_weights(model: nn.Module) -> dict[str, int]:
    """The linear weights inside the layers, and the axis each is summed along."""
    found = {}
    for name, parameter in model.named_parameters():
        owner = model.get_submodule(name.rpartition(".")[0])
        table = isinstance(owner, nn.Embedding) or ("embeddings" in name and not isinstance(owner, nn.Conv2d))
        if parameter.ndim < 2 or table or any(part in name for part in _OUTSIDE):
            continue
        first = type(owner).__name__ == "Conv1D"
        found[name] = 0 if first else 1 if isinstance(owner, nn.Conv2d) else parameter.ndim - 1
    return found


def candidates(model: nn.Module) -> list[str]:
    """Names of the weights that a dense version may have dense."""
    return sorted(n for n in inner_weights(model) if 1 not in model.get_parameter(n).shape)


def slug(label: str) -> str:
    """A name for a file."""
    return label.replace(" > ", "+").replace("/", "-").replace(" ", "_")


def chosen(label: str, model: nn.Module, turn: int = 0) -> str:
    """The weight that is dense in the dense version of a case: another one for each label and turn."""
    names = candidates(model)
    return names[(zlib.crc32(label.encode()) + turn) % len(names)]


def with_weight(model: nn.Module, name: str, values: np.ndarray) -> nn.Module:
    """A copy of a model with one weight exchanged."""
    made = copy.deepcopy(model)
    with torch.no_grad():
        made.get_parameter(name).copy_(torch.from_numpy(values))
    return made


def dense_values(family: str, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A weight without a pattern."""
    rng = np.random.default_rng(zlib.crc32(f"dense {family} {name}".encode()))
    return _signed(rng, shape)


def _values(rng: np.random.Generator, shape: tuple[int, ...], axis: int) -> np.ndarray:
    moved = [d for i, d in enumerate(shape) if i != axis] + [shape[axis]]
    order = rng.random((*moved[:-1], moved[-1] // 4, 4)).argsort(-1).argsort(-1)
    mask = np.moveaxis((order < 2).reshape(moved), -1, axis)
    return np.where(mask, _signed(rng, shape), np.float32(0))


def _signed(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    signs = rng.choice(np.array([-1.0, 1.0]), shape)
    return np.asarray(rng.uniform(0.5, 1.0, shape) * signs / math.sqrt(shape[-1]), np.float32)


def _around(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
    middle = 1.0 if ("norm" in name.lower() or ".ln_" in name) and name.endswith("weight") else 0.0
    return (middle + rng.normal(0.0, 0.1, shape)).astype(np.float32)
