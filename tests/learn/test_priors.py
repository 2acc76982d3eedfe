"""One-shot priors: the right scores, and logits whose argmax is the one-shot mask."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from maskpro_deploy.learn.distribution import ConditionalBernoulli
from maskpro_deploy.learn.priors import initial_logits, input_norms, scores
from maskpro_deploy.pattern import NMPattern

PATTERN = NMPattern(2, 4)


def test_input_norms_are_those_of_all_inputs_seen() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(8, 3)
    inputs = [torch.randn(2, 5, 8), torch.randn(4, 8)]
    norms = input_norms({"a": layer}, lambda: [layer(x) for x in inputs] and None)
    expected = torch.cat([x.reshape(-1, 8) for x in inputs]).norm(dim=0)
    torch.testing.assert_close(norms["a"], expected)
    assert not layer._forward_pre_hooks  # nothing stays behind


@pytest.mark.parametrize("with_norms", [False, True], ids=["magnitude", "wanda"])
def test_the_mode_of_the_initial_logits_is_the_one_shot_mask(with_norms: bool) -> None:
    torch.manual_seed(1)
    weight = torch.randn(6, 16)
    importance = scores(weight, torch.rand(16) + 0.1 if with_norms else None)
    logits = initial_logits(importance, PATTERN, 6.0)
    family = ConditionalBernoulli(PATTERN)
    kept = family.masks[family.mode(logits)].view(6, 16)
    assert (kept.numpy() == PATTERN.top(importance.numpy())).all()


def test_a_zero_weight_is_kept_only_where_the_group_has_nothing_better() -> None:
    weight = torch.tensor([[0.0, 1e-12, 0.0, 5.0], [0.0, 0.0, 0.0, 1.0]])
    logits = initial_logits(scores(weight, None), PATTERN, 6.0)
    family = ConditionalBernoulli(PATTERN)
    kept = family.masks[family.mode(logits)]
    assert kept[0].tolist() == [False, True, False, True]
    assert bool(kept[1, 3])
    assert torch.isfinite(logits).all()


def test_strength_scales_certainty_and_leaves_the_mode() -> None:
    torch.manual_seed(2)
    importance = torch.rand(4, 8) + 0.1
    family = ConditionalBernoulli(PATTERN)
    weak, strong = (initial_logits(importance, PATTERN, s) for s in (1.0, 6.0))
    assert torch.equal(family.mode(weak), family.mode(strong))
    assert float(family.entropy(weak).mean()) > float(family.entropy(strong).mean())
