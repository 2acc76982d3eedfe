"""Conditional Bernoulli, both ways of computing it, against enumeration and against its own derivatives."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from maskpro_deploy.learn.distributions.conditional_bernoulli import Enumerated, Recursive, conditional_bernoulli
from maskpro_deploy.learn.distributions.planes import centre, top, top_of_centred
from maskpro_deploy.pattern import NMPattern

ALL = [NMPattern(n, m) for m in range(2, 9) for n in range(1, m) if math.comb(m, n) <= 70]
SOME = [NMPattern(1, 2), NMPattern(1, 4), NMPattern(2, 4), NMPattern(3, 4), NMPattern(2, 6), NMPattern(4, 8)]
patterns = st.sampled_from(ALL)
scales = st.sampled_from([0.1, 1.0, 10.0, 200.0, 1e4])
WAYS = [Enumerated, Recursive]


def logits_of(pattern: NMPattern, seed: int, scale: float, groups: int = 5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(pattern.m, groups, generator=generator) * scale


def masks_of(pattern: NMPattern) -> torch.Tensor:
    """Every mask.  # (S, M) boolean"""
    return torch.from_numpy(pattern.all_masks())


def enumerated(pattern: NMPattern, logits: torch.Tensor) -> torch.Tensor:
    """log p(m) of every mask in float64, by the definition.  # (M, G) -> (S, G)"""
    subsets = list(itertools.combinations(range(pattern.m), pattern.n))
    return torch.log_softmax(torch.stack([logits.double()[list(s)].sum(0) for s in subsets]), dim=0)


@pytest.mark.parametrize("way", WAYS)
@given(pattern=patterns, seed=st.integers(0, 999), scale=scales)
@settings(max_examples=40, deadline=None)
def test_everything_equals_enumeration_over_the_whole_range_of_logits(
    way: type[Enumerated] | type[Recursive], pattern: NMPattern, seed: int, scale: float
) -> None:
    logits, family = logits_of(pattern, seed, scale), way(pattern)
    log_p, masks = enumerated(pattern, logits), masks_of(pattern)
    tolerance = {"atol": 2e-5 + 1e-6 * scale, "rtol": 1e-4}
    for mask, expected in zip(masks, log_p, strict=True):
        got = family.log_prob(logits, mask[:, None].expand(-1, logits.shape[1]))
        torch.testing.assert_close(got.double(), expected, **tolerance)
    p = log_p.exp()
    mean = masks.double().t() @ p
    torch.testing.assert_close(family.marginals(logits).double(), mean, **tolerance)
    torch.testing.assert_close(family.entropy(logits).double(), -(p * log_p.clamp_min(-1e300)).sum(0), **tolerance)
    torch.testing.assert_close(family.stay(logits).double(), p.amax(0), **tolerance)
    h = torch.randn(logits.shape, generator=torch.Generator().manual_seed(seed + 1))
    along = masks.double() @ h.double()
    covariance = masks.double().t() @ (p * (along - (p * along).sum(0)))
    torch.testing.assert_close(family.pathwise(logits, h).double(), covariance, **tolerance)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("pattern", [NMPattern(2, 4), NMPattern(1, 4), NMPattern(4, 8)], ids=str)
def test_certain_groups_have_tiny_gradients_and_no_rounding_noise(
    way: type[Enumerated] | type[Recursive], pattern: NMPattern
) -> None:
    logits = torch.where(torch.arange(pattern.m) < pattern.n, 8.0, -8.0)[:, None] + torch.linspace(0, 0.5, pattern.m)[:, None]
    h = torch.linspace(-1, 1, pattern.m)[:, None].flip(0) + 3
    exact = way(pattern).pathwise(logits.double(), h.double())
    assert 0 < float(exact.abs().max()) < 1e-5  # far below what differences of float32 numbers around 1 resolve
    torch.testing.assert_close(way(pattern).pathwise(logits, h), exact.float(), rtol=1e-3, atol=0)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("pattern", SOME, ids=str)
def test_pathwise_and_score_are_derivatives(way: type[Enumerated] | type[Recursive], pattern: NMPattern) -> None:
    logits, family = logits_of(pattern, 1, 1.5).double().requires_grad_(), way(pattern)
    h = torch.randn(logits.shape, generator=torch.Generator().manual_seed(2)).double()
    (expected,) = torch.autograd.grad((family.marginals(logits) * h).sum(), logits)
    torch.testing.assert_close(family.pathwise(logits.detach(), h), expected)
    total = torch.zeros_like(logits)
    for mask in masks_of(pattern):
        chosen = mask[:, None].expand(-1, logits.shape[1])
        log_p = family.log_prob(logits, chosen)
        (expected,) = torch.autograd.grad(log_p.sum(), logits)
        score = family.score(logits.detach(), chosen)
        torch.testing.assert_close(score, expected)
        total += log_p.detach().exp() * score
    torch.testing.assert_close(total, torch.zeros_like(total))  # a score has mean zero


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("pattern", [NMPattern(1, 4), NMPattern(2, 4), NMPattern(3, 6)], ids=str)
def test_samples_have_the_frequencies_of_the_distribution(way: type[Enumerated] | type[Recursive], pattern: NMPattern) -> None:
    family, draws = way(pattern), 100_000
    logits = logits_of(pattern, 5, 1.0, groups=1)
    uniform = torch.rand(family.uniforms, draws, generator=torch.Generator().manual_seed(6))
    drawn = family.sample(logits.expand(-1, draws), uniform)
    assert (drawn.sum(0) == pattern.n).all()
    codes = (drawn.long() << torch.arange(pattern.m)[:, None]).sum(0)
    for mask, p in zip(masks_of(pattern), enumerated(pattern, logits).exp().squeeze(1), strict=True):
        frequency = (codes == int((mask.long() << torch.arange(pattern.m)).sum())).double().mean()
        assert abs(float(frequency - p)) < 5 * math.sqrt(p * (1 - p) / draws) + 1e-9


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("edge", [0.0, 1.0], ids=["zero", "just below one"])
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
def test_the_ends_of_the_uniform_range_give_a_mask(way: type[Enumerated] | type[Recursive], edge: float, scale: float) -> None:
    family, logits = way(NMPattern(2, 4)), logits_of(NMPattern(2, 4), 1, scale, groups=50)
    uniform = torch.tensor(edge).nextafter(torch.tensor(0.0)).clamp_min(0).expand(family.uniforms, 50)
    assert (family.sample(logits, uniform).sum(0) == 2).all()


def test_8_16_sums_to_one_over_its_12870_masks() -> None:
    pattern = NMPattern(8, 16)
    family, masks = conditional_bernoulli(pattern), masks_of(pattern)
    logits = logits_of(pattern, 3, 2.0, groups=1)
    p = family.log_prob(logits.expand(-1, len(masks)), masks.t()).exp().double()
    assert float(p.sum()) == pytest.approx(1, abs=1e-4)
    torch.testing.assert_close(family.marginals(logits).double().squeeze(1), masks.double().t() @ p, atol=1e-4, rtol=1e-4)


@given(pattern=st.sampled_from([*SOME, NMPattern(8, 16), NMPattern(3, 7)]), seed=st.integers(0, 999), ties=st.booleans())
@settings(max_examples=30, deadline=None)
def test_mode_is_the_top_n_with_ties_to_the_first(pattern: NMPattern, seed: int, ties: bool) -> None:
    logits = logits_of(pattern, seed, 1.0, groups=9)
    logits = logits.round() if ties else logits
    kept = conditional_bernoulli(pattern).mode(logits).t()
    assert (kept.numpy() == pattern.top(logits.t().contiguous().numpy())).all()


def test_entropy_is_highest_for_equal_logits() -> None:
    for pattern in (*SOME, NMPattern(8, 16)):
        entropy = conditional_bernoulli(pattern).entropy(torch.zeros(pattern.m, 1))
        assert float(entropy) == pytest.approx(math.log(pattern.num_masks), rel=1e-5)


@given(seed=st.integers(0, 999), pattern=st.sampled_from([NMPattern(2, 4), NMPattern(4, 8)]), coarse=st.booleans())
@settings(max_examples=30, deadline=None)
def test_the_mode_of_centred_logits_is_read_from_their_signs(seed: int, pattern: NMPattern, coarse: bool) -> None:
    logits = logits_of(pattern, seed, 1.0, groups=20)
    logits = logits.round() + 0.0 if coarse else logits  # rounded ones have ties, at the cut too; no -0.0
    stored = centre(logits, pattern.n).half()
    kept = top_of_centred(stored, pattern.n)
    assert (kept.sum(0) == pattern.n).all()
    assert torch.equal(kept, top(logits, pattern.n))
