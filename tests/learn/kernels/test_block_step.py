"""A step of the logits of blocks: Adam on Cov(m) ∂L/∂m, and masks that are the best ones for what is stored."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from maskpro_deploy.learn.distributions import blocks
from maskpro_deploy.learn.distributions.blocks import best_transposable_mask, from_blocks, to_blocks
from maskpro_deploy.learn.distributions.transposable import TransposableBernoulli
from maskpro_deploy.learn.kernels.block_step import ByBlocks
from maskpro_deploy.learn.kernels.optimizer import LogitOptimizer
from maskpro_deploy.learn.kernels.site_step import site_step
from maskpro_deploy.learn.model.transposable_sites import TransposableSite
from maskpro_deploy.pattern import NMPattern

TWO_FOUR = NMPattern(2, 4)
SHAPE = (16, 24)


def make_site(family: TransposableBernoulli) -> TransposableSite:
    torch.manual_seed(0)
    linear = nn.Linear(SHAPE[1], SHAPE[0], bias=False)
    linear.requires_grad_(False)
    return TransposableSite("layer.weight", linear, family, torch.randn(16, SHAPE[0] * SHAPE[1] // 16))


def test_it_is_what_moves_them_on_every_device() -> None:
    for device in ("cpu", "cuda"):
        assert isinstance(site_step(TransposableBernoulli(TWO_FOUR), torch.device(device)), ByBlocks)


def test_one_step_goes_down_the_gradient_of_the_expected_loss() -> None:
    """The first step of Adam is the rate times the gradient's sign, wherever the gradient is."""
    family = TransposableBernoulli(TWO_FOUR)
    site, optimizer, grad = make_site(family), LogitOptimizer(), torch.randn(SHAPE)
    before = site.logits.float().requires_grad_()
    (slope,) = torch.autograd.grad((family.marginals(before) * to_blocks(grad * site.weight, 4)).sum(), before)
    optimizer.begin(0.05)
    ByBlocks(family)(optimizer, site, grad, key=3)
    moved = site.logits.float() - before.detach()
    moved -= moved.mean(0)
    expected = -0.05 * slope.sign()
    torch.testing.assert_close(moved, expected - expected.mean(0), atol=4e-3, rtol=0)  # a float16 near 2 is that coarse


def test_masks_stay_the_best_ones_for_the_logits_and_the_same_key_gives_the_same_bits() -> None:
    family = TransposableBernoulli(TWO_FOUR)
    ends = []
    for _ in range(2):
        site, optimizer = make_site(family), LogitOptimizer()
        for step in range(5):
            optimizer.begin(0.5)
            ByBlocks(family)(optimizer, site, torch.randn(SHAPE, generator=torch.Generator().manual_seed(step)), key=step)
            assert site.kept.equal(site.argmax())
            stored = from_blocks(site.logits.float(), SHAPE[1])
            assert torch.from_numpy(site.mask()).equal(best_transposable_mask(stored, TWO_FOUR))
        ends.append(site.logits)
    assert ends[0].equal(ends[1])
    assert not ends[0].equal(make_site(family).logits)


def test_chunks_change_no_more_than_the_noise_of_the_roundings(monkeypatch: pytest.MonkeyPatch) -> None:
    family, grad = TransposableBernoulli(TWO_FOUR), torch.randn(SHAPE)
    ends = []
    for size in (1 << 16, 1):
        monkeypatch.setattr(blocks, "_CHUNK_WEIGHTS", size)
        site, optimizer = make_site(family), LogitOptimizer()
        optimizer.begin(0.05)
        ByBlocks(family)(optimizer, site, grad, key=3)
        ends.append(site.logits.float())
    torch.testing.assert_close(ends[0], ends[1], atol=4e-3, rtol=0)
