"""The blockwise loss equals the plain one, and so does its gradient."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from maskpro_deploy.learn.model.objective import Head, LinearHead, ModelHead, Taught, next_token_loss


def test_loss_and_gradient_equal_those_of_torch_over_several_blocks() -> None:
    torch.manual_seed(0)
    hidden = torch.randn(1100, 16, requires_grad=True)  # three blocks, the last one partial
    head = torch.randn(50, 16)
    targets = torch.randint(0, 50, (1100,))
    plain_hidden = hidden.detach().clone().requires_grad_()
    plain = nn.functional.cross_entropy(plain_hidden @ head.t(), targets)
    plain.backward()
    loss = next_token_loss(hidden, LinearHead(head), targets)
    (3.0 * loss).backward()
    torch.testing.assert_close(loss, plain.detach())
    assert plain_hidden.grad is not None
    torch.testing.assert_close(hidden.grad, 3.0 * plain_hidden.grad, atol=1e-7, rtol=1e-4)


def test_without_a_gradient_to_give_only_the_loss_is_computed() -> None:
    torch.manual_seed(0)
    hidden, head, targets = torch.randn(700, 16), torch.randn(50, 16), torch.randint(0, 50, (700,))
    with torch.inference_mode():
        loss = next_token_loss(hidden, LinearHead(head), targets)
    torch.testing.assert_close(loss, nn.functional.cross_entropy(hidden @ head.t(), targets))


def make_model_head(head: torch.Tensor, cap: float | None) -> ModelHead:
    return ModelHead(lambda states: states @ head.t() if cap is None else cap * torch.tanh(states @ head.t() / cap))


@pytest.mark.parametrize("make_head", [LinearHead, make_model_head])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("cap", [None, 3.0])
def test_the_mixture_with_a_teacher_equals_its_definition(
    share: float, cap: float | None, make_head: Callable[[torch.Tensor, float | None], Head]
) -> None:
    torch.manual_seed(1)
    hidden, teacher = torch.randn(700, 16), torch.randn(700, 16)
    head, targets = torch.randn(50, 16), torch.randint(0, 50, (700,))

    def log_p(states: torch.Tensor) -> torch.Tensor:
        logits = states @ head.t()
        return torch.log_softmax(logits if cap is None else cap * torch.tanh(logits / cap), dim=-1)

    plain_hidden = hidden.clone().requires_grad_()
    divergence = nn.functional.kl_div(log_p(plain_hidden), log_p(teacher), log_target=True, reduction="batchmean")
    plain = (1 - share) * nn.functional.nll_loss(log_p(plain_hidden), targets) + share * divergence
    plain.backward()
    own_hidden = hidden.clone().requires_grad_()
    own_head = make_head(head, cap)
    loss = next_token_loss(own_hidden, own_head, targets, Taught(teacher, own_head), share)
    loss.backward()
    torch.testing.assert_close(loss.detach(), plain.detach(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(own_hidden.grad, plain_hidden.grad, atol=1e-7, rtol=1e-4)
