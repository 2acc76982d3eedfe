"""Experts as linear layers.

transformers keeps the experts of a mixture in two parameters of three dimensions, gate and up projection fused in one of them.
The learner masks linear layers, so such a module is replaced by one whose experts have three linear layers each, which are views
of the same memory. What comes out is compared with what the module itself gives; a module that computes something else is left
alone, and then refused by name.

Shapes: `E` experts, `K` of them for a token, `T` tokens, `D` hidden size, `I` inner size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

_TOKENS, _CHOSEN = 6, 2  # of the comparison
_TOLERANCE = 2e-2  # relative to the largest output: bf16 rounds differently in another order
# module name -> name in checkpoints that have other ones (Mixtral and those after it)
_ALIASES = {
    ".mlp.experts.": ".block_sparse_moe.experts.", ".gate_proj.": ".w1.", ".up_proj.": ".w3.", ".down_proj.": ".w2.",
}  # fmt: skip


class _Expert(nn.Module):
    """One expert: down(act(gate x) ∘ up x)."""

    def __init__(self, gate_up: Tensor, down: Tensor, act: Any) -> None:
        super().__init__()
        inner = gate_up.shape[0] // 2
        self.gate_proj, self.up_proj, self.down_proj = _linear(gate_up[:inner]), _linear(gate_up[inner:]), _linear(down)
        self.act_fn = act

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))
        return y


def _linear(weight: Tensor) -> nn.Linear:
    """A frozen linear layer over existing memory.  # (O, C)"""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.weight = nn.Parameter(weight, requires_grad=False)
    return layer


class Experts(nn.ModuleList):
    """The experts of one block; child `e` is expert e.  # gate_up (E, 2I, D), down (E, D, I)"""

    def __init__(self, gate_up: Tensor, down: Tensor, act: Any) -> None:
        super().__init__(_Expert(g, d, act) for g, d in zip(gate_up, down, strict=True))

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """The weighted sum of the chosen experts.  # (T, D), (T, K), (T, K) -> (T, D)"""
        total = torch.zeros_like(hidden_states)
        for number, expert in enumerate(self):
            token, place = torch.where(top_k_index == number)
            if len(token):
                output = expert(hidden_states[token]) * top_k_weights[token, place, None]
                total = total.index_add(0, token, output.to(total.dtype))
        return total


def unfuse(model: nn.Module) -> None:
    """Replace every module of fused experts that this one can stand in for."""
    for name, module in list(model.named_modules()):
        if _is_fused(module) and (other := _stand_in(module)) is not None:
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, other)


def fused_left(model: nn.Module) -> Iterator[str]:
    """Names of modules whose weights have three dimensions: what cannot be masked."""
    for name, module in model.named_modules():
        if any(p.dim() == 3 and min(p.shape[1:]) > 1 for p in module.parameters(recurse=False)):
            yield name


def _is_fused(module: nn.Module) -> bool:
    own = dict(module.named_parameters(recurse=False))
    if own.keys() != {"gate_up_proj", "down_proj"} or not hasattr(module, "act_fn"):
        return False
    up, down = own["gate_up_proj"], own["down_proj"]
    return up.dim() == down.dim() == 3 and tuple(up.shape) == (down.shape[0], 2 * down.shape[2], down.shape[1])


@torch.no_grad()
def _stand_in(module: Any) -> Experts | None:
    """The same as linear layers, or None if that computes something else."""
    gate_up, down = module.gate_up_proj.detach(), module.down_proj.detach()
    other = Experts(gate_up, down, module.act_fn)
    if gate_up.is_meta:
        return other
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(_TOKENS, gate_up.shape[2], generator=generator).to(gate_up)
    index = torch.stack([torch.randperm(len(gate_up), generator=generator)[:_CHOSEN] for _ in range(_TOKENS)]).to(gate_up.device)
    weights = torch.rand(index.shape, generator=generator).to(gate_up)
    try:
        expected = module(x, index, weights)
    except (TypeError, ValueError, RuntimeError):
        return None
    outputs = other(x, index, weights)
    error = (expected - outputs).abs().max()
    return other if bool(error <= _TOLERANCE * expected.abs().max()) else None


def checkpoint_name(name: str, shapes: Mapping[str, Any]) -> str:
    """What a weight of the model, experts as linear layers, is called in a checkpoint that has the names `shapes`.

    That is the name itself, or one of the aliases that checkpoints of mixtures use if that is there.
    """
    alias = name
    for own, theirs in _ALIASES.items():
        alias = alias.replace(own, theirs)
    return alias if name not in shapes and alias in shapes else name
