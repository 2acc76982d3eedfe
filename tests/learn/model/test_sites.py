"""Masked layers: what they compute, and which gradient reaches the logits."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from maskpro_deploy.learn.distributions.base import to_planes
from maskpro_deploy.learn.distributions.conditional_bernoulli import conditional_bernoulli
from maskpro_deploy.learn.model.masked_linear import Mode, SiteHook
from maskpro_deploy.learn.model.sites import Site
from maskpro_deploy.pattern import NMPattern

PATTERN = NMPattern(2, 4)


@pytest.fixture
def site() -> Site:
    torch.manual_seed(0)
    linear = nn.Linear(16, 6)
    linear.requires_grad_(False)
    return Site("layer.weight", linear, conditional_bernoulli(PATTERN), torch.randn(4, 6 * 16 // 4))


class Hook(SiteHook):
    """Keeps the gradients; draws the given mask, or a sample."""

    def __init__(self, mask: torch.Tensor | None = None) -> None:
        self.mask, self.received = mask, []

    def draw_mask(self, site: Site) -> torch.Tensor:
        return site.sample(1.0, site.key(0)) if self.mask is None else self.mask

    def take_gradient(self, site: Site, grad_weight: torch.Tensor) -> None:
        self.received.append(grad_weight)

    def compute_outputs(self, site: Site, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, 2 * site.weight)


def kept(weight: torch.Tensor) -> torch.Tensor:
    return (weight != 0).view(-1, PATTERN.m).sum(1)


def test_planes_hold_every_group_in_row_major_order() -> None:
    x = torch.arange(24.0).view(2, 12)
    planes = to_planes(x, 4)
    assert planes.t().reshape(2, 12).equal(x)


def test_dense_mode_is_the_linear_layer_itself(site: Site) -> None:
    x = torch.randn(3, 16)
    site.mode = Mode.DENSE
    torch.testing.assert_close(site(x), nn.functional.linear(x, site.weight, site.bias))


@pytest.mark.parametrize("mode", [Mode.SAMPLE, Mode.ARGMAX])
def test_masked_weight_keeps_exactly_n_of_every_group(site: Site, mode: Mode) -> None:
    site.mode = mode
    site.hook = Hook()
    assert (kept(site.masked_weight()) == PATTERN.n).all()


def test_argmax_weight_agrees_with_the_mask_it_reports(site: Site) -> None:
    site.mode = Mode.ARGMAX
    assert torch.equal(site.masked_weight() != 0, torch.from_numpy(site.mask()))


def test_the_same_key_gives_the_same_sample_and_another_key_another(site: Site) -> None:
    draws = [site.sample(1.0, site.key(*numbers)) for numbers in ((0, 1), (0, 1), (0, 2), (1, 1))]
    assert draws[0].equal(draws[1])
    assert not draws[0].equal(draws[2])
    assert not draws[0].equal(draws[3])


@pytest.mark.parametrize("mode", [Mode.SAMPLE, Mode.ARGMAX, Mode.DENSE])
def test_backward_gives_the_gradients_of_the_masked_layer(site: Site, mode: Mode) -> None:
    site.hook = hook = Hook()
    site.mode = mode
    x = torch.randn(2, 5, 16, requires_grad=True)
    (site(x) ** 2).sum().backward()

    weight = site.masked_weight().clone().requires_grad_()
    y = x.detach().clone().requires_grad_()
    (nn.functional.linear(y, weight, site.bias) ** 2).sum().backward()
    torch.testing.assert_close(x.grad, y.grad)
    torch.testing.assert_close(hook.received[0], weight.grad)


def test_a_soft_mask_multiplies_the_weight(site: Site) -> None:
    factors = torch.rand(6, 16)
    site.mode, site.hook = Mode.SAMPLE, Hook(factors)
    torch.testing.assert_close(site.masked_weight(), site.weight * factors)


def test_the_gradient_of_the_input_belongs_to_the_mask_of_the_forward_pass(site: Site) -> None:
    class Mover(SiteHook):
        def take_gradient(self, site: Site, grad_weight: torch.Tensor) -> None:
            site.kept = ~site.kept

    site.hook = Mover()
    before = site.masked_weight().clone()
    x = torch.randn(3, 16, requires_grad=True)
    site(x).sum().backward()
    torch.testing.assert_close(x.grad, before.sum(0).expand(3, -1))
    assert not torch.equal(site.masked_weight(), before)


def test_work_in_chunks_gives_what_work_at_once_gives(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = site.argmax()
    monkeypatch.setattr("maskpro_deploy.learn.model.masked_linear._CHUNK_WEIGHTS", 64)
    assert len(list(site.chunks())) == 2
    assert site.argmax().equal(whole)


def test_a_hook_may_compute_the_outputs_itself_and_no_hook_moves_nothing(site: Site) -> None:
    x = torch.randn(3, 16)
    site.mode = Mode.HOOK
    with pytest.raises(NotImplementedError):
        site(x)
    site.hook = Hook()
    torch.testing.assert_close(site(x), nn.functional.linear(x, 2 * site.weight))
    site.mode, site.hook = Mode.SAMPLE, SiteHook()
    assert torch.equal(site.masked_weight() != 0, torch.from_numpy(site.mask()))


def test_no_gradient_is_stored_on_the_weight(site: Site) -> None:
    x = torch.randn(2, 16, requires_grad=True)
    site(x).sum().backward()
    assert site.weight.grad is None


def test_the_argmax_mask_keeps_no_zero_weight_while_its_group_has_others() -> None:
    linear = nn.Linear(4, 2, bias=False)
    linear.requires_grad_(False)
    linear.weight.copy_(torch.tensor([[0.0, 1.0, 2.0, 0.0], [0.0, 0.0, 0.0, 3.0]]))
    favour_the_zeros = torch.tensor([[9.0, 0.0, 0.0, 9.0], [9.0, 9.0, 0.0, 0.0]]).t().contiguous()
    mask = Site("w", linear, conditional_bernoulli(PATTERN), favour_the_zeros).mask()
    assert mask[0].tolist() == [False, True, True, False]
    assert mask[1, 3]
    assert mask[1].sum() == 2
