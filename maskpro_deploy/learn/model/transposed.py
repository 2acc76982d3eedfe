"""Linear layers whose weight is stored (in, out): transformers' `Conv1D`, of GPT-2 and its kin.

Such a layer is replaced by a linear layer over the transposed view of the same memory, so that all that follows knows one order.
Its mask is (out, in) like every other one; the mask file says which weights are stored the other way round.

Shapes: `O` outputs, `C` inputs.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


def turn_layers(model: nn.Module) -> frozenset[str]:
    """Replace every `Conv1D` by a linear layer; the names of their weights."""
    from transformers.pytorch_utils import Conv1D

    found = [(name, module) for name, module in model.named_modules() if isinstance(module, Conv1D)]
    for name, module in found:
        path, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(path), leaf, _make_linear(module))
    return frozenset(f"{name}.weight" for name, _ in found)


def _make_linear(layer: Any) -> nn.Linear:
    """The same layer over the same memory; weight (C, O) -> (O, C)."""
    weight: Tensor = layer.weight.detach().t()
    linear = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    linear.bias = layer.bias
    return linear
