"""Mixtures of experts, tied and fused layers: masks under the checkpoint's names."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.numpy import load_file
from test_learn import CONFIG, PATTERN, run
from tiny_model import VOCAB, tiny_tokenizer

from maskpro_deploy.checkpoint import Checkpoint
from maskpro_deploy.data import Text
from maskpro_deploy.learn.model.experts import Experts, unfuse
from maskpro_deploy.torch_lm import TorchLM, load_causal_lm

COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
}


def checkpoint(folder: Path, kind: str) -> Checkpoint:
    """A random model of some architecture, as transformers saves it."""
    import transformers as t

    torch.manual_seed(0)
    if kind == "mixtral":
        model: Any = t.MixtralForCausalLM(t.MixtralConfig(**COMMON, num_local_experts=4, num_experts_per_tok=2))
    elif kind == "qwen2_moe":
        few = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16}
        model = t.Qwen2MoeForCausalLM(t.Qwen2MoeConfig(**COMMON, **few))
    else:
        model = t.Phi3ForCausalLM(t.Phi3Config(**COMMON, tie_word_embeddings=True))
    model.save_pretrained(folder)
    tiny_tokenizer().save(str(folder / "tokenizer.json"))
    return Checkpoint.open(folder)


@pytest.mark.parametrize("kind", ["mixtral", "qwen2_moe"])
def test_experts_taken_apart_give_the_same_logits(kind: str, tmp_path: Path) -> None:
    dense = checkpoint(tmp_path / "m", kind)
    model = load_causal_lm(dense.folder, torch.float32)
    tokens = torch.arange(24).view(2, 12)
    with torch.no_grad():
        expected = model(tokens).logits
        unfuse(model)
        assert any(isinstance(m, Experts) for m in model.modules())
        torch.testing.assert_close(model(tokens).logits, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("kind", "expert"), [("mixtral", "block_sparse_moe.experts.3.w3"), ("qwen2_moe", "mlp.experts.3.up_proj")]
)
def test_experts_learn_and_the_result_is_the_masked_checkpoint(
    kind: str, expert: str, text: Text, heldout: Text, tmp_path: Path
) -> None:
    dense = checkpoint(tmp_path / "m", kind)
    config = replace(CONFIG, steps=4, evaluations=1, prior="sparsegpt")
    result = run(dense, tmp_path / "out", text, heldout, config)
    assert f"model.layers.0.{expert}.weight" in result.masks
    assert set(result.masks) <= set(dense.names)
    assert any(p > 0 for k, p in result.masks.flips_by_kind(result.prior_masks).items() if k in ("w1", "w2", "w3", "up_proj"))
    weights = load_file(tmp_path / "out" / "model.safetensors")
    for name in result.masks:
        assert PATTERN.holds(weights[name] != 0)
    # transformers reads the masked experts back
    one = TorchLM.open(tmp_path / "out", torch.float32)
    other = TorchLM.open(dense.folder, torch.float32)
    tokens = torch.arange(12).view(1, 12).numpy()
    assert abs(one.logits(tokens) - other.logits(tokens)).max() > 1e-4


def test_fused_projections_and_tied_embeddings(text: Text, heldout: Text, tmp_path: Path) -> None:
    result = run(checkpoint(tmp_path / "m", "phi3"), tmp_path / "out", text, heldout, replace(CONFIG, steps=2, evaluations=1))
    kinds = {name.split(".")[-2] for name in result.masks}
    assert kinds == {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"}


def test_experts_without_a_gate_are_taken_apart_too() -> None:
    class Stack(torch.nn.Module):
        """Experts of up and down projections (E, I, D) and (E, D, I)."""

        def __init__(self) -> None:
            super().__init__()
            self.up_proj, self.down_proj = (torch.nn.Parameter(torch.randn(shape)) for shape in ((4, 12, 8), (4, 8, 12)))
            self.act_fn = torch.nn.ReLU()

        def forward(self, x: torch.Tensor, index: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
            inner = self.act_fn(torch.einsum("tkid,td->tki", self.up_proj[index], x))
            return torch.einsum("tkdi,tki,tk->td", self.down_proj[index], inner, weights)

    torch.manual_seed(0)
    model = torch.nn.ModuleDict({"experts": Stack()})
    x, index, weights = torch.randn(5, 8), torch.randint(0, 4, (5, 1)), torch.rand(5, 1)
    expected = model["experts"](x, index, weights)
    unfuse(model)
    assert isinstance(model["experts"], Experts)
    torch.testing.assert_close(model["experts"](x, index, weights), expected, atol=1e-5, rtol=1e-4)
