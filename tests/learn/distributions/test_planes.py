"""Masks as bits: the same bits as numpy's, and the same weight as a multiplication."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from maskpro_deploy.learn.distributions.planes import apply_mask, flips, pack, unpack


@given(m=st.sampled_from([1, 2, 3, 4, 6, 8, 10, 16, 32]), groups=st.integers(1, 40), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_bits_are_those_of_numpy_and_come_back(m: int, groups: int, seed: int) -> None:
    kept = torch.from_numpy(np.random.default_rng(seed).random((m, groups)) < 0.5)
    packed = pack(kept)
    assert np.array_equal(packed.numpy(), np.packbits(kept.t().contiguous().numpy()))
    assert torch.equal(unpack(packed, m * groups), kept.t().reshape(-1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("shape", [(6, 16), (3, 4), (5, 12)])
def test_a_masked_weight_is_the_product_without_negative_zeros(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(shape, generator=generator).to(dtype)
    kept = torch.rand(shape, generator=generator) < 0.5
    packed = pack(kept.view(-1, 4).t().contiguous())
    result = apply_mask(weight, packed)
    assert torch.equal(result, weight * kept)
    assert not torch.signbit(result[result == 0]).any()


def test_flips_count_groups() -> None:
    kept = torch.tensor([[True, True, False, False, True, False, True, False]] * 2).view(-1, 4).t().contiguous()
    other = kept.clone()
    assert flips(pack(kept), pack(other), 4, 16) == 0
    other[:, 1] = ~other[:, 1]
    other[0, 2] = ~other[0, 2]
    assert flips(pack(kept), pack(other), 4, 16) == 2
