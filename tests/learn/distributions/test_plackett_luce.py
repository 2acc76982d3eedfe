"""Plackett-Luce against the sum over all orders, and against its own derivatives."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from maskpro_deploy.errors import PatternError
from maskpro_deploy.learn.distributions.plackett_luce import PlackettLuce
from maskpro_deploy.pattern import NMPattern

ALL = [NMPattern(n, m) for m in range(2, 9) for n in range(1, min(m, 5)) if math.comb(m, n) <= 70]


def logits_of(pattern: NMPattern, seed: int, scale: float, groups: int = 3) -> torch.Tensor:
    return torch.randn(pattern.m, groups, generator=torch.Generator().manual_seed(seed)) * scale


def by_orders(logits: torch.Tensor, kept: tuple[int, ...]) -> torch.Tensor:
    """log p of a set as the sum over its orders, in float64.  # (M, G) -> (G,)"""
    x = logits.double()
    terms = []
    for order in itertools.permutations(kept):
        left, total = list(range(len(x))), torch.zeros(x.shape[1], dtype=torch.float64)
        for i in order:
            total = total + x[i] - torch.logsumexp(x[left], dim=0)
            left.remove(i)
        terms.append(total)
    return torch.logsumexp(torch.stack(terms), dim=0)


def mask_of(pattern: NMPattern, kept: tuple[int, ...], groups: int) -> torch.Tensor:
    return torch.tensor([i in kept for i in range(pattern.m)])[:, None].expand(-1, groups)


@given(pattern=st.sampled_from(ALL), seed=st.integers(0, 999), scale=st.sampled_from([0.1, 1.0, 10.0, 200.0, 1e4]))
@settings(max_examples=40, deadline=None)
def test_log_prob_equals_the_sum_over_all_orders(pattern: NMPattern, seed: int, scale: float) -> None:
    logits, family = logits_of(pattern, seed, scale), PlackettLuce(pattern)
    subsets = list(itertools.combinations(range(pattern.m), pattern.n))
    for kept in subsets[:: max(1, len(subsets) // 6)]:
        got = family.log_prob(logits, mask_of(pattern, kept, 3)).double()
        torch.testing.assert_close(got, by_orders(logits, kept), atol=2e-5 + 1e-6 * scale, rtol=1e-4)


@given(pattern=st.sampled_from(ALL), seed=st.integers(0, 999), scale=st.sampled_from([1.0, 10.0, 100.0]))
@settings(max_examples=25, deadline=None)
def test_score_is_the_derivative_of_log_prob(pattern: NMPattern, seed: int, scale: float) -> None:
    logits, family = logits_of(pattern, seed, scale).double().requires_grad_(), PlackettLuce(pattern)
    generator = torch.Generator().manual_seed(seed)
    mask = family.sample(torch.zeros_like(logits), torch.rand(logits.shape, generator=generator).double())
    (expected,) = torch.autograd.grad(by_orders_of_masks(logits, mask).sum(), logits)
    torch.testing.assert_close(family.score(logits.detach(), mask), expected, atol=1e-9, rtol=1e-7)
    low = family.score(logits.detach().float(), mask)
    torch.testing.assert_close(low.double(), expected, atol=1e-4, rtol=1e-3)


def by_orders_of_masks(logits: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return torch.cat(
        [by_orders(logits[:, g : g + 1], tuple(torch.nonzero(mask[:, g]).flatten().tolist())) for g in range(logits.shape[1])]
    )


def test_score_stays_exact_where_one_kept_weight_takes_all_probability() -> None:
    # a formula with 1 / (1 - p) goes wrong by orders of magnitude here
    logits = torch.tensor([20.0, 10.0, 0.0, 0.0])[:, None]
    mask = torch.tensor([True, True, False, False])[:, None]
    score = PlackettLuce(NMPattern(2, 4)).score(logits, mask)
    expected = 1 - math.exp(10) / (math.exp(10) + 2)
    assert float(score[1]) == pytest.approx(expected, rel=1e-2)
    assert abs(float(score[0])) < 1e-6


@pytest.mark.parametrize("pattern", [NMPattern(1, 4), NMPattern(2, 4), NMPattern(4, 8)], ids=str)
def test_masks_sum_to_one_and_scores_have_mean_zero(pattern: NMPattern) -> None:
    logits, family = logits_of(pattern, 3, 1.5), PlackettLuce(pattern)
    total, mean = torch.zeros(3), torch.zeros_like(logits)
    for kept in itertools.combinations(range(pattern.m), pattern.n):
        mask = mask_of(pattern, kept, 3)
        p = family.log_prob(logits, mask).exp()
        total, mean = total + p, mean + p * family.score(logits, mask)
    torch.testing.assert_close(total, torch.ones(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(mean, torch.zeros_like(mean), atol=1e-4, rtol=0)
    torch.testing.assert_close(family.marginals(logits).sum(0), torch.full((3,), float(pattern.n)), atol=1e-4, rtol=0)


def test_samples_have_the_frequencies_of_the_distribution() -> None:
    pattern, draws = NMPattern(2, 4), 100_000
    family, logits = PlackettLuce(pattern), logits_of(pattern, 5, 1.0, groups=1)
    drawn = family.sample(logits.expand(-1, draws), torch.rand(4, draws, generator=torch.Generator().manual_seed(6)))
    for kept in itertools.combinations(range(4), 2):
        p = float(family.log_prob(logits, mask_of(pattern, kept, 1)).exp())
        frequency = float((drawn == mask_of(pattern, kept, draws)).all(0).double().mean())
        assert abs(frequency - p) < 5 * math.sqrt(p * (1 - p) / draws)


def test_it_is_no_conditional_bernoulli_and_its_mode_is_the_top_n() -> None:
    family, logits = PlackettLuce(NMPattern(2, 4)), logits_of(NMPattern(2, 4), 1, 2.0)
    p = {k: family.log_prob(logits, mask_of(family.pattern, k, 3)) for k in itertools.combinations(range(4), 2)}
    best = torch.stack(list(p.values())).argmax(0)
    for g, index in enumerate(best.tolist()):
        assert set(list(p)[index]) == set(logits[:, g].topk(2).indices.tolist())
    torch.testing.assert_close(family.stay(logits), torch.stack(list(p.values())).exp().amax(0))
    assert float(family.entropy(torch.zeros(4, 1))) == pytest.approx(math.log(6), rel=1e-5)


def test_8_16_has_finite_scores_and_more_kept_weights_are_refused() -> None:
    family = PlackettLuce(NMPattern(8, 16))
    logits = logits_of(NMPattern(8, 16), 1, 3.0)
    score = family.score(logits, family.mode(logits))
    assert torch.isfinite(score).all()
    torch.testing.assert_close(score.sum(0), torch.zeros(3), atol=1e-4, rtol=0)
    with pytest.raises(PatternError, match="conditional-bernoulli"):
        PlackettLuce(NMPattern(9, 18))
