"""SUSI: soft masks that sum to N, hard ones that are draws without replacement, and a gradient through the chain."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from planted import Planted, learn_planted
from test_estimators import BASE, trainer_for

from maskpro_deploy.checkpoint import Checkpoint
from maskpro_deploy.errors import CheckFailed
from maskpro_deploy.learn import LearnConfig
from maskpro_deploy.learn.distributions.plackett_luce import PlackettLuce
from maskpro_deploy.learn.distributions.planes import top
from maskpro_deploy.learn.estimators.susi import gumbel, relax
from maskpro_deploy.learn.model.model import LearningModel
from maskpro_deploy.pattern import NMPattern
from maskpro_deploy.torch_lm import load_causal_lm

CONFIG = replace(BASE, estimator="susi", learning_rate=None)
PATTERNS = [NMPattern(2, 4), NMPattern(1, 4), NMPattern(4, 8), NMPattern(8, 16)]


def draw_keys(logits: torch.Tensor, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return logits + gumbel(torch.rand(logits.shape, generator=generator, dtype=logits.dtype))


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("tau", [1.0, 0.2, 0.05])
def test_soft_masks_sum_to_n_and_hard_ones_keep_n(pattern: NMPattern, tau: float) -> None:
    keys = draw_keys(torch.zeros(pattern.m, 500))
    soft = relax(keys, pattern.n, tau)
    torch.testing.assert_close(soft.sum(0), torch.full((500,), float(pattern.n)))
    assert bool((soft >= 0).all())
    assert bool((top(keys, pattern.n).sum(0) == pattern.n).all())


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_a_low_temperature_comes_to_the_hard_mask(pattern: NMPattern) -> None:
    keys = draw_keys(torch.zeros(pattern.m, 2000))
    distances = [float((relax(keys, pattern.n, tau) - top(keys, pattern.n).float()).abs().mean()) for tau in (1.0, 0.1, 0.01)]
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < 0.03
    far = keys.sort(0, descending=True).values.diff(dim=0).abs().amin(0) > 0.05  # no two draws are close
    assert float((relax(keys, pattern.n, 0.002) - top(keys, pattern.n).float())[:, far].abs().max()) < 1e-3


def test_hard_samples_are_draws_without_replacement() -> None:
    family, count = PlackettLuce(NMPattern(2, 4)), 40_000
    logits = torch.tensor([1.0, 0.2, -0.5, 0.0], dtype=torch.float64)
    hard = top(draw_keys(logits[:, None].expand(4, count).contiguous()), 2)
    masks = torch.from_numpy(NMPattern(2, 4).all_masks())  # (6, 4)
    wanted = torch.stack([family.log_prob(logits[:, None], mask[:, None]).exp()[0] for mask in masks]) * count
    seen = torch.stack([(hard == mask[:, None]).all(0).sum() for mask in masks])
    assert float(((seen - wanted).square() / wanted).sum()) < 20.5  # chi-square, 5 degrees of freedom: 0.1 %
    torch.testing.assert_close(hard.double().mean(1), family.marginals(logits[:, None])[:, 0], atol=0.01, rtol=0)


def test_the_gradient_flows_through_every_draw() -> None:
    keys = draw_keys(torch.zeros(4, 6, dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(lambda k: relax(k, 2, 0.5), (keys,))
    assert torch.autograd.gradcheck(lambda k: relax(k, 2, 0.5, power=1.0), (keys,))
    hot = draw_keys(torch.tensor([50.0, 50.0, 0.0, 0.0])[:, None].expand(4, 100).contiguous()).requires_grad_()
    (grad,) = torch.autograd.grad(relax(hot, 2, 0.05)[0].sum(), hot)
    assert bool(torch.isfinite(grad).all())


def test_it_starts_at_random_unless_it_is_given_a_prior(dense: Checkpoint) -> None:
    assert LearnConfig(pattern=NMPattern(2, 4), estimator="susi").prior == "none"
    given = trainer_for(dense, CONFIG)  # from magnitudes
    assert 0 < given.flips() < 0.3
    scores = torch.cat([x.flatten() for x in given.estimator.learned().values()])
    assert float(scores.mean()) == pytest.approx(0.015, abs=0.001)


def test_it_finds_a_planted_mask(dense: Checkpoint) -> None:
    config = replace(CONFIG, prior="none", learning_rate=0.02)
    problem = Planted(config)
    estimator = learn_planted(problem, config, LearningModel(load_causal_lm(dense.folder, torch.float32)), 300)
    assert problem.found() > 0.95
    assert estimator.metrics()["tau"] == pytest.approx(0.05, abs=0.01)


@pytest.mark.parametrize("pattern", PATTERNS[1:], ids=str)
def test_any_pattern_is_learned(dense: Checkpoint, pattern: NMPattern) -> None:
    trainer = trainer_for(dense, replace(CONFIG, pattern=pattern))
    trainer._step()
    assert all(pattern.holds(site.mask()) for site in trainer.sites)


def test_logits_that_are_no_numbers_are_never_saved(dense: Checkpoint) -> None:
    trainer = trainer_for(dense, CONFIG)
    next(iter(trainer.estimator.learned().values()))[0, 0] = torch.nan  # type: ignore[index]
    with pytest.raises(CheckFailed, match=r"the logits of .* are not finite"):
        trainer.check_finite()
