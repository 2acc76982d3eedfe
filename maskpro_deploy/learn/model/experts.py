"""Experts as linear layers.

transformers keeps the experts of a mixture in two parameters of three dimensions, gate and up projection fused in one of them, or
without a gate. The learner masks linear layers, so such a module is replaced by one whose experts have two or three linear layers
each, which are views of the same memory. What comes out is compared with what the module itself gives; a module that computes
something else is left alone, and stays dense.

Shapes: `E` experts, `K` of them for a token, `T` tokens, `D` hidden size, `I` inner size.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

_TOKENS, _CHOSEN = 6, 2  # of the comparison
_TOLERANCE = 2e-2  # relative to the largest output: bf16 rounds differently in another order


class _Expert(nn.Module):
    """One expert: down(act(gate x) ∘ up x), or down(act(up x)) without a gate."""

    def __init__(self, first: Tensor, down: Tensor, act: Any) -> None:
        super().__init__()
        inner, self.gated = down.shape[1], first.shape[0] == 2 * down.shape[1]
        if self.gated:
            self.gate_proj = _linear(first[:inner])
        self.up_proj, self.down_proj = _linear(first[-inner:]), _linear(down)
        self.act_fn = act

    def forward(self, x: Tensor) -> Tensor:
        inner = self.act_fn(self.gate_proj(x)) * self.up_proj(x) if self.gated else self.act_fn(self.up_proj(x))
        y: Tensor = self.down_proj(inner)
        return y


def _linear(weight: Tensor) -> nn.Linear:
    """A frozen linear layer over existing memory.  # (O, C)"""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.weight = nn.Parameter(weight, requires_grad=False)
    return layer


class Experts(nn.ModuleList):
    """The experts of one block; child `e` is expert e.  # gate and up, or up alone (E, 2I or I, D), down (E, D, I)"""

    def __init__(self, first: Tensor, down: Tensor, act: Any) -> None:
        super().__init__(_Expert(f, d, act) for f, d in zip(first, down, strict=True))

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
        if (other := _stand_in(module)) is not None:
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, other)


def list_fused(model: nn.Module) -> Iterator[str]:
    """Names of modules that hold several matrices in one parameter: what cannot be masked."""
    for name, module in model.named_modules():
        shapes = [p.shape for p in module.parameters(recurse=False) if p.dim() > 1 and min(p.shape[-2:]) > 1]
        if any(len(shape) == 3 for shape in shapes) or (shapes and ".experts." in name and not isinstance(module, nn.Linear)):
            yield name


def _find_stacks(module: nn.Module) -> tuple[Tensor, Tensor] | None:
    """Gate and up, or up alone (E, 2I or I, D), and down (E, D, I), if that is what a module has."""
    own = dict(module.named_parameters(recurse=False))
    first, down = own.pop("gate_up_proj", None), own.pop("down_proj", None)
    gates = 2
    if first is None:
        first, gates = own.pop("up_proj", None), 1
    if first is None or down is None or own or not hasattr(module, "act_fn"):
        return None
    fits = first.dim() == down.dim() == 3 and tuple(first.shape) == (down.shape[0], gates * down.shape[2], down.shape[1])
    return (first.detach(), down.detach()) if fits else None


@torch.no_grad()
def _stand_in(module: Any) -> Experts | None:
    """The same as linear layers, or None if that computes something else."""
    if (stacks := _find_stacks(module)) is None:
        return None
    first, down = stacks
    other = Experts(first, down, module.act_fn)
    if first.is_meta:
        return other
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(_TOKENS, first.shape[2], generator=generator).to(first)
    index = torch.stack([torch.randperm(len(first), generator=generator)[:_CHOSEN] for _ in range(_TOKENS)]).to(first.device)
    weights = torch.rand(index.shape, generator=generator).to(first)
    try:
        expected = module(x, index, weights)
    except (TypeError, ValueError, RuntimeError):
        return None
    outputs = other(x, index, weights)
    error = (expected - outputs).abs().max()
    return other if bool(error <= _TOLERANCE * expected.abs().max()) else None
