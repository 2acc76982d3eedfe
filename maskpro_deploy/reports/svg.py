"""A picture as SVG text that takes its ink from the page around it.

Drawn by matplotlib without pyplot, so that no global figure list grows and threads do not meet. Axes and letters use
`currentColor`: one picture serves light, dark and print. Letters stay text. The same input gives the same bytes. Labels are taken
literally (a `$` is a dollar sign).
"""

from __future__ import annotations

import hashlib
import io
import logging
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from maskpro_deploy.system.extras import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#4589d6", "#dd7a1e", "#2fa37c", "#b565c4", "#c2605c", "#8a8f2a")  # mid-tones that read on white and on black
INK = "#010203"  # stands for currentColor until the picture is written
_WIDTH, _HEIGHT = 7.2, 3.4  # inches, at 72 points each


@dataclass(frozen=True, slots=True)
class Svg:
    """A drawn picture, the `<svg>` element. Its text is ours, so a page may take it as it is."""

    text: str


def draw_svg(paint: Callable[[Axes], None], *, description: str, height: float = _HEIGHT) -> Svg:
    """Draw one picture: `paint` draws on the axes; `description` is for readers who cannot see it; `height` in inches."""
    return draw_side_by_side([paint], description=description, height=height)


def draw_side_by_side(paints: Sequence[Callable[[Axes], None]], *, description: str, height: float = _HEIGHT) -> Svg:
    """Draw axes next to each other in one picture, see `draw_svg`."""
    require("report", "drawing a plot")
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    with matplotlib.rc_context(_make_style(description)), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a letter that the measuring font lacks: the page's own fonts show it
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        canvas = FigureCanvasSVG(figure)
        for place, paint in enumerate(paints, start=1):
            axes = figure.add_subplot(1, len(paints), place)
            paint(axes)
            for side in ("top", "right"):
                axes.spines[side].set_visible(False)
        out = io.StringIO()
        canvas.print_svg(out, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return Svg(_inline(out.getvalue(), description))


def _make_style(salt: str) -> dict[str, Any]:
    ink = {f"{part}color": INK for part in ("text.", "axes.label", "axes.edge", "xtick.", "ytick.")}
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
        "grid.color": INK,
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
    svg = svg.replace(INK, "currentColor")
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    # the page's font stack, not the list of all that matplotlib would try
    svg = re.sub(r"(font(?:-family)?: [^;\"]*?)'?DejaVu Sans'?[^;\"]*", r"\1sans-serif", svg)
    return svg.replace("<svg ", f'<svg role="img" aria-label={quoteattr(description)} ', 1)


def clean_label(label: str) -> str:
    """A label without characters that XML forbids."""
    return "".join(c if c.isprintable() else "�" for c in label)
