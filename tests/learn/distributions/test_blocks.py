"""The best transposable masks: exact by the table, near the best by transport, strict always."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from maskpro_deploy.learn.distributions import blocks
from maskpro_deploy.learn.distributions.blocks import (
    best_of_blocks,
    best_transposable_mask,
    block_chunks,
    from_blocks,
    mask_table,
    pack_blocks,
    to_blocks,
)
from maskpro_deploy.learn.distributions.planes import unpack
from maskpro_deploy.learn.distributions.transport import transport_masks
from maskpro_deploy.pattern import NMPattern

TWO_FOUR = NMPattern(2, 4)
PATTERNS = [NMPattern(1, 2), NMPattern(2, 3), NMPattern(1, 4), TWO_FOUR, NMPattern(3, 4), NMPattern(4, 8), NMPattern(3, 7)]


def best_sums_by_hand(scores: torch.Tensor, pattern: NMPattern) -> torch.Tensor:
    """The largest sum of kept scores in every block, over all products of row patterns whose columns agree.  # (P, B) -> (B,)"""
    rows = scores.double().t().reshape(-1, pattern.m, pattern.m)
    choices = list(itertools.combinations(range(pattern.m), pattern.n))
    sums = []
    for picked in itertools.product(choices, repeat=pattern.m):
        if all(sum(column in row for row in picked) == pattern.n for column in range(pattern.m)):
            sums.append(sum(rows[:, i, list(row)].sum(1) for i, row in enumerate(picked)))
    return torch.stack(sums).amax(0)


def draw(pattern: NMPattern, count: int, seed: int = 0) -> torch.Tensor:
    """Scores of a wide range.  # (P, B)"""
    shape, generator = (pattern.m**2, count), torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).abs() * torch.randn(shape, generator=generator).exp()


def kept_sums(kept: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    return (kept * scores.double()).sum(0)


@pytest.mark.parametrize("pattern", [TWO_FOUR, NMPattern(1, 4), NMPattern(3, 4), NMPattern(2, 3)], ids=str)
def test_the_best_mask_is_that_of_a_search_over_all_products_of_row_patterns(pattern: NMPattern) -> None:
    scores = draw(pattern, 1000)
    found = kept_sums(best_of_blocks(scores, pattern), scores)
    torch.testing.assert_close(found, best_sums_by_hand(scores, pattern), rtol=1e-6, atol=0)


@settings(max_examples=60, deadline=None)
@given(
    pattern=st.sampled_from(PATTERNS), rows=st.integers(1, 5), columns=st.integers(1, 5), seed=st.integers(0, 999),
    kind=st.sampled_from(["spread", "equal", "zero", "signed", "few values"]),
)  # fmt: skip
def test_the_mask_of_a_matrix_is_strict_along_both_axes(
    pattern: NMPattern, rows: int, columns: int, seed: int, kind: str
) -> None:
    shape, generator = (rows * pattern.m, columns * pattern.m), torch.Generator().manual_seed(seed)
    scores = torch.randn(shape, generator=generator)
    scores = {
        "spread": scores.exp() ** 8, "equal": torch.ones(shape), "zero": torch.zeros(shape), "signed": scores,
        "few values": scores.round(),
    }[kind]  # fmt: skip
    mask = best_transposable_mask(scores, pattern)
    assert mask.shape == shape
    assert pattern.holds_both_ways(mask.numpy())


def test_transport_on_2_4_comes_close_to_the_table() -> None:
    scores = draw(TWO_FOUR, 4000, seed=1)
    best = kept_sums(best_of_blocks(scores, TWO_FOUR), scores)
    share = kept_sums(transport_masks(scores, TWO_FOUR), scores) / best
    assert float(share.amin()) > 0.95
    assert float(share.mean()) > 0.9995
    assert float((share > 1 - 1e-6).double().mean()) > 0.98


@pytest.mark.parametrize(("pattern", "count"), [(NMPattern(4, 8), 60), (NMPattern(8, 16), 12)], ids=str)
def test_transport_comes_close_to_the_optimum_of_the_linear_programme(pattern: NMPattern, count: int) -> None:
    """Its vertices are masks, so its optimum is that of the best one."""
    optimize = pytest.importorskip("scipy.optimize")
    scores, m = draw(pattern, count, seed=2), pattern.m
    sums = np.concatenate([np.kron(np.eye(m), np.ones(m)), np.kron(np.ones(m), np.eye(m))])  # of rows, of columns
    totals = np.full(2 * m, pattern.n)
    best = [-optimize.linprog(-s, A_eq=sums, b_eq=totals, bounds=(0, 1)).fun for s in scores.double().t().numpy()]
    share = kept_sums(transport_masks(scores, pattern), scores) / torch.tensor(best)
    assert float(share.amax()) < 1 + 1e-6
    assert float(share.amin()) > 0.98
    assert float(share.mean()) > 0.999


def test_blocks_are_in_row_major_order_and_come_back() -> None:
    x = torch.arange(8 * 12.0).view(8, 12)
    planes = to_blocks(x, 4)
    assert planes[:, 0].tolist() == x[:4, :4].flatten().tolist()
    assert planes[:, 1].tolist() == x[:4, 4:8].flatten().tolist()
    assert planes[:, 3].tolist() == x[4:, :4].flatten().tolist()
    assert from_blocks(planes, 12).equal(x)


@pytest.mark.parametrize(
    ("pattern", "shape"), [(TWO_FOUR, (36, 12)), (NMPattern(1, 3), (45, 9)), (NMPattern(1, 2), (18, 6))], ids=str
)
def test_chunks_cover_every_block_and_byte_once(
    pattern: NMPattern, shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "_CHUNK_WEIGHTS", 1)
    scores = torch.rand(shape)
    chunks = list(block_chunks(scores, pattern.m))
    assert len(chunks) > 1
    assert [c.number for c in chunks] == list(range(len(chunks)))
    for places, count in (("rows", shape[0]), ("blocks", scores.numel() // pattern.m**2), ("bits", -(-scores.numel() // 8))):
        covered = [i for c in chunks for i in range(getattr(c, places).start, getattr(c, places).stop)]
        assert covered == list(range(count))
    mask = best_transposable_mask(scores, pattern)
    planes = to_blocks(mask, pattern.m) > 0
    parts = torch.cat([pack_blocks(planes[:, c.blocks], shape[1]) for c in chunks])
    assert unpack(parts, scores.numel()).view(shape).equal(mask)
    monkeypatch.undo()
    assert best_transposable_mask(scores, pattern).equal(mask)


def test_the_table_holds_every_mask_once() -> None:
    assert mask_table(TWO_FOUR, torch.device("cpu")).shape == (90, 16)
    assert mask_table(NMPattern(1, 4), torch.device("cpu")).shape == (24, 16)
