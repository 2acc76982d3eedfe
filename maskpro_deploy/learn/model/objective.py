"""The loss, computed straight from the last hidden states.

How hidden states become logits is the `Head`'s business: for nearly all models it is one product with a matrix, perhaps capped;
any other model is asked itself.

Cross-entropy to the next tokens, the divergence from a teacher's predictions, or a mean of both. For frozen weights the teacher
is the model itself without masks, so it costs a forward pass and no memory beyond its hidden states.

The logits of a batch are the largest tensor of a small model (tokens times vocabulary), so they are never held as a whole: the
loss and its gradient are formed block of tokens by block in one pass, and only the gradient of the hidden states is kept.

Shapes: `T` tokens, `D` hidden size, `V` vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

BLOCK_TOKENS = 512


class Head(Protocol):
    """From the last hidden states to log-probabilities, and back for the gradient."""

    def log_probabilities(self, hidden: Tensor, *, differentiable: bool) -> tuple[Tensor, Any]:
        """Log-probability of every next token, and what `pull_back` needs.  # (t, D) -> (t, V) float32"""

    def pull_back(self, slope: Tensor, kept: Any) -> Tensor:
        """The gradient of the hidden states from that of the logits.  # (t, V) -> (t, D)"""


class Taught(NamedTuple):
    """What a teacher says of tokens: its last hidden states (..., D), and what makes logits of them."""

    hidden: Tensor
    head: Head


class LinearHead:
    """Logits are products with one matrix (V, D); with a cap, x becomes cap · tanh(x / cap) (Gemma 2)."""

    def __init__(self, weight: Tensor, cap: float | None = None) -> None:
        self._weight, self._cap = weight, cap

    def log_probabilities(self, hidden: Tensor, *, differentiable: bool) -> tuple[Tensor, Tensor | None]:
        """What is kept is by how much the cap flattens the logits, None without one."""
        logits = (hidden @ self._weight.t()).float()
        if self._cap is None:
            return torch.log_softmax(logits, dim=-1), None
        bent = logits.div_(self._cap).tanh_()
        steepness = 1 - bent.square()  # ∂ cap·tanh(x / cap) / ∂x
        return torch.log_softmax(bent.mul_(self._cap), dim=-1), steepness

    def pull_back(self, slope: Tensor, kept: Tensor | None) -> Tensor:
        if kept is not None:
            slope.mul_(kept)
        return slope.to(self._weight.dtype) @ self._weight


class ModelHead:
    """Logits are what the model itself makes of hidden states: with a bias, scaled, or in any other way."""

    def __init__(self, compute_logits: Callable[[Tensor], Tensor]) -> None:
        self._compute_logits = compute_logits  # (t, D) -> (t, V)

    def log_probabilities(self, hidden: Tensor, *, differentiable: bool) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        """What is kept is the states and the logits, with the graph between them."""
        if not differentiable:
            return torch.log_softmax(self._compute_logits(hidden).float(), dim=-1), None
        with torch.enable_grad():
            states = hidden.detach().requires_grad_()
            logits = self._compute_logits(states)
        return torch.log_softmax(logits.detach().float(), dim=-1), (states, logits)

    def pull_back(self, slope: Tensor, kept: tuple[Tensor, Tensor] | None) -> Tensor:
        assert kept is not None
        states, logits = kept
        (grad,) = torch.autograd.grad(logits, states, slope.to(logits.dtype))
        return grad


class _BlockLoss(torch.autograd.Function):
    """(1 - k) · CE + k · KL(teacher ‖ model), a mean over tokens."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Head, targets: Tensor, teacher: Taught | None, k: float) -> Tensor:
        wanted = ctx.needs_input_grad[0]
        grad = torch.empty_like(hidden) if wanted else hidden.new_empty(0)
        total = torch.zeros((), dtype=torch.float64, device=hidden.device)
        for start in range(0, len(targets), BLOCK_TOKENS):
            block = slice(start, start + BLOCK_TOKENS)
            picked = targets[block, None]
            log_p, kept = head.log_probabilities(hidden[block], differentiable=wanted)  # (t, V)
            if k < 1:
                total -= (1 - k) * log_p.gather(1, picked).sum(dtype=torch.float64)
            taught = None
            if teacher is not None:
                log_q, _ = teacher.head.log_probabilities(teacher.hidden[block], differentiable=False)
                taught = log_q.exp()
                total += k * (taught * log_q.sub_(log_p)).sum(dtype=torch.float64)
            if not wanted:
                continue
            slope = log_p.exp_()  # ∂CE/∂logits = p - onehot, ∂KL/∂logits = p - q
            slope.scatter_add_(1, picked, torch.full_like(picked, k - 1, dtype=slope.dtype))
            if taught is not None:
                slope.sub_(taught, alpha=k)
            grad[block] = head.pull_back(slope, kept) / len(targets)
        ctx.save_for_backward(grad)
        return (total / len(targets)).float()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = ctx.saved_tensors
        return grad * grads[0], None, None, None, None


def next_token_loss(hidden: Tensor, head: Head, targets: Tensor, teacher: Taught | None = None, share: float = 1.0) -> Tensor:
    """Mean cross-entropy of the next tokens, or with a teacher (1 - share) of it + share · KL(teacher ‖ model); nats a token.

    The loss is differentiable in the last hidden states `hidden` alone.  # (T, D), targets (T,), teacher (T, D) -> scalar
    """
    k = 0.0 if teacher is None else share
    loss: Tensor = _BlockLoss.apply(hidden, head, targets, teacher, k)  # type: ignore[no-untyped-call]
    return loss
