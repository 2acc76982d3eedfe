from __future__ import annotations

import re

import numpy as np
import numpy.typing as npt
import pytest

from maskpro_deploy.masks import MaskSet
from maskpro_deploy.pattern import NMPattern
from maskpro_deploy.reports import changes
from maskpro_deploy.reports.blocks import PlotSection, Section
from maskpro_deploy.reports.changes import BOTH, DROPPED, LEARNED, PRIOR

PATTERNS = [NMPattern(2, 4), NMPattern(1, 2), NMPattern(4, 8), NMPattern(3, 24)]
Masks = dict[str, npt.NDArray[np.bool_]]


def make_masks(pattern: NMPattern, shape: tuple[int, int], changed: float) -> tuple[MaskSet, MaskSet]:
    """Masks of three blocks and their prior; in one layer up to `changed` of the groups differ, in others a quarter of it."""
    rng = np.random.default_rng(0)
    prior: Masks = {f"model.layers.{i}.mlp.{k}.weight": pattern.top(rng.random(shape)) for i in range(3) for k in ("up", "down")}
    learned: Masks = {}
    for name, mask in prior.items():
        share = changed if ".1.mlp.up" in name else changed / 4
        other = pattern.top(rng.random(shape))
        chosen = np.repeat(rng.random((shape[0], shape[1] // pattern.m)) < share, pattern.m, axis=1)
        learned[name] = np.where(chosen, other, mask)
    return MaskSet.from_arrays(pattern, learned), MaskSet.from_arrays(pattern, prior)


def plot_of(section: Section) -> PlotSection:
    assert isinstance(section, PlotSection)
    return section


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("shape", [(96, 192), (40, 72), (5, 24)], ids=str)
def test_a_piece_says_of_each_weight_which_of_the_two_masks_keep_it(pattern: NMPattern, shape: tuple[int, int]) -> None:
    masks, prior = make_masks(pattern, shape, 0.4)
    for layer in masks:
        piece = changes.cut_piece(masks, prior, layer)
        rows, columns = piece.cells.shape
        assert piece.row + rows <= shape[0]
        assert piece.column + columns <= shape[1]
        assert piece.column % pattern.m == columns % pattern.m == 0
        part = np.s_[piece.row : piece.row + rows, piece.column : piece.column + columns]
        after, before = masks.mask(layer)[part], prior.mask(layer)[part]
        expected = {BOTH: after & before, PRIOR: before & ~after, LEARNED: after & ~before, DROPPED: ~after & ~before}
        for kind, where in expected.items():
            assert np.array_equal(piece.cells == kind, where)
        assert (piece.cells == PRIOR).sum() == (piece.cells == LEARNED).sum()  # both masks keep as many


def test_a_piece_is_typical_of_its_layer() -> None:
    masks, prior = make_masks(NMPattern(2, 4), (128, 256), 0.5)
    for layer in masks:
        differs = (masks.mask(layer) ^ prior.mask(layer)).reshape(4, 32, 4, 16, 4).any(axis=-1).sum(axis=(1, 3))
        piece = changes.cut_piece(masks, prior, layer)
        own = differs[piece.row // 32, piece.column // 64]
        assert np.abs(differs - differs.mean()).min() == abs(own - differs.mean())


def test_the_picture_shows_the_layer_that_changed_most_with_numpys_counts() -> None:
    masks, prior = make_masks(NMPattern(2, 4), (96, 192), 0.4)
    section = plot_of(changes.draw_masks(masks, prior)[0])
    layer = "model.layers.1.mlp.up.weight"
    assert section.caption.startswith(layer)
    rows, columns = ((int(first), int(last) + 1) for first, last in re.findall(r"(\d+) to (\d+)", section.caption))
    part = np.s_[slice(*rows), slice(*columns)]
    after, before = masks.mask(layer)[part], prior.mask(layer)[part]
    counts = {
        "kept by both": int((after & before).sum()),
        "kept only by the prior": int((before & ~after).sum()),
        "kept only by the learned mask": int((after & ~before).sum()),
        "dropped by both": int((~after & ~before).sum()),
    }
    for name, count in counts.items():
        assert f"{name} {count:,}" in section.caption
        assert f">{name}: {count:,}<" in section.plot.text
    changed = (after ^ before).reshape(-1, 4).any(axis=1)
    assert f"Changed groups: {changed.sum()} of {changed.size} here" in section.caption


def test_every_layer_has_its_share_of_changed_groups() -> None:
    masks, prior = make_masks(NMPattern(2, 4), (96, 192), 0.4)
    plot = plot_of(changes.draw_masks(masks, prior)[1]).plot.text
    for name in masks:
        share = (masks.mask(name) ^ prior.mask(name)).reshape(-1, 4).any(axis=1).mean()
        block, kind = name.split(".")[2], name.split(".")[4]
        assert f"<title>block {block}, {kind}: {100 * share:.1f} %</title>" in plot


def test_masks_that_stayed_the_priors_have_a_piece_and_no_shares() -> None:
    _, prior = make_masks(NMPattern(2, 4), (96, 192), 0.4)
    (piece,) = changes.draw_masks(prior, prior)
    assert "Changed groups: 0 of 512 here, 0.0 % in the layer." in plot_of(piece).caption


@pytest.mark.parametrize("moved", [{}, {"model.layers.0.up.weight": 0.0}])
def test_nothing_is_drawn_for_weights_that_did_not_move(moved: dict[str, float]) -> None:
    assert changes.draw_moved(moved) == []


def test_two_phases_of_a_page_have_titles_of_their_own() -> None:
    moved = {"model.layers.0.up.weight": 0.5}
    (first,), (second,) = changes.draw_moved(moved), changes.draw_moved(moved, "Weights moved after the masks")
    assert (first.title, second.title) == ("Weights moved, layer by layer", "Weights moved after the masks, layer by layer")


def test_experts_of_a_block_share_a_cell_and_layers_outside_of_blocks_are_counted() -> None:
    moved = {f"model.layers.0.mlp.experts.{e}.up.weight": 0.1 * e for e in range(3)} | {"lm_head.weight": 0.5}
    (section,) = map(plot_of, changes.draw_moved(moved))
    assert section.plot.text.count("<title>") == 1
    assert "<title>block 0, up: 10.0 %</title>" in section.plot.text
    assert "shown by their mean" in section.caption
    assert "not shown: 1" in section.caption
