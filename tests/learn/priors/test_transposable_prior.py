"""Priors of transposable masks: the best one for the scores, strict, and the argmax of the logits that learning starts from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from maskpro_deploy.learn.config import LearnConfig
from maskpro_deploy.learn.distributions.blocks import best_transposable_mask
from maskpro_deploy.learn.distributions.transposable import transposable_bernoulli
from maskpro_deploy.learn.model.calibration import Gram
from maskpro_deploy.learn.model.model import LearningModel, prunable_layers
from maskpro_deploy.learn.model.transposable_sites import TransposableSite
from maskpro_deploy.learn.priors.base import top_mask
from maskpro_deploy.learn.priors.compute import compute_prior
from maskpro_deploy.learn.priors.sparsegpt import operate
from maskpro_deploy.learn.priors.transposable import top_transposable_mask, transposable_logits
from maskpro_deploy.pattern import NMPattern
from maskpro_deploy.torch_lm import load_causal_lm

TWO_FOUR = NMPattern(2, 4)


def start(pattern: NMPattern, importance: torch.Tensor, mask: torch.Tensor, strength: float = 6.0) -> TransposableSite:
    linear = nn.Linear(mask.shape[1], mask.shape[0], bias=False)
    linear.requires_grad_(False)
    logits = transposable_logits(importance, mask, pattern, strength)
    return TransposableSite("a.weight", linear, transposable_bernoulli(pattern), logits)


@settings(max_examples=60, deadline=None)
@given(
    pattern=st.sampled_from([NMPattern(1, 2), NMPattern(1, 4), TWO_FOUR, NMPattern(4, 8)]), seed=st.integers(0, 999),
    strength=st.sampled_from([0.5, 6.0, 40.0]), kind=st.sampled_from(["spread", "wide", "equal", "zero", "some zeros"]),
    best=st.booleans(),
)  # fmt: skip
def test_the_logits_have_the_mask_as_their_argmax_whatever_the_scores(
    pattern: NMPattern, seed: int, strength: float, kind: str, best: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(16, 24, generator=generator)
    importance = {
        "spread": scores, "wide": scores**20, "equal": torch.ones(16, 24), "zero": torch.zeros(16, 24),
        "some zeros": scores * (scores > 0.5),
    }[kind]  # fmt: skip
    mask = best_transposable_mask(importance if best else torch.rand(16, 24, generator=generator), pattern)
    site = start(pattern, importance, mask, strength)
    assert torch.from_numpy(site.mask()).equal(mask)


def test_logits_are_in_proportion_to_squared_scores_where_nothing_has_to_be_lifted() -> None:
    mask = best_transposable_mask(torch.rand(8, 8), TWO_FOUR)
    logits = transposable_logits(torch.where(mask, 3.0, 1.0), mask, TWO_FOUR, 6.0)
    assert sorted(set(logits.flatten().tolist())) == pytest.approx([6 * 1 / 5, 6 * 9 / 5])


def test_scores_far_from_one_give_the_mask_that_scores_near_one_give() -> None:
    scores = torch.rand(16, 24, generator=torch.Generator().manual_seed(3))
    for scale in (1e-30, 1e30):
        assert top_transposable_mask(scores * scale, TWO_FOUR).equal(top_transposable_mask(scores, TWO_FOUR))


@pytest.mark.parametrize("pattern", [TWO_FOUR, NMPattern(4, 8)], ids=str)
@pytest.mark.parametrize(
    "settings",
    [{"prior": name} for name in ("wanda", "magnitude", "ria", "sparsegpt", "none")]
    + [{"prior": "sparsegpt", "prior_update": True}, {"prior": "wanda", "prior_inputs": "pruned"}],
    ids=lambda s: "-".join(map(str, s.values())),
)
def test_every_prior_gives_strict_masks(settings: dict[str, Any], pattern: NMPattern, tiny_checkpoint: Path) -> None:
    model = LearningModel(load_causal_lm(tiny_checkpoint, torch.float32))
    layers = prunable_layers(model.model, pattern, None, None, transposable=True)
    config = LearnConfig(pattern=pattern, transposable=True, steps=0, window=32, **settings)
    batches = [torch.arange(64).view(2, 32) % 320]
    found = compute_prior(model, layers, config, batches)
    family = transposable_bernoulli(pattern)
    for name, layer in layers.items():
        site = TransposableSite(name, layer, family, found[name])
        assert pattern.holds_both_ways(site.mask())


def test_the_mask_of_magnitudes_drops_the_least_squares(tiny_checkpoint: Path) -> None:
    model = LearningModel(load_causal_lm(tiny_checkpoint, torch.float32))
    layers = prunable_layers(model.model, TWO_FOUR, None, None, transposable=True)
    config = LearnConfig(pattern=TWO_FOUR, transposable=True, steps=0, prior="magnitude")
    for name, logits in compute_prior(model, layers, config, []).items():
        site = TransposableSite(name, layers[name], transposable_bernoulli(TWO_FOUR), logits)
        best = best_transposable_mask(layers[name].weight.square(), TWO_FOUR)
        assert torch.from_numpy(site.mask()).equal(best)


def test_surgery_chooses_its_masks_column_by_column_from_the_costs_at_that_moment() -> None:
    torch.manual_seed(0)
    weight, inputs = torch.randn(8, 16), torch.randn(200, 16)
    gram = Gram(torch.zeros(16, 16))
    gram.add(inputs)
    plain, both = operate(weight, gram, TWO_FOUR), operate(weight, gram, TWO_FOUR, top_transposable_mask)
    assert plain.mask is not None
    assert both.mask is not None
    assert plain.mask.equal(top_mask(plain.importance, TWO_FOUR))
    assert both.mask.equal(top_transposable_mask(both.importance, TWO_FOUR))
    assert TWO_FOUR.holds_both_ways(both.mask.numpy())
    assert both.importance[:, :4].equal(plain.importance[:, :4])


def test_layers_whose_outputs_do_not_divide_stay_dense_and_a_warning_names_them(
    tiny_checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = LearningModel(load_causal_lm(tiny_checkpoint, torch.float32))
    block = model.model.model.layers[0].mlp
    block.up_proj = nn.Linear(32, 66, bias=False)
    plain = prunable_layers(model.model, TWO_FOUR, None, None)
    assert not caplog.records
    left = prunable_layers(model.model, TWO_FOUR, None, None, transposable=True)
    assert set(plain) - set(left) == {"model.layers.0.mlp.up_proj.weight"}
    assert "number of outputs that is a multiple of 4: model.layers.0.mlp.up_proj" in caplog.text
