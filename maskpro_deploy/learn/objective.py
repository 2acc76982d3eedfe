"""The loss, computed straight from the last hidden states.

The logits of a batch are the largest tensor of a small model (tokens times vocabulary), so they are never held as a whole: the
loss and its gradient are formed block of tokens by block in one pass, and only the gradient of the hidden states is kept.

Shapes: `T` tokens, `D` hidden size, `V` vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_BLOCK_TOKENS = 512


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
        wanted = ctx.needs_input_grad[0]
        grad = torch.empty_like(hidden) if wanted else hidden.new_empty(0)
        total = torch.zeros((), dtype=torch.float64, device=hidden.device)
        for start in range(0, len(targets), _BLOCK_TOKENS):
            block = slice(start, start + _BLOCK_TOKENS)
            picked = targets[block, None]
            log_p = torch.log_softmax((hidden[block] @ head.t()).float(), dim=-1)  # (t, V)
            total -= log_p.gather(1, picked).sum(dtype=torch.float64)
            if not wanted:
                continue
            slope = log_p.exp_()  # ∂CE/∂logits = p - onehot
            slope.scatter_add_(1, picked, torch.full_like(picked, -1, dtype=slope.dtype))
            grad[block] = (slope.to(hidden.dtype) @ head) / len(targets)
        ctx.save_for_backward(grad)
        return (total / len(targets)).float()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (grad,) = ctx.saved_tensors
        return grad * grads[0], None, None


def cross_entropy(hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of the next tokens, differentiable in `hidden` only.

    Args:
        hidden: last hidden states (T, D).
        head: the output embedding, frozen (V, D).
        targets: next tokens (T,).

    Returns:
        A scalar, in nats a token.
    """
    loss: Tensor = _LinearCrossEntropy.apply(hidden, head, targets)  # type: ignore[no-untyped-call]
    return loss
