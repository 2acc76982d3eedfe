"""One-shot priors: the right scores, and logits whose argmax is the one-shot mask."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from maskpro_deploy.learn.choices import PRIORS
from maskpro_deploy.learn.config import LearnConfig
from maskpro_deploy.learn.distributions.conditional_bernoulli import conditional_bernoulli
from maskpro_deploy.learn.model.calibration import BlockStream, whole_model_grams, whole_model_norms
from maskpro_deploy.learn.model.model import LearningModel, prunable_layers
from maskpro_deploy.learn.priors.base import LayerView, Prior, initial_logits, logits_of_mask, top_mask
from maskpro_deploy.learn.priors.compute import compute_prior
from maskpro_deploy.learn.priors.magnitude import magnitude
from maskpro_deploy.learn.priors.refine import reconstruction_error
from maskpro_deploy.learn.priors.ria import ria
from maskpro_deploy.learn.priors.wanda import wanda
from maskpro_deploy.pattern import NMPattern
from maskpro_deploy.torch_lm import load_causal_lm

PATTERN = NMPattern(2, 4)


def view(weight: torch.Tensor, norms: torch.Tensor | None = None) -> LayerView:
    """A layer as a prior sees it."""
    return LayerView(name="a", weight=weight, norms=norms, gram=None, config=LearnConfig(pattern=PATTERN), given=None)


def test_input_norms_are_those_of_all_inputs_seen() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(8, 3)
    inputs = [torch.randn(2, 5, 8), torch.randn(4, 8)]
    model: Any = SimpleNamespace(compute_hidden=lambda x, differentiable: layer(x))
    norms = whole_model_norms(model, {"a": layer}, inputs)
    expected = torch.cat([x.reshape(-1, 8) for x in inputs]).norm(dim=0)
    torch.testing.assert_close(norms["a"], expected)
    assert not layer._forward_pre_hooks  # nothing stays behind


@pytest.mark.parametrize("prior", [magnitude, wanda])
def test_the_mode_of_the_initial_logits_is_the_one_shot_mask(prior: Prior) -> None:
    torch.manual_seed(1)
    weight, norms = torch.randn(6, 16), torch.rand(16) + 0.1
    importance = prior(view(weight, norms)).importance
    torch.testing.assert_close(importance, weight.abs() * (norms if prior is wanda else 1))
    logits = initial_logits(importance, PATTERN, 6.0)
    family = conditional_bernoulli(PATTERN)
    kept = family.mode(logits).t().reshape(6, 16)
    assert (kept.numpy() == PATTERN.top(importance.numpy())).all()


def test_a_zero_weight_is_kept_only_where_the_group_has_nothing_better() -> None:
    weight = torch.tensor([[0.0, 1e-12, 0.0, 5.0], [0.0, 0.0, 0.0, 1.0]])
    logits = initial_logits(weight.abs(), PATTERN, 6.0)
    family = conditional_bernoulli(PATTERN)
    kept = family.mode(logits).t()
    assert kept[0].tolist() == [False, True, False, True]
    assert bool(kept[1, 3])
    assert torch.isfinite(logits).all()


def test_strength_scales_certainty_and_leaves_the_mode() -> None:
    torch.manual_seed(2)
    importance = torch.rand(4, 8) + 0.1
    family = conditional_bernoulli(PATTERN)
    weak, strong = (initial_logits(importance, PATTERN, s) for s in (1.0, 6.0))
    assert torch.equal(family.mode(weak), family.mode(strong))
    assert float(family.entropy(weak).mean()) > float(family.entropy(strong).mean())


def test_relative_importance_is_that_of_the_definition() -> None:
    weight = torch.tensor([[1.0, -2.0], [3.0, 4.0]])
    norms = torch.tensor([4.0, 9.0])
    expected = torch.tensor([[(1 / 4 + 1 / 3) * 2, (2 / 6 + 2 / 3) * 3], [(3 / 4 + 3 / 7) * 2, (4 / 6 + 4 / 7) * 3]])
    torch.testing.assert_close(ria(view(weight, norms)).importance, expected)


@given(seed=st.integers(0, 999), pattern=st.sampled_from([NMPattern(1, 4), PATTERN, NMPattern(4, 8)]), ties=st.booleans())
@settings(max_examples=25, deadline=None)
def test_logits_of_a_mask_have_that_mask_as_their_mode(seed: int, pattern: NMPattern, ties: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    importance = torch.rand(5, 16, generator=generator)
    if ties:  # equal scores and zeros
        importance = (importance * 3).floor()
    mask = top_mask(torch.rand(5, 16, generator=generator), pattern)
    logits = logits_of_mask(importance, mask, pattern, 6.0)
    family = conditional_bernoulli(pattern)
    assert torch.equal(family.mode(logits).t().reshape(5, 16), mask)


def test_where_scores_agree_with_the_mask_the_logits_are_those_of_the_scores() -> None:
    importance = torch.rand(6, 16, generator=torch.Generator().manual_seed(4)) + 0.1
    logits = logits_of_mask(importance, top_mask(importance, PATTERN), PATTERN, 6.0)
    torch.testing.assert_close(logits, initial_logits(importance, PATTERN, 6.0))


class Setup:
    """The tiny model, its layers, and calibration tokens."""

    def __init__(self, folder: Path) -> None:
        self.model = LearningModel(load_causal_lm(folder, torch.float32))
        self.layers = prunable_layers(self.model.model, PATTERN, None, None)
        generator = torch.Generator().manual_seed(0)
        self.batches = [torch.randint(0, 320, (size, 16), generator=generator) for size in (4, 4, 3)]

    def prior(self, **chosen: Any) -> dict[str, torch.Tensor]:
        return compute_prior(self.model, self.layers, LearnConfig(pattern=PATTERN, window=16, **chosen), self.batches)

    def masks(self, **chosen: Any) -> dict[str, torch.Tensor]:
        family = conditional_bernoulli(PATTERN)
        logits = self.prior(**chosen)
        return {n: family.mode(x).t().reshape(self.layers[n].weight.shape) for n, x in logits.items()}

    def weights(self) -> dict[str, torch.Tensor]:
        return {name: layer.weight.detach().clone() for name, layer in self.layers.items()}


@pytest.fixture
def setup(tiny_checkpoint: Path) -> Setup:
    return Setup(tiny_checkpoint)


def test_dense_inputs_block_by_block_are_those_of_whole_forward_passes(setup: Setup) -> None:
    stream = BlockStream(setup.model, setup.batches)
    norms = whole_model_norms(setup.model, setup.layers, setup.batches)
    seen = set()
    for block in stream.blocks:
        members = {n: y for n, y in setup.layers.items() if n.startswith(block)}
        grams, stream.states = stream.grams(block, members)
        for name, gram in grams.items():
            torch.testing.assert_close(gram.norms, norms[name], rtol=1e-4, atol=1e-4)
            assert gram.tokens == 11 * 16
            seen.add(name)
        assert grams[f"{block}.self_attn.q_proj.weight"] is grams[f"{block}.self_attn.v_proj.weight"]
    assert seen == set(setup.layers)


def test_pruned_inputs_are_those_behind_the_pruned_blocks(setup: Setup) -> None:
    dense = setup.masks(prior="wanda")
    assert {n: m.sum() for n, m in setup.masks(prior="wanda", prior_inputs="dense").items()}.keys() == dense.keys()
    pruned = setup.masks(prior="wanda", prior_inputs="pruned")
    for name, mask in dense.items():
        first = name.startswith("model.layers.0.")
        assert torch.equal(mask, pruned[name]) == first, name
    # by hand: prune the first block, then Wanda on the whole model
    for name, layer in setup.layers.items():
        if name.startswith("model.layers.0."):
            layer.weight.data *= dense[name]
    expected = setup.masks(prior="wanda")
    for name in setup.layers:
        if name.startswith("model.layers.1."):
            assert torch.equal(pruned[name], expected[name])


@pytest.mark.parametrize(
    "chosen",
    [*({"prior": p.name} for p in PRIORS if not p.takes), {"prior": "ria", "prior_inputs": "pruned"}, {"refine": True}],
    ids=str,
)
def test_every_prior_keeps_the_pattern_and_leaves_the_weights_alone(setup: Setup, chosen: dict[str, Any]) -> None:
    before = setup.weights()
    masks = setup.masks(**chosen)
    assert masks.keys() == setup.layers.keys()
    assert all(PATTERN.holds(mask.numpy()) for mask in masks.values())
    for name, weight in setup.weights().items():
        assert torch.equal(weight, before[name])


def test_refinement_lowers_the_error_of_every_layer(setup: Setup) -> None:
    plain, refined = setup.masks(prior="wanda"), setup.masks(prior="wanda", refine=True)
    grams = whole_model_grams(setup.model, setup.layers, setup.batches)
    for name, weight in setup.weights().items():
        gram = grams[name].matrix
        assert reconstruction_error(weight, refined[name], gram) <= reconstruction_error(weight, plain[name], gram) * (1 + 1e-5)
    assert any(not torch.equal(plain[n], refined[n]) for n in plain)


def test_the_weight_update_changes_the_weights_and_lowers_the_error(setup: Setup) -> None:
    before = setup.weights()
    grams = whole_model_grams(setup.model, setup.layers, setup.batches)
    masks = setup.masks(prior="sparsegpt", prior_update=True)
    after = setup.weights()
    for name in [n for n in setup.layers if n.startswith("model.layers.0.")]:  # later blocks saw other inputs
        gram = grams[name].matrix
        error = reconstruction_error(after[name], masks[name], gram, before[name])
        assert error < reconstruction_error(before[name], masks[name], gram)


def test_a_random_prior_hangs_on_the_seed_alone(setup: Setup) -> None:
    first, again, other = (setup.masks(prior="none", seed=seed) for seed in (0, 0, 1))
    assert all(torch.equal(first[n], again[n]) for n in first)
    assert not any(torch.equal(first[n], other[n]) for n in first)
