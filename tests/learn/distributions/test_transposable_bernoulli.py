"""Conditional Bernoulli over transposable masks: against its definition, its derivatives, and its own samples."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from maskpro_deploy.errors import PatternError
from maskpro_deploy.learn.distributions.transposable import OneShotBlocks, TransposableBernoulli, transposable_bernoulli
from maskpro_deploy.pattern import NMPattern

TWO_FOUR = NMPattern(2, 4)
SOME = [NMPattern(1, 2), NMPattern(2, 3), NMPattern(1, 4), TWO_FOUR, NMPattern(3, 4)]


def logits_of(pattern: NMPattern, seed: int, scale: float, count: int = 5) -> torch.Tensor:
    return torch.randn(pattern.m**2, count, generator=torch.Generator().manual_seed(seed)) * scale


def masks_of(pattern: NMPattern) -> torch.Tensor:
    return torch.from_numpy(pattern.all_transposable_masks())


@given(pattern=st.sampled_from(SOME), seed=st.integers(0, 999), scale=st.sampled_from([0.1, 1.0, 10.0, 200.0, 1e4]))
@settings(max_examples=40, deadline=None)
def test_everything_is_what_the_definition_says_over_the_whole_range_of_logits(
    pattern: NMPattern, seed: int, scale: float
) -> None:
    logits, family, masks = logits_of(pattern, seed, scale), TransposableBernoulli(pattern), masks_of(pattern)
    log_p = torch.log_softmax(torch.stack([logits.double()[mask].sum(0) for mask in masks]), dim=0)
    p, tolerance = log_p.exp(), {"atol": 2e-5 + 1e-6 * scale, "rtol": 1e-4}
    for mask, expected in zip(masks, log_p, strict=True):
        got = family.log_prob(logits, mask[:, None].expand(-1, logits.shape[1]))
        torch.testing.assert_close(got.double(), expected, **tolerance)
    torch.testing.assert_close(family.marginals(logits).double(), masks.double().t() @ p, **tolerance)
    torch.testing.assert_close(family.entropy(logits).double(), -(p * log_p.clamp_min(-1e300)).sum(0), **tolerance)
    torch.testing.assert_close(family.stay(logits).double(), p.amax(0), **tolerance)
    assert family.mode(logits).t().equal(masks[p.argmax(0)])
    h = torch.randn(logits.shape, generator=torch.Generator().manual_seed(seed + 1))
    along = masks.double() @ h.double()
    covariance = masks.double().t() @ (p * (along - (p * along).sum(0)))
    torch.testing.assert_close(family.pathwise(logits, h).double(), covariance, **tolerance)


@pytest.mark.parametrize("pattern", SOME, ids=str)
def test_pathwise_is_the_derivative_of_the_expected_mask(pattern: NMPattern) -> None:
    logits, family = logits_of(pattern, 1, 1.5).double().requires_grad_(), TransposableBernoulli(pattern)
    h = torch.randn(logits.shape, generator=torch.Generator().manual_seed(2)).double()
    (expected,) = torch.autograd.grad((family.marginals(logits) * h).sum(), logits)
    torch.testing.assert_close(family.pathwise(logits.detach(), h), expected)


@pytest.mark.parametrize("pattern", SOME, ids=str)
def test_pathwise_agrees_with_finite_differences(pattern: NMPattern) -> None:
    logits, family, step = logits_of(pattern, 3, 1.0, count=1).double(), TransposableBernoulli(pattern), 1e-5
    h = torch.randn(logits.shape, generator=torch.Generator().manual_seed(4)).double()
    slope = family.pathwise(logits, h)
    for i in range(len(logits)):
        there, back = logits.clone(), logits.clone()
        there[i] += step
        back[i] -= step
        difference = ((family.marginals(there) - family.marginals(back)) * h).sum() / (2 * step)
        assert float(slope[i]) == pytest.approx(float(difference), rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("pattern", SOME[1:], ids=str)
def test_certain_blocks_have_tiny_gradients_and_no_rounding_noise(pattern: NMPattern) -> None:
    mask = masks_of(pattern)[-1]
    logits = torch.where(mask, 8.0, -8.0)[:, None] + torch.linspace(0, 0.5, len(mask))[:, None]
    h = torch.linspace(-1, 1, len(mask)).flip(0)[:, None] ** 3 + 3
    exact = TransposableBernoulli(pattern).pathwise(logits.double(), h.double())
    assert 0 < float(exact.abs().max()) < 1e-5
    torch.testing.assert_close(TransposableBernoulli(pattern).pathwise(logits, h), exact.float(), rtol=1e-3, atol=1e-18)


def test_a_shift_of_rows_or_columns_changes_nothing() -> None:
    logits, family = logits_of(TWO_FOUR, 5, 1.0).double(), TransposableBernoulli(TWO_FOUR)
    shift = (torch.tensor([3.0, -1.0, 0.5, 2.0])[:, None] + torch.tensor([0.0, 1.0, -4.0, 2.0])).reshape(16, 1)
    torch.testing.assert_close(family.marginals(logits + shift), family.marginals(logits))
    slope = family.pathwise(logits, torch.randn(16, 5).double()).view(4, 4, 5)
    torch.testing.assert_close(slope.sum(0), torch.zeros(4, 5).double())
    torch.testing.assert_close(slope.sum(1), torch.zeros(4, 5).double())


def test_samples_come_as_often_as_their_probability_says() -> None:
    family, count = TransposableBernoulli(TWO_FOUR), 40_000
    logits = logits_of(TWO_FOUR, 6, 0.7, count=1)
    drawn = family.sample(logits.expand(-1, count), torch.rand(1, count, generator=torch.Generator().manual_seed(7)))
    assert all(TWO_FOUR.holds_both_ways(m.view(4, 4).numpy()) for m in drawn.t()[:200])
    share = (masks_of(TWO_FOUR).float() @ drawn.float() == 8).float().mean(1)
    torch.testing.assert_close(share, family.probabilities(logits)[:, 0], atol=0.01, rtol=0)


def test_patterns_with_too_many_masks_have_a_one_shot_mask_that_nothing_moves() -> None:
    pattern = NMPattern(4, 8)
    family = transposable_bernoulli(pattern)
    assert isinstance(family, OneShotBlocks)
    logits = torch.randn(64, 3)
    mode = family.mode(logits)
    assert mode.equal(logits > 0)
    assert family.sample(logits, torch.rand(1, 3)).equal(mode)
    assert family.marginals(logits).equal(mode.float())
    assert (family.entropy(logits), family.stay(logits))[0].tolist() == [0, 0, 0]
    assert family.stay(logits).tolist() == [1, 1, 1]
    assert family.log_prob(logits, mode).tolist() == [0, 0, 0]
    assert family.log_prob(logits, ~mode).tolist() == [-torch.inf] * 3
    for refused in (family.score, family.pathwise):
        with pytest.raises(PatternError, match="too many a block"):
            refused(logits, mode)
