"""Sites of transposable masks: bits in the order of the weight, strict along both axes in every mode."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from maskpro_deploy.learn.distributions import blocks
from maskpro_deploy.learn.distributions.blocks import best_transposable_mask, to_blocks
from maskpro_deploy.learn.distributions.planes import unpack
from maskpro_deploy.learn.distributions.transposable import transposable_bernoulli
from maskpro_deploy.learn.model.transposable_sites import TransposableSite
from maskpro_deploy.pattern import NMPattern

TWO_FOUR = NMPattern(2, 4)


def make_site(
    pattern: NMPattern = TWO_FOUR, shape: tuple[int, int] = (12, 20), scores: torch.Tensor | None = None
) -> TransposableSite:
    generator = torch.Generator().manual_seed(0)
    linear = nn.Linear(shape[1], shape[0], bias=False)
    linear.requires_grad_(False)
    linear.weight.copy_(torch.randn(shape, generator=generator))
    scores = torch.randn(shape, generator=generator) if scores is None else scores
    return TransposableSite("layer.weight", linear, transposable_bernoulli(pattern), to_blocks(scores, pattern.m))


@pytest.mark.parametrize("pattern", [TWO_FOUR, NMPattern(1, 4), NMPattern(1, 2)], ids=str)
def test_the_argmax_mask_is_the_best_one_for_the_logits(pattern: NMPattern) -> None:
    scores = torch.randn(12, 20, generator=torch.Generator().manual_seed(1))
    site = make_site(pattern, scores=scores)
    assert torch.from_numpy(site.mask()).equal(best_transposable_mask(scores.half(), pattern))
    assert (site.masked_weight() != 0).equal(torch.from_numpy(site.mask()))


def test_samples_are_strict_and_keyed_and_near_the_argmax_when_they_are_cold() -> None:
    site = make_site()
    draws = [site.sample(1.0, key) for key in (1, 1, 2)]
    assert draws[0].equal(draws[1])
    assert not draws[0].equal(draws[2])
    for bits in (*draws, site.sample(1.0, 1, mirrored=True)):
        assert TWO_FOUR.holds_both_ways(unpack(bits, 240).view(12, 20).numpy())
    assert site.sample(1e-4, 3).equal(site.kept)


def test_work_in_chunks_gives_what_work_at_once_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    site = make_site()
    whole, entropy = site.argmax(), site.entropy()
    monkeypatch.setattr(blocks, "_CHUNK_WEIGHTS", 1)
    assert site.argmax().equal(whole)
    assert site.entropy() == pytest.approx(entropy, rel=1e-6)


def test_initial_logits_of_a_mask_have_it_as_their_argmax() -> None:
    mask = best_transposable_mask(torch.rand(12, 20), TWO_FOUR)
    assert torch.from_numpy(make_site(scores=mask.float()).mask()).equal(mask)
    assert TransposableSite.logits_of(mask, 4).equal(to_blocks(mask, 4))


def test_zero_weights_are_kept_only_where_their_block_needs_them() -> None:
    site = make_site()
    site.weight[0, :2] = 0  # two can be dropped: the row has two others
    site.weight[4, :3] = 0  # one of three has to be kept
    site.weight[8:, 4:8] = 0  # nothing else is there
    favoured = torch.where(site.weight == 0, 9.0, torch.rand(12, 20))
    site = make_site(scores=favoured)
    site.weight[0, :2] = site.weight[4, :3] = 0
    site.weight[8:, 4:8] = 0
    mask = torch.from_numpy(site.mask())
    assert TWO_FOUR.holds_both_ways(mask.numpy())
    assert int((mask & (site.weight == 0)).sum()) == 0 + 1 + 8
    untouched = torch.from_numpy(make_site(scores=favoured).mask())
    assert mask[:, 8:].equal(untouched[:, 8:])
