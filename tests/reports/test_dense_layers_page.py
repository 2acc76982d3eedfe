"""Layers left dense, on a page: the curve, the point that was chosen, what each mask costs."""

from __future__ import annotations

from maskpro_deploy.learn.dense_layers import DenseChoice, Unit
from maskpro_deploy.reports.blocks import PlotSection, TableSection
from maskpro_deploy.reports.dense_layers import draw_choice


def test_nothing_is_drawn_where_nothing_was_chosen() -> None:
    assert draw_choice(None) == []


def test_the_chosen_point_and_every_unit_are_shown() -> None:
    units = (
        Unit(layers=("layers.0.experts.0.up.weight", "layers.0.experts.1.up.weight"), divergence=0.4, work=0.1),
        Unit(layers=("layers.1.q.weight",), divergence=0.01, work=0.9),
    )
    choice = DenseChoice(share=0.1, units=units, tokens=64, curve=((0.0, 0.5), (0.1, 0.02)))
    plot, costs = draw_choice(choice)
    assert isinstance(plot, PlotSection)
    assert "10.0 % of the multiply-adds stay dense" in str(plot.caption)
    assert "chosen" in plot.plot.text
    assert isinstance(costs, TableSection)
    assert [row[0] for row in costs.rows] == ["layers.0.experts.0.up.weight and 1 more", "layers.1.q.weight"]
    assert [row[-1] for row in costs.rows] == ["dense", ""]
    assert costs.rows[0][3] == "0.0400"
