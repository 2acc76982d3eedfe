"""Ordering channels: exchanges give what they promise, and reach orders that are known to be best."""

from __future__ import annotations

import itertools
import time

import pytest
import torch
from torch import Tensor

from maskpro_deploy.learn.transforms.exchange import _gain, _look_at, order_channels
from maskpro_deploy.pattern import NMPattern


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def kept(scores: Tensor, order: Tensor, pattern: NMPattern) -> float:
    """The sum of kept scores, by sorting every group.  # (C, R), (C,)"""
    grouped = scores[order].view(-1, pattern.m, scores.shape[1])
    return float(grouped.sort(dim=1, descending=True).values[:, : pattern.n].sum())


@pytest.mark.parametrize("pattern", ["1:2", "2:4", "1:4", "3:4", "4:8"])
def test_the_order_is_a_permutation_that_keeps_more(pattern: str) -> None:
    nm = NMPattern.parse(pattern)
    scores = torch.rand(64, 30, generator=generator()) * torch.rand(64, 1, generator=generator(1))
    found = order_channels(scores, nm, generator())
    assert sorted(found.order.tolist()) == list(range(64))
    assert found.before == pytest.approx(kept(scores, torch.arange(64), nm))
    assert found.after == pytest.approx(kept(scores, found.order, nm))
    assert found.after > 1.01 * found.before


@pytest.mark.parametrize("pattern", ["1:2", "2:4", "3:4", "4:8"])
def test_the_gain_of_every_exchange_is_what_it_adds(pattern: str) -> None:
    nm = NMPattern.parse(pattern)
    scores = torch.rand(4 * nm.m, 9, generator=generator())
    groups = torch.arange(len(scores)).view(-1, nm.m)
    rest, cut = _look_at(scores, groups, nm.n)
    a, b = torch.tensor([0, 2]), torch.tensor([3, 1])
    gain = _gain(scores, groups, rest, cut, scores.sum(1), a, b)
    before = kept(scores, groups.flatten(), nm)
    for pair, i, j in itertools.product(range(2), range(nm.m), range(nm.m)):
        changed = groups.clone()
        changed[a[pair], i], changed[b[pair], j] = groups[b[pair], j], groups[a[pair], i]
        assert float(gain[pair, i, j]) == pytest.approx(kept(scores, changed.flatten(), nm) - before, abs=1e-4)


def test_channels_that_compete_are_parted() -> None:
    # in each row four channels of one group matter: with two of them in each of two groups nothing is lost
    scores = torch.full((8, 12), 0.01)
    scores[:4, :6] = 1.0
    scores[4:, 6:] = 1.0
    found = order_channels(scores, NMPattern(2, 4), generator())
    best = max(
        kept(scores, torch.tensor([*group, *(c for c in range(8) if c not in group)]), NMPattern(2, 4))
        for group in itertools.combinations(range(8), 4)
    )
    assert found.after == pytest.approx(best)
    assert found.before == pytest.approx(12 * 2 + 12 * 2 * 0.01)


def test_the_same_seed_gives_the_same_order() -> None:
    scores = torch.rand(32, 16, generator=generator())
    first, again = (order_channels(scores, NMPattern(2, 4), generator(3)) for _ in range(2))
    assert torch.equal(first.order, again.order)


def test_one_group_stays_and_a_time_limit_ends_the_search() -> None:
    scores = torch.rand(4, 16, generator=generator())
    assert order_channels(scores, NMPattern(2, 4), generator()).order.tolist() == [0, 1, 2, 3]
    many = torch.rand(512, 64, generator=generator())
    stopped = order_channels(many, NMPattern(2, 4), generator(), until=time.monotonic() - 1)
    whole = order_channels(many, NMPattern(2, 4), generator())
    assert stopped.before < stopped.after < whole.after
