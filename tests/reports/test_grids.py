from __future__ import annotations

import itertools
import re
from xml.etree import ElementTree

import numpy as np
import pytest

from maskpro_deploy.reports.grids import CellClass, draw_classes, draw_heat
from maskpro_deploy.reports.svg import Svg

CLASSES = (CellClass(name="ground", opacity=0.1), CellClass(name="kept"), CellClass(name="<new>&", colour="#4589d6", height=0.5))
SIZES = [(1, 4, 4), (32, 64, 4), (7, 64, 64), (3, 6, 2)]  # rows, columns, columns in a group


def grid(rows: int, columns: int, group: int) -> tuple[np.ndarray, Svg]:
    cells = np.random.default_rng(rows * columns).integers(0, 3, (rows, columns))
    labels = {"row_label": "output", "column_label": "input", "description": "a <piece>"}
    return cells, draw_classes(cells, CLASSES, group=group, first=(32, 128), **labels)


def elements(svg: Svg, kind: str) -> list[ElementTree.Element]:
    return [e for e in ElementTree.fromstring(svg.text).iter() if e.tag.endswith(f"}}{kind}")]


def heat(rows: dict[str, dict[int, float]]) -> Svg:
    return draw_heat(rows, show=lambda v: f"{v:.2f} u", column_label="block", description="d")


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_there_is_a_mark_for_each_cell_of_a_class_and_the_legend_counts_them(size: tuple[int, int, int]) -> None:
    cells, svg = grid(*size)
    ground, *drawn = elements(svg, "path")[: len(CLASSES)]
    assert ground.attrib["d"].count("M") == size[0]
    assert [path.attrib["d"].count("M") for path in drawn] == [(cells == k).sum() for k in (1, 2)]
    shown = {e.text for e in elements(svg, "text")}
    assert {f"{kind.name}: {(cells == k).sum()}" for k, kind in enumerate(CLASSES)} <= shown


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_dashes_of_the_ground_are_where_marks_can_be(size: tuple[int, int, int]) -> None:
    rows, columns, group = size
    everywhere = draw_classes(
        np.ones((rows, columns), int), CLASSES, group=group, row_label="", column_label="", description="d"
    )  # fmt: skip
    ground, marks = elements(everywhere, "path")[:2]
    dashes = [int(n) for n in ground.attrib["stroke-dasharray"].split()]
    starts = np.cumsum([0, *np.tile(dashes, columns // group)])[:-1:2]
    assert sorted({int(x) for x in re.findall(r"M(\d+) ", marks.attrib["d"])}) == starts.tolist()


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_a_grid_is_inside_its_picture_whatever_its_size(size: tuple[int, int, int]) -> None:
    _, svg = grid(*size)
    width = float(ElementTree.fromstring(svg.text).attrib["viewBox"].split()[2])
    left, scale = (float(n) for n in re.findall(r"translate\((\d+) \d+\) scale\(([\d.]+)\)", svg.text)[0])
    longest = max(int(n) for n in re.findall(r"h(\d+)", elements(svg, "path")[0].attrib["d"]))
    assert left + scale * longest <= width + 0.5


def test_rows_and_columns_are_numbered_from_where_the_piece_is() -> None:
    shown = [e.text for e in elements(grid(32, 64, 4)[1], "text")]
    assert {"32", "40", "56", "128", "144", "176"} <= set(shown)


def test_a_heat_map_has_a_cell_for_each_value_and_none_for_what_is_missing() -> None:
    rows = {"q_proj": {0: 0.0, 1: 0.5, 29: 1.0}, "k_proj": {1: 0.25}}
    cells = [e for e in elements(heat(rows), "rect") if len(e)]
    titles = {cell[0].text: cell for cell in cells}
    assert set(titles) == {f"block {b}, {kind}: {v:.2f} u" for kind, row in rows.items() for b, v in row.items()}
    depth = {text: float(cell.attrib["fill-opacity"]) for text, cell in titles.items()}
    in_order = [depth[f"block {b}, {k}: {v:.2f} u"] for k, b, v in (("q_proj", 0, 0.0), ("k_proj", 1, 0.25), ("q_proj", 1, 0.5))]
    assert 0 < in_order[0] < in_order[1] < in_order[2] < depth["block 29, q_proj: 1.00 u"] == 1
    assert titles["block 1, k_proj: 0.25 u"].attrib["x"] == titles["block 1, q_proj: 0.50 u"].attrib["x"]


def test_a_heat_map_names_the_mean_of_each_row_and_the_ends_of_its_scale() -> None:
    shown = [e.text for e in elements(heat({"q_proj": {0: 0.1, 1: 0.3}, "k_proj": {0: 0.4}}), "text")]
    assert {"0.20 u", "0.40 u", "0.00 u", "mean", "q_proj"} <= set(shown)


@pytest.mark.parametrize("blocks", [1, 30, 126, 700])
def test_labels_of_blocks_do_not_meet(blocks: int) -> None:
    texts = elements(heat({"q_proj": {b: b / blocks for b in range(blocks)}}), "text")
    places = sorted(float(e.attrib["x"]) for e in texts if (e.text or "").isdigit())
    assert all(b - a >= 27.9 for a, b in itertools.pairwise(places))
    assert max(float(e.attrib["x"]) + float(e.attrib["width"]) for e in elements(heat({"q": {blocks - 1: 1.0}}), "rect")) <= 736


@pytest.mark.parametrize("svg", [grid(32, 64, 4)[1], heat({"<kind>&\x07": {0: 1.0}})], ids=["classes", "heat"])
def test_a_grid_is_one_svg_element_that_takes_its_ink_from_the_page(svg: Svg) -> None:
    root = ElementTree.fromstring(svg.text)
    assert root.tag.endswith("svg")
    assert root.get("aria-label")
    assert root.get("width") is None
    assert "currentColor" in svg.text
    assert not re.search(r"\b(id|href|src)=|url\(", svg.text)


def test_a_piece_of_two_thousand_cells_stays_small() -> None:
    assert len(grid(32, 64, 4)[1].text) < 20_000
