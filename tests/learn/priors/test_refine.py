"""Swap refinement: the pattern holds, the error never grows, and no single swap is left that would lower it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from maskpro_deploy.learn.priors import refine as module
from maskpro_deploy.learn.priors.base import top_mask
from maskpro_deploy.learn.priors.refine import reconstruction_error, refine
from maskpro_deploy.pattern import NMPattern

PATTERNS = [NMPattern(1, 2), NMPattern(1, 4), NMPattern(2, 4), NMPattern(4, 8), NMPattern(8, 16)]


def problem(pattern: NMPattern, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    columns = 2 * pattern.m
    mixing = torch.randn(columns, columns, generator=generator, dtype=torch.float64)
    weight = torch.randn(7, columns, generator=generator, dtype=torch.float64)
    mask = top_mask(torch.rand(7, columns, generator=generator), pattern)
    return weight, mask, mixing @ mixing.t()


@given(pattern=st.sampled_from(PATTERNS), seed=st.integers(0, 999))
@settings(max_examples=25, deadline=None)
def test_the_error_never_grows_and_the_pattern_holds(pattern: NMPattern, seed: int) -> None:
    weight, mask, gram = problem(pattern, seed)
    before = [reconstruction_error(weight[r : r + 1], mask[r : r + 1], gram) for r in range(len(weight))]
    better = refine(weight, mask, gram, pattern)
    assert pattern.holds(better.numpy())
    for r, error in enumerate(before):
        assert reconstruction_error(weight[r : r + 1], better[r : r + 1], gram) <= error * (1 + 1e-12)


@given(seed=st.integers(0, 999))
@settings(max_examples=15, deadline=None)
def test_what_a_pass_says_it_gained_is_what_the_error_fell_by(seed: int) -> None:
    pattern = NMPattern(2, 4)
    weight, mask, gram = problem(pattern, seed)
    target = weight + 0.1
    before = reconstruction_error(weight, mask, gram, target)
    gained = module._one_pass(weight, mask, gram, pattern, target)
    assert before - gained == pytest.approx(reconstruction_error(weight, mask, gram, target), rel=1e-9)


def test_in_the_end_no_single_swap_lowers_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LEAST_GAIN", 0.0)
    monkeypatch.setattr(module, "_PASSES", 100)
    pattern = NMPattern(2, 4)
    weight, mask, gram = problem(pattern, 3)
    best = refine(weight, mask, gram, pattern)
    error = reconstruction_error(weight, best, gram)
    for row in range(len(weight)):
        for i in range(8):
            for j in range(i // 4 * 4, i // 4 * 4 + 4):
                if best[row, i] and not best[row, j]:
                    other = best.clone()
                    other[row, i], other[row, j] = False, True
                    assert reconstruction_error(weight, other, gram) >= error * (1 - 1e-12)


def test_a_zero_weight_never_takes_the_place_of_another() -> None:
    weight = torch.tensor([[0.0, 1.0, 2.0, 3.0]], dtype=torch.float64)
    mask = torch.tensor([[False, True, True, False]])
    gram = torch.ones(4, 4, dtype=torch.float64) - 0.9 * torch.eye(4, dtype=torch.float64)
    assert not refine(weight, mask, gram, NMPattern(2, 4))[0, 0]
