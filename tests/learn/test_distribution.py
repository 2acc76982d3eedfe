"""The mask distribution, against enumeration and against its own derivatives."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from maskpro_deploy.errors import PatternError
from maskpro_deploy.learn.distribution import ConditionalBernoulli
from maskpro_deploy.pattern import NMPattern

PATTERNS = [NMPattern(1, 2), NMPattern(1, 4), NMPattern(2, 4), NMPattern(3, 4), NMPattern(2, 6), NMPattern(4, 8)]
patterns = st.sampled_from(PATTERNS)


def logits_of(pattern: NMPattern, seed: int, scale: float, groups: int = 5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(pattern.m, groups, generator=generator) * scale


def enumerated(pattern: NMPattern, logits: torch.Tensor) -> torch.Tensor:
    """p(m) of every mask in float64, by the definition.  # (M, G) -> (S, G)"""
    subsets = list(itertools.combinations(range(pattern.m), pattern.n))
    sums = torch.stack([logits.double()[list(s)].sum(0) for s in subsets])
    weights = (sums - sums.amax(0)).exp()
    return weights / weights.sum(0)


@given(pattern=patterns, seed=st.integers(0, 999), scale=st.sampled_from([0.1, 1.0, 10.0, 200.0]))
@settings(max_examples=40, deadline=None)
def test_probabilities_equal_enumeration_over_the_whole_range_of_logits(pattern: NMPattern, seed: int, scale: float) -> None:
    logits = logits_of(pattern, seed, scale)
    p = ConditionalBernoulli(pattern).probabilities(logits)
    assert torch.isfinite(p).all()
    torch.testing.assert_close(p.double(), enumerated(pattern, logits), atol=2e-4, rtol=1e-3)


@given(pattern=patterns, seed=st.integers(0, 999))
@settings(max_examples=20, deadline=None)
def test_marginals_sum_to_n_and_are_the_mean_mask(pattern: NMPattern, seed: int) -> None:
    logits, family = logits_of(pattern, seed, 2.0), ConditionalBernoulli(pattern)
    marginals = family.marginals(logits)
    torch.testing.assert_close(marginals.sum(0), torch.full((logits.shape[1],), float(pattern.n)))
    expected = family.masks.double().t() @ enumerated(pattern, logits)
    torch.testing.assert_close(marginals.double(), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_pathwise_is_the_derivative_of_the_marginals(pattern: NMPattern) -> None:
    logits = logits_of(pattern, 1, 1.5).requires_grad_()
    family = ConditionalBernoulli(pattern)
    h = torch.randn(logits.shape, generator=torch.Generator().manual_seed(2))
    (expected,) = torch.autograd.grad((family.marginals(logits) * h).sum(), logits)
    torch.testing.assert_close(family.pathwise(logits.detach(), h), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_pathwise_gradient_is_unbiased_for_a_linear_loss(pattern: NMPattern) -> None:
    # for L(m) = <c, m> the derivative of E[L] is Cov(m) c, whatever was sampled: bias and variance are both zero
    logits = logits_of(pattern, 3, 1.0).double().requires_grad_()
    c = torch.linspace(-1, 1, pattern.m).double()[:, None].expand_as(logits)
    exact = (enumerated_loss(pattern, logits, c)).sum()
    (expected,) = torch.autograd.grad(exact, logits)
    estimate = ConditionalBernoulli(pattern).pathwise(logits.detach().float(), c.float())
    torch.testing.assert_close(estimate.double(), expected, atol=1e-5, rtol=1e-4)


def enumerated_loss(pattern: NMPattern, logits: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    masks = torch.from_numpy(pattern.all_masks()).double()
    return (torch.softmax(masks @ logits, dim=0) * (masks @ c)).sum(0)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_score_is_the_derivative_of_log_prob_and_has_mean_zero(pattern: NMPattern) -> None:
    family, logits = ConditionalBernoulli(pattern), logits_of(pattern, 4, 1.0)
    total = torch.zeros_like(logits)
    for state in range(pattern.num_masks):
        index = torch.full((logits.shape[1],), state)
        free = logits.clone().requires_grad_()
        log_p = family.log_prob(free, index)
        (expected,) = torch.autograd.grad(log_p.sum(), free)
        score = family.score(logits, index)
        torch.testing.assert_close(score, expected, atol=1e-5, rtol=1e-4)
        total += log_p.detach().exp() * score
    torch.testing.assert_close(total, torch.zeros_like(total), atol=1e-5, rtol=0)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_samples_have_the_frequencies_of_the_distribution(pattern: NMPattern) -> None:
    family = ConditionalBernoulli(pattern)
    draws = 200_000
    logits = logits_of(pattern, 5, 1.0, groups=1)
    uniform = torch.rand(draws, generator=torch.Generator().manual_seed(6))
    states = family.sample(logits.expand(-1, draws), uniform)
    frequency = torch.bincount(states.long(), minlength=pattern.num_masks).double() / draws
    p = enumerated(pattern, logits).squeeze(1)
    deviation = (frequency - p).abs() / (p * (1 - p) / draws).sqrt().clamp_min(1e-9)
    assert float(deviation.max()) < 5.0


def test_the_largest_uniform_below_one_still_gives_a_mask() -> None:
    family = ConditionalBernoulli(NMPattern(2, 4))
    just_below_one = torch.tensor([1.0]).nextafter(torch.tensor([0.0]))
    assert int(family.sample(torch.zeros(4, 1), just_below_one)) < family.pattern.num_masks


@given(pattern=patterns, seed=st.integers(0, 999))
@settings(max_examples=20, deadline=None)
def test_mode_is_the_top_n(pattern: NMPattern, seed: int) -> None:
    logits, family = logits_of(pattern, seed, 3.0), ConditionalBernoulli(pattern)
    kept = family.masks[family.mode(logits)]  # (G, M)
    assert (kept.numpy() == pattern.top(logits.t().contiguous().numpy())).all()


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_entropy_is_highest_for_equal_logits_and_zero_for_certain_ones(pattern: NMPattern) -> None:
    family = ConditionalBernoulli(pattern)
    even = family.entropy(torch.zeros(pattern.m, 1))
    assert float(even) == pytest.approx(math.log(pattern.num_masks), rel=1e-5)
    certain = torch.arange(pattern.m, dtype=torch.float32)[:, None] * 100
    assert float(family.entropy(certain)) == pytest.approx(0.0, abs=1e-5)


def test_patterns_with_too_many_masks_are_refused() -> None:
    with pytest.raises(PatternError, match="8:16 has 12870 masks"):
        ConditionalBernoulli(NMPattern(8, 16))
