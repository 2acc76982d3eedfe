"""What a run changed, as sections of a page: a piece of a mask next to its prior, and figures for every layer.

Shapes: `O` outputs, `C` inputs of a layer; `R` and `K` rows and columns of a piece.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from maskpro_deploy.masks import MaskSet, layer_kind
from maskpro_deploy.reports.blocks import PlotSection, Section
from maskpro_deploy.reports.grids import CellClass, draw_classes, draw_heat
from maskpro_deploy.reports.svg import COLOURS

_ROWS, _COLUMNS = 32, 64  # at most, in a piece
DROPPED, BOTH, PRIOR, LEARNED = range(4)  # what a piece's cells can be
_CLASSES = (
    CellClass(name="dropped by both", opacity=0.1),
    CellClass(name="kept by both", opacity=0.6),
    CellClass(name="kept only by the prior", colour=COLOURS[1], height=0.4),
    CellClass(name="kept only by the learned mask", colour=COLOURS[0]),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A piece of a layer's masks: where it is, and which of the two masks keep each weight."""

    layer: str
    row: int  # the first one, an output
    column: int  # and an input
    cells: npt.NDArray[np.uint8]  # DROPPED, BOTH, PRIOR or LEARNED  # (R, K)


def cut_piece(masks: MaskSet, prior: MaskSet, layer: str) -> Piece:
    """A typical piece of a layer: among those of a size the one whose number of changed groups is nearest to the mean."""
    after, before = masks.mask(layer), prior.mask(layer)  # (O, C) each
    cells = np.where(after, np.where(before, BOTH, LEARNED), np.where(before, PRIOR, DROPPED)).astype(np.uint8)
    m = masks.pattern_of(layer).m
    rows, columns = min(_ROWS, cells.shape[0]), min(_COLUMNS, cells.shape[1]) // m * m
    down, across = cells.shape[0] // rows, cells.shape[1] // columns
    changed = (after ^ before)[: down * rows, : across * columns].reshape(down, rows, across, columns // m, m)
    counts = changed.any(axis=-1).sum(axis=(1, 3))  # (down, across)
    r, c = np.unravel_index(np.abs(counts - counts.mean()).argmin(), counts.shape)
    row, column = int(r) * rows, int(c) * columns
    return Piece(layer=layer, row=row, column=column, cells=cells[row : row + rows, column : column + columns])


def draw_masks(masks: MaskSet, prior: MaskSet) -> list[Section]:
    """A piece of the layer that changed most, and the share of groups that changed in every layer (nothing where none did)."""
    shares = masks.flips_by_layer(prior)
    layer = max(shares, key=lambda name: shares[name])
    caption = "Share of groups whose mask differs from the prior's, by block and kind of layer."
    piece = _draw_piece(cut_piece(masks, prior, layer), masks.pattern_of(layer).m, shares[layer])
    return [piece, *_draw_layers("Groups changed, layer by layer", shares, caption)]


def _draw_piece(piece: Piece, m: int, share: float) -> PlotSection:
    """The piece, and `share` of the groups of its layer changed."""
    rows, columns = piece.cells.shape
    plot = draw_classes(
        piece.cells, _CLASSES, group=m, first=(piece.row, piece.column), row_label="output", column_label="input",
        description=f"Which weights of a piece of {piece.layer} the prior and the learned mask keep.",
    )  # fmt: skip
    groups = np.isin(piece.cells, (PRIOR, LEARNED)).reshape(rows, -1, m).any(axis=-1)  # (R, K / M)
    counts = [f"{_CLASSES[k].name} {int((piece.cells == k).sum()):,}" for k in (BOTH, PRIOR, LEARNED, DROPPED)]
    caption = (
        f"{piece.layer}, the layer with most changes: rows (outputs) {piece.row} to {piece.row + rows - 1}, "
        f"columns (inputs) {piece.column} to {piece.column + columns - 1}, a gap after each group of {m}. "
        f"Weights {', '.join(counts)}. "
        f"Changed groups: {int(groups.sum())} of {groups.size} here, {100 * share:.1f} % in the layer."
    )
    return PlotSection(title="A piece of the mask", plot=plot, caption=caption)


def draw_moved(moved_by_layer: Mapping[str, float], title: str = "Weights moved") -> list[Section]:
    """How far the kept weights of every layer moved; nothing where they did not. The title tells a page's phases apart."""
    caption = "Length of what was added to a layer's kept weights, relative to theirs at the start, by block and kind of layer."
    return _draw_layers(f"{title}, layer by layer", moved_by_layer, caption)


def _draw_layers(title: str, shares: Mapping[str, float], caption: str) -> list[Section]:
    """A heat map of shares; a cell that several layers share (experts) has their mean."""
    found: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    outside = 0
    for name, share in shares.items():
        if block := re.search(r"\.(\d+)\.", name):
            found[layer_kind(name)][int(block[1])].append(share)
        else:
            outside += 1
    if not found or not any(shares.values()):
        return []
    rows = {kind: {block: sum(v) / len(v) for block, v in sorted(blocks.items())} for kind, blocks in found.items()}
    if any(len(v) > 1 for blocks in found.values() for v in blocks.values()):
        caption += " Layers of one kind in one block are shown by their mean."
    if outside:
        caption += f" Layers outside of blocks, not shown: {outside}."
    words = f"{title}: {len(shares)} layers."
    plot = draw_heat(rows, show=lambda v: f"{100 * v:.1f} %", column_label="block", description=words)
    return [PlotSection(title=title, plot=plot, caption=caption)]
