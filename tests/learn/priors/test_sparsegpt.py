"""SparseGPT on one layer: the published column-by-column surgery, and what it has to gain."""

from __future__ import annotations

import pytest
import torch

from maskpro_deploy.errors import CheckFailed
from maskpro_deploy.learn.model.calibration import Gram
from maskpro_deploy.learn.priors.base import top_mask
from maskpro_deploy.learn.priors.refine import reconstruction_error
from maskpro_deploy.learn.priors.sparsegpt import operate
from maskpro_deploy.pattern import NMPattern

PATTERN = NMPattern(2, 4)


def gram_of(inputs: torch.Tensor) -> Gram:
    gram = Gram(torch.zeros(inputs.shape[-1], inputs.shape[-1]))
    gram.add(inputs)
    return gram


def layer(rows: int = 12, columns: int = 16, seed: int = 0) -> tuple[torch.Tensor, Gram]:
    """A weight, and inputs that hang together."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=generator)
    inputs = torch.randn(400, columns, generator=generator) @ mixing
    return torch.randn(rows, columns, generator=generator), gram_of(inputs)


def by_definition(weight: torch.Tensor, gram: Gram, pattern: NMPattern) -> torch.Tensor:
    """Optimal brain surgeon in float64: prune the chosen weights of a column, update, remove the column from H."""
    w = weight.double().clone()
    h = gram.matrix.double() / gram.tokens
    h += 0.01 * h.diagonal().mean() * torch.eye(len(h), dtype=torch.float64)
    mask = torch.ones_like(w, dtype=torch.bool)
    for j in range(w.shape[1]):
        if j % pattern.m == 0:
            # the cost of column k is w_k² over the first diagonal entry of the inverse of H without the columns before k
            cost = torch.stack([w[:, k] ** 2 / torch.linalg.inv(h[k:, k:])[0, 0] for k in range(j, j + pattern.m)], dim=1)
            mask[:, j : j + pattern.m] = top_mask(cost, pattern)
        inverse = torch.linalg.inv(h[j:, j:])
        pruned = torch.where(mask[:, j], 0.0, w[:, j])
        w[:, j:] -= pruned[:, None] / inverse[0, 0] * inverse[0]
    return w


@pytest.mark.parametrize("pattern", [PATTERN, NMPattern(1, 4), NMPattern(4, 8)], ids=str)
def test_the_factored_surgery_is_that_of_the_definition(pattern: NMPattern) -> None:
    weight, gram = layer()
    found = operate(weight, gram, pattern)
    pruned = found.weight * top_mask(found.importance, pattern)
    torch.testing.assert_close(pruned.double(), by_definition(weight, gram, pattern), atol=2e-3, rtol=2e-3)


def test_several_blocks_of_columns_give_what_one_block_gives() -> None:
    weight, gram = layer(columns=320)  # three blocks of 128, the last one partial
    found = operate(weight, gram, PATTERN)
    pruned = found.weight * top_mask(found.importance, PATTERN)
    torch.testing.assert_close(pruned.double(), by_definition(weight, gram, PATTERN), atol=2e-2, rtol=2e-2)


def test_the_update_leaves_less_error_than_the_mask_alone_and_than_magnitude() -> None:
    weight, gram = layer()
    found = operate(weight, gram, PATTERN)
    mask = top_mask(found.importance, PATTERN)
    updated = reconstruction_error(found.weight, mask, gram.matrix, weight)
    assert updated < 0.7 * reconstruction_error(weight, mask, gram.matrix)
    assert updated < 0.7 * reconstruction_error(weight, top_mask(weight.abs(), PATTERN), gram.matrix)


def test_inputs_that_hang_in_no_way_together_leave_magnitude_and_no_update() -> None:
    weight = torch.randn(5, 8, generator=torch.Generator().manual_seed(1))
    found = operate(weight, Gram(torch.eye(8) * 7, tokens=7), PATTERN)
    assert torch.equal(top_mask(found.importance, PATTERN), top_mask(weight.abs(), PATTERN))
    torch.testing.assert_close(found.weight, weight)


def test_an_input_that_was_always_zero_is_pruned_first() -> None:
    inputs = torch.randn(100, 8, generator=torch.Generator().manual_seed(2))
    inputs[:, 3] = 0
    mask = top_mask(operate(torch.ones(2, 8), gram_of(inputs), PATTERN).importance, PATTERN)
    assert not mask[:, 3].any()


def test_a_layer_that_never_ran_is_pruned_by_magnitude() -> None:
    weight = torch.randn(3, 8, generator=torch.Generator().manual_seed(3))
    found = operate(weight, Gram(torch.zeros(8, 8)), PATTERN)
    assert torch.equal(top_mask(found.importance, PATTERN), top_mask(weight.abs(), PATTERN))


def test_inputs_that_are_no_numbers_are_an_error() -> None:
    with pytest.raises(CheckFailed, match="not finite"):
        operate(torch.ones(2, 8), Gram(torch.full((8, 8), float("nan")), tokens=1), PATTERN)
