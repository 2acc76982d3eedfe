"""The loss, computed straight from the last hidden states.

Cross-entropy to the next tokens, the divergence from a teacher's predictions, or a mean of both. The teacher is the dense model
itself, the same frozen weights without masks, so it costs a forward pass and no memory beyond its hidden states.

The logits of a batch are the largest tensor of a small model (tokens times vocabulary), so they are never held as a whole: the
loss and its gradient are formed block of tokens by block in one pass, and only the gradient of the hidden states is kept.

Shapes: `T` tokens, `D` hidden size, `V` vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

BLOCK_TOKENS = 512


class _LinearLoss(torch.autograd.Function):
    """(1 - k) · CE + k · KL(teacher ‖ model), a mean over tokens."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, targets: Tensor, cap: float | None, teacher: Tensor, k: float) -> Tensor:
        wanted = ctx.needs_input_grad[0]
        grad = torch.empty_like(hidden) if wanted else hidden.new_empty(0)
        total = torch.zeros((), dtype=torch.float64, device=hidden.device)
        for start in range(0, len(targets), BLOCK_TOKENS):
            block = slice(start, start + BLOCK_TOKENS)
            picked = targets[block, None]
            log_p, steepness = _log_probabilities(hidden[block], head, cap)  # (t, V)
            if k < 1:
                total -= (1 - k) * log_p.gather(1, picked).sum(dtype=torch.float64)
            taught = None
            if k > 0:
                log_q, _ = _log_probabilities(teacher[block], head, cap)
                taught = log_q.exp()
                total += k * (taught * log_q.sub_(log_p)).sum(dtype=torch.float64)
            if not wanted:
                continue
            slope = log_p.exp_()  # ∂CE/∂logits = p - onehot, ∂KL/∂logits = p - q
            slope.scatter_add_(1, picked, torch.full_like(picked, k - 1, dtype=slope.dtype))
            if taught is not None:
                slope.sub_(taught, alpha=k)
            if steepness is not None:
                slope.mul_(steepness)
            grad[block] = (slope.to(hidden.dtype) @ head) / len(targets)
        ctx.save_for_backward(grad)
        return (total / len(targets)).float()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = ctx.saved_tensors
        return grad * grads[0], None, None, None, None, None


def _log_probabilities(hidden: Tensor, head: Tensor, cap: float | None) -> tuple[Tensor, Tensor | None]:
    """Log-probability of every next token, and by how much a soft cap flattens the logits.  # (t, D), (V, D) -> (t, V)"""
    logits = (hidden @ head.t()).float()
    if cap is None:
        return torch.log_softmax(logits, dim=-1), None
    bent = logits.div_(cap).tanh_()
    steepness = 1 - bent.square()  # ∂ cap·tanh(x / cap) / ∂x
    return torch.log_softmax(bent.mul_(cap), dim=-1), steepness


def next_token_loss(
    hidden: Tensor, head: Tensor, targets: Tensor, cap: float | None = None, teacher: Tensor | None = None, share: float = 1.0
) -> Tensor:
    """Mean cross-entropy of the next tokens, or with a teacher (1 - share) of it + share · KL(teacher ‖ model); nats a token.

    With a cap, logits x become cap · tanh(x / cap) (Gemma 2). `hidden` and `teacher` are last hidden states; the loss is
    differentiable in `hidden` alone.  # hidden, teacher (T, D), head (V, D), targets (T,) -> scalar
    """
    taught, k = (hidden.detach(), 0.0) if teacher is None else (teacher, share)
    loss: Tensor = _LinearLoss.apply(hidden, head, targets, cap, taught, k)  # type: ignore[no-untyped-call]
    return loss
