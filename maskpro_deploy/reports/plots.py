"""Plots of every kind that pages have: lines, small panels, bars, distributions. See `svg` for how a picture is made."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from maskpro_deploy.errors import ConfigError
from maskpro_deploy.reports.svg import COLOURS, INK, Svg, clean_label, draw_side_by_side, draw_svg
from maskpro_deploy.system.extras import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LEGEND_LETTERS = 90  # in a row
_MANY = 10_000  # from here on an x axis counts in thousands or millions


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One line: a name, its points, and whether it is drawn with dots; a y that is not a number interrupts it."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    dots: bool = False

    def __post_init__(self) -> None:
        if len(self.x) != len(self.y):
            raise ConfigError(f"series {self.name!r} has {len(self.x)} x and {len(self.y)} y values.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """A part of the x axis that has a name."""

    name: str
    start: float
    end: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One bar, with an interval where there is one; `colour` counts through `COLOURS`, by default the bar's place."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    note: str = ""
    colour: int | None = None

    @classmethod
    def around(cls, name: str, value: float, margin: float | None, note: str = "", colour: int | None = None) -> Bar:
        """A bar whose interval reaches as far to both sides."""
        low, high = (None, None) if margin is None else (value - margin, value + margin)
        return cls(name=name, value=value, low=low, high=high, note=note, colour=colour)


def draw_lines(
    series: Sequence[Series], *, x_label: str, y_label: str, description: str, references: Mapping[str, float] | None = None,
    stretches: Sequence[Stretch] = (),
) -> Svg:  # fmt: skip
    """Lines over a common x axis, with dashed horizontal reference lines; stretches are named above the axes."""

    def paint(axes: Axes) -> None:
        _paint_lines(axes, series)
        for i, (name, value) in enumerate((references or {}).items(), start=len(series)):
            axes.axhline(value, color=_colour(i), linestyle=(0, (5, 3)), linewidth=1.2, label=clean_label(name))
        _mark_stretches(axes, stretches)
        axes.set_xlabel(clean_label(x_label))
        axes.set_ylabel(clean_label(y_label))
        names = axes.get_legend_handles_labels()[1]
        if names:  # below the axes, where it hides no line
            columns = len(names) if sum(map(len, names)) + 6 * len(names) <= _LEGEND_LETTERS else 2
            axes.figure.legend(loc="outside lower center", ncols=columns)

    return draw_svg(paint, description=description)


def draw_panels(
    panels: Mapping[str, Series], *, x_label: str, description: str, stretches: Sequence[Stretch] = (), height: float = 2.3
) -> Svg:
    """One small plot for each line, next to each other, from 0 up; keys say what the y axis shows, and its unit."""

    def painter(place: int, title: str, line: Series) -> Callable[[Axes], None]:
        def paint(axes: Axes) -> None:
            _paint_lines(axes, [line], first_colour=place, ticks=4)
            _mark_stretches(axes, stretches)
            axes.set_ylim(0.0, 1.1 * max(float(np.nanmax(line.y)), 1e-9))
            axes.set_xlabel(clean_label(x_label))
            axes.set_ylabel(clean_label(title))

        return paint

    paints = [painter(place, title, line) for place, (title, line) in enumerate(panels.items())]
    return draw_side_by_side(paints, description=description, height=height)


def _colour(place: int) -> str:
    return COLOURS[place % len(COLOURS)]


def _paint_lines(axes: Axes, series: Sequence[Series], first_colour: int = 0, ticks: int | None = None) -> None:
    from matplotlib.ticker import EngFormatter, MaxNLocator

    for i, s in enumerate(series, start=first_colour):
        marker = "o" if s.dots or len(s.x) < 2 else None
        axes.plot(s.x, s.y, color=_colour(i), label=clean_label(s.name), marker=marker, markersize=3.5, linewidth=1.6)
    if ticks is not None:
        axes.xaxis.set_major_locator(MaxNLocator(nbins=ticks))
    if any(x >= _MANY for s in series for x in s.x):
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))


def _mark_stretches(axes: Axes, stretches: Sequence[Stretch]) -> None:
    """A line where one stretch ends and the next begins, and their names, from the left, from the right, or over the middle."""
    if stretches:  # all of them, those without a point too
        margin = 0.03 * (stretches[-1].end - stretches[0].start)
        axes.set_xlim(stretches[0].start - margin, stretches[-1].end + margin)
    for i, stretch in enumerate(stretches):
        first, last = i == 0, i == len(stretches) - 1
        if not first:
            axes.axvline(stretch.start, color=INK, linewidth=0.8, alpha=0.6, zorder=1)
        side = "left" if first else "right" if last else "center"
        place = {"left": stretch.start, "right": stretch.end, "center": (stretch.start + stretch.end) / 2}[side]
        axes.annotate(
            clean_label(stretch.name), (place, 1.0), xycoords=("data", "axes fraction"), xytext=(0, 3),
            textcoords="offset points", ha=side, va="bottom",
        )  # fmt: skip


def draw_bars(values: Sequence[Bar], *, x_label: str, description: str) -> Svg:
    """Horizontal bars, first on top, with intervals and a note beside each."""

    def paint(axes: Axes) -> None:
        places = np.arange(len(values))
        colours = [_colour(i if b.colour is None else b.colour) for i, b in enumerate(values)]
        axes.barh(places, [b.value for b in values], color=colours, height=0.62)
        for place, bar in zip(places, values, strict=True):
            if bar.low is not None and bar.high is not None:
                axes.plot([bar.low, bar.high], [place, place], color=INK, linewidth=1.4, marker="|", markersize=7)
            end = max(v for v in (bar.value, bar.high) if v is not None)
            note = f" {clean_label(bar.note or f'{bar.value:.4g}')}"
            axes.annotate(note, (end, place), va="center", xytext=(3, 0), textcoords="offset points")
        axes.set_yticks(places, [clean_label(b.name) for b in values])
        axes.set_ylim(len(values) - 0.4, -0.6)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel(clean_label(x_label))
        axes.margins(x=0.16)

    return draw_svg(paint, description=description, height=0.9 + 0.34 * max(1, len(values)))


def draw_quality_bars(perplexities: Mapping[str, float], stderrs: Mapping[str, float | None] | None = None) -> Svg:
    """Perplexity of dense, one-shot and learned models (shorter is better)."""
    errors = stderrs or {}
    values = [Bar.around(name, value, errors.get(name), note=f"{value:.2f}") for name, value in perplexities.items()]
    return draw_bars(values, x_label="perplexity (lower is better)", description="Perplexity of each model.")


def draw_distribution(samples: Mapping[str, Sequence[float]], *, x_label: str, description: str) -> Svg:
    """Empirical distribution functions: which part of the samples took at most so long."""

    def paint(axes: Axes) -> None:
        for i, (name, values) in enumerate(samples.items()):
            ordered = np.sort(np.asarray(values, dtype=np.float64))
            part = np.arange(1, len(ordered) + 1) / len(ordered)
            axes.step(ordered, part, where="post", color=_colour(i), linewidth=1.6, label=clean_label(name))
        axes.set_ylim(0.0, 1.02)
        axes.set_xlabel(clean_label(x_label))
        axes.set_ylabel("part of samples")
        axes.legend(loc="lower right")

    return draw_svg(paint, description=description, height=3.0)


def draw_drift(blocks: Mapping[str, Sequence[Sequence[float]]], *, y_label: str, description: str) -> Svg:
    """The samples of each arm over the blocks of the run, the line through each block's mean."""
    require("report", "drawing a plot")
    from matplotlib.ticker import MaxNLocator

    def paint(axes: Axes) -> None:
        for i, (name, per_block) in enumerate(blocks.items()):
            colour = _colour(i)
            numbers = [n for n, values in enumerate(per_block) for _ in values]
            flat = [v for values in per_block for v in values]
            axes.plot(numbers, flat, color=colour, marker="o", markersize=2.6, linestyle="none", alpha=0.65)
            axes.plot([float(np.mean(v)) for v in per_block if len(v)], color=colour, linewidth=1.3, label=clean_label(name))
        axes.set_xlabel("block")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_ylabel(clean_label(y_label))
        axes.set_ylim(bottom=0.0)
        axes.legend(loc="lower right", ncols=2)

    return draw_svg(paint, description=description, height=2.8)
