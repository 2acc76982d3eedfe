"""Plots as SVG text that takes its ink from the page around it.

Drawn by matplotlib without pyplot, so that no global figure list grows and threads do not meet. Axes and letters use
`currentColor`, series use mid-tones that read on white and on black: one picture serves light, dark and print. Letters stay
text. The same input gives the same bytes. Labels are taken literally (a `$` is a dollar sign).
"""

from __future__ import annotations

import hashlib
import io
import logging
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from maskpro_deploy.errors import ConfigError
from maskpro_deploy.system.extras import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#4589d6", "#dd7a1e", "#2fa37c", "#b565c4", "#c2605c", "#8a8f2a")
_INK = "#010203"  # stands for currentColor until the picture is written
_WIDTH, _HEIGHT = 7.2, 3.4  # inches, at 72 points each


@dataclass(frozen=True, slots=True)
class Svg:
    """A drawn picture, the `<svg>` element. Its text is ours, so a page may take it as it is."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One line: a name, its points, and whether it is drawn with dots."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    dots: bool = False

    def __post_init__(self) -> None:
        if len(self.x) != len(self.y):
            raise ConfigError(f"series {self.name!r} has {len(self.x)} x and {len(self.y)} y values.")


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


def draw_svg(paint: Callable[[Axes], None], *, description: str, height: float = _HEIGHT) -> Svg:
    """Draw one picture: `paint` draws on the axes; `description` is for readers who cannot see it; `height` in inches."""
    require("report", "drawing a plot")
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    with matplotlib.rc_context(_make_style(description)), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a letter that the measuring font lacks: the page's own fonts show it
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        canvas = FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        paint(axes)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        out = io.StringIO()
        canvas.print_svg(out, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return Svg(_inline(out.getvalue(), description))


def _make_style(salt: str) -> dict[str, Any]:
    ink = {f"{part}color": _INK for part in ("text.", "axes.label", "axes.edge", "xtick.", "ytick.")}
    return {
        **ink,
        "text.parse_math": False,
        "svg.fonttype": "none",
        "svg.hashsalt": hashlib.sha256(salt.encode()).hexdigest()[:12],
        "font.family": "sans-serif",
        "font.size": 9.5,
        "axes.facecolor": "none",
        "figure.facecolor": "none",
        "savefig.facecolor": "none",
        "legend.frameon": False,
        "axes.grid": True,
        "grid.color": _INK,
        "grid.alpha": 0.14,
        "grid.linewidth": 0.6,
        "axes.axisbelow": True,
        "axes.formatter.useoffset": False,
    }


def _inline(svg: str, description: str) -> str:
    """The `<svg>` element alone: ids that nothing refers to go, ink becomes currentColor, a description is added."""
    from xml.sax.saxutils import quoteattr

    svg = svg[svg.index("<svg") :].strip()
    used = set(re.findall(r"url\(#([^)]+)\)", svg)) | set(re.findall(r'href="#([^"]+)"', svg))
    svg = re.sub(r' id="([^"]*)"', lambda m: m[0] if m[1] in used else "", svg)
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = svg.replace(_INK, "currentColor")
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    # the page's font stack, not the list of all that matplotlib would try
    svg = re.sub(r"(font(?:-family)?: [^;\"]*?)'?DejaVu Sans'?[^;\"]*", r"\1sans-serif", svg)
    return svg.replace("<svg ", f'<svg role="img" aria-label={quoteattr(description)} ', 1)


def clean_label(label: str) -> str:
    """A label without characters that XML forbids."""
    return "".join(c if c.isprintable() else "�" for c in label)


def draw_lines(
    series: Sequence[Series], *, x_label: str, y_label: str, description: str, references: Mapping[str, float] | None = None
) -> Svg:
    """Lines over a common x axis, with dashed horizontal reference lines."""

    def paint(axes: Axes) -> None:
        for i, s in enumerate(series):
            marker = "o" if s.dots or len(s.x) < 2 else None
            colour, label = COLOURS[i % len(COLOURS)], clean_label(s.name)
            axes.plot(s.x, s.y, color=colour, label=label, marker=marker, markersize=3.5, linewidth=1.6)
        for i, (name, value) in enumerate((references or {}).items()):
            colour = COLOURS[(len(series) + i) % len(COLOURS)]
            axes.axhline(value, color=colour, linestyle=(0, (5, 3)), linewidth=1.2, label=clean_label(name))
        axes.set_xlabel(clean_label(x_label))
        axes.set_ylabel(clean_label(y_label))
        if axes.get_legend_handles_labels()[0]:
            axes.legend(loc="best")

    return draw_svg(paint, description=description)


def draw_learning_curve(
    tokens: Sequence[float],
    training_loss: Sequence[float],
    held_out: Sequence[tuple[float, float]] = (),
    references: Mapping[str, float] | None = None,
) -> Svg:
    """Loss over tokens seen: training (a running mean), held-out points, reference lines such as dense and one-shot.

    Losses are in nats per token; `held_out` has pairs (tokens, loss).
    """
    series = [Series(name="training", x=tokens, y=_smooth(training_loss))]
    if held_out:
        series.append(Series(name="held out", x=[t for t, _ in held_out], y=[loss for _, loss in held_out], dots=True))
    labels = {"x_label": "tokens seen", "y_label": "loss (nats per token)"}
    return draw_lines(series, **labels, description="Loss over the tokens seen while learning.", references=references)


def _smooth(values: Sequence[float]) -> list[float]:
    """A running mean over a fiftieth of the points; short curves stay as they are."""
    width = max(1, len(values) // 50)
    if width == 1:
        return list(values)
    sums = np.cumsum([0.0, *values])
    starts = np.maximum(0, np.arange(1, len(values) + 1) - width)
    ends = np.arange(1, len(values) + 1)
    return [float(v) for v in (sums[ends] - sums[starts]) / (ends - starts)]


def draw_bars(values: Sequence[Bar], *, x_label: str, description: str) -> Svg:
    """Horizontal bars, first on top, with intervals and a note beside each."""

    def paint(axes: Axes) -> None:
        places = np.arange(len(values))
        colours = [COLOURS[(i if b.colour is None else b.colour) % len(COLOURS)] for i, b in enumerate(values)]
        axes.barh(places, [b.value for b in values], color=colours, height=0.62)
        for place, bar in zip(places, values, strict=True):
            if bar.low is not None and bar.high is not None:
                axes.plot([bar.low, bar.high], [place, place], color=_INK, linewidth=1.4, marker="|", markersize=7)
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


def draw_sparsity(layers: Mapping[str, float], target: float | None = None) -> Svg:
    """The part of zeros in each weight, in the order given; one thin bar each."""

    def paint(axes: Axes) -> None:
        places = np.arange(len(layers))
        axes.bar(places, list(layers.values()), width=0.85, color=COLOURS[0], label="zeros in the weight")
        if target is not None:
            axes.axhline(target, color=COLOURS[1], linestyle=(0, (5, 3)), linewidth=1.2, label=f"target {target:g}")
        axes.set_ylim(0.0, max([*layers.values(), target or 0.0, 0.01]) * 1.25)
        axes.set_ylabel("part of zeros")
        step = max(1, -(-len(layers) // 16))
        names = [clean_label(_shorten(name)) for name in list(layers)[::step]]
        axes.set_xticks(places[::step], names, rotation=45, ha="right", fontsize=7.5)
        axes.grid(visible=False, axis="x")
        axes.legend(loc="upper right", ncols=2)

    return draw_svg(paint, description=f"Part of zeros in each of {len(layers)} weights.")


def _shorten(name: str) -> str:
    """model.layers.3.self_attn.q_proj.weight -> 3.q_proj."""
    match = re.fullmatch(r".*?(?:layers|h|blocks)\.(\d+)\..*?([^.]+)\.weight", name)
    return f"{match[1]}.{match[2]}" if match else name[-24:]


def draw_distribution(samples: Mapping[str, Sequence[float]], *, x_label: str, description: str) -> Svg:
    """Empirical distribution functions: which part of the samples took at most so long."""

    def paint(axes: Axes) -> None:
        for i, (name, values) in enumerate(samples.items()):
            ordered = np.sort(np.asarray(values, dtype=np.float64))
            part = np.arange(1, len(ordered) + 1) / len(ordered)
            axes.step(ordered, part, where="post", color=COLOURS[i % len(COLOURS)], linewidth=1.6, label=clean_label(name))
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
            colour = COLOURS[i % len(COLOURS)]
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
