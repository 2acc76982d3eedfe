from __future__ import annotations

import math
import sys
from collections.abc import Callable
from xml.etree import ElementTree

import pytest

from maskpro_deploy.errors import ConfigError
from maskpro_deploy.reports import plots
from maskpro_deploy.reports.plots import Bar, Series, Stretch
from maskpro_deploy.reports.svg import INK, Svg

NASTY = "a$b^2$ <script>&\x07 " + "\u4e2d"

DRAWN: dict[str, Callable[[], Svg]] = {
    "phases": lambda: plots.draw_lines(
        [
            Series(name="training", x=[1e5, 2e5, math.nan, 3e5], y=[3.0, 2.0, math.nan, 1.5]),
            Series(name="held out", x=[0], y=[3]),
        ],
        x_label="tokens seen",
        y_label="loss",
        description="losses",
        references={"dense": 1.9, "one-shot": 3.4},
        stretches=[Stretch(name="first", start=0, end=2e5), Stretch(name="second", start=2e5, end=3e5)],
    ),
    "panels": lambda: plots.draw_panels(
        {"flips (%)": Series(name="a", x=[0, 1], y=[0, 2]), "entropy (nats)": Series(name="b", x=[0, 1], y=[1, 0.5])},
        x_label="tokens seen",
        description="movement",
    ),
    "quality": lambda: plots.draw_quality_bars(
        {"dense": 20.1, "one-shot": 90.0, "learned": 40.2}, {"dense": 0.3, "learned": None}
    ),
    "bars": lambda: plots.draw_bars([Bar(name="x", value=1.0, low=0.9, high=1.2)], x_label="ms", description="d"),
    "ecdf": lambda: plots.draw_distribution({"a": [1.0, 2.0, 2.0], "b": [1.5]}, x_label="ms", description="d"),
    "drift": lambda: plots.draw_drift({"a": [[1.0, 2.0], [1.5, 1.6]], "b": [[1.0], []]}, y_label="ms", description="d"),
    "lines": lambda: plots.draw_lines([Series(name="a", x=[1, 2], y=[1.0, 100.0])], x_label="x", y_label="y", description="d"),
    "nasty": lambda: plots.draw_bars([Bar(name=NASTY, value=1.0, note=NASTY)], x_label=NASTY, description=NASTY),
}


@pytest.mark.parametrize("name", DRAWN)
def test_a_plot_is_one_well_formed_svg_element_that_takes_its_ink_from_the_page(name: str) -> None:
    svg = DRAWN[name]().text
    root = ElementTree.fromstring(svg.replace("\x07", "") if name == "nasty" else svg)
    assert root.tag.endswith("svg")
    assert root.get("aria-label")
    assert root.get("viewBox")
    assert root.get("width") is None
    assert "currentColor" in svg
    assert INK not in svg
    assert "<script" not in svg
    assert "DejaVu" not in svg


@pytest.mark.parametrize("name", DRAWN)
def test_the_same_input_draws_the_same_bytes(name: str) -> None:
    assert DRAWN[name]() == DRAWN[name]()


def test_two_plots_on_a_page_share_no_id() -> None:
    ids = []
    for name in ("phases", "panels", "ecdf"):
        root = ElementTree.fromstring(DRAWN[name]().text)
        ids += [element.get("id") for element in root.iter() if element.get("id")]
    assert len(ids) == len(set(ids))


def test_labels_are_text_taken_literally() -> None:
    root = ElementTree.fromstring(DRAWN["nasty"]().text.replace("\x07", ""))
    shown = ["".join(element.itertext()) for element in root.iter() if element.tag.endswith("text")]
    assert any("a$b^2$ <script>&� 中" in text for text in shown)


def test_reference_lines_series_and_stretches_are_named() -> None:
    svg = DRAWN["phases"]().text
    for name in ("training", "held out", "dense", "one-shot", "tokens seen", "first", "second"):
        assert f">{name}<" in svg


def test_every_panel_has_its_own_axis_with_its_unit() -> None:
    svg = DRAWN["panels"]().text
    for name in ("flips (%)", "entropy (nats)"):
        assert svg.count(f">{name}<") == 1
    assert svg.count(">tokens seen<") == 2


def test_a_long_axis_counts_in_thousands() -> None:
    assert ">200k<" in DRAWN["phases"]().text
    assert ">1k<" not in DRAWN["panels"]().text


def test_no_global_figure_list_grows() -> None:
    DRAWN["bars"]()
    assert "matplotlib.pyplot" not in sys.modules


def test_a_series_of_uneven_points_is_refused() -> None:
    with pytest.raises(ConfigError, match="2 x and 1 y"):
        Series(name="s", x=[1, 2], y=[1.0])
