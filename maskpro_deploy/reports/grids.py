"""Grids of cells as SVG text: a piece of a mask, and a figure for each block and kind of layer.

Written without matplotlib, which needs a hundred bytes for a cell: here the cells of a class are one path. Pictures take their
ink from the page, as those of `svg` do, and their unit is a pixel of a page at full width.

Shapes: `R` rows, `C` columns of cells.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape, quoteattr

import numpy as np
import numpy.typing as npt

from maskpro_deploy.reports.svg import COLOURS, Svg, clean_label

_WIDTH = 736  # of every picture, that of a page's column
_LINE = 20  # the height of a line of text
_LETTER = 13
_CELL, _GAP, _GROUP_GAP = 9, 1, 3  # in a grid of classes, before it is scaled to fit
_LONGEST_NAME = 14
_FAINTEST = 0.05  # opacity of a value of 0


@dataclass(frozen=True, slots=True, kw_only=True)
class CellClass:
    """How the cells of a class are drawn: its name in the legend, its colour, and the height of a cell, 1 being all of it."""

    name: str
    colour: str = "currentColor"
    opacity: float = 1.0
    height: float = 1.0


def draw_classes(
    cells: npt.NDArray[np.integer], classes: Sequence[CellClass], *, group: int, first: tuple[int, int] = (0, 0),
    row_label: str, column_label: str, description: str,
) -> Svg:  # fmt: skip
    """A grid whose cells have classes, with a gap after every `group` columns and a legend that counts each class.

    Args:
        cells: numbers of classes.  # (R, C)
        classes: the first one is the ground, drawn under all cells.
        group: columns without a gap.
        first: what the first row and the first column are called in the labels.
        row_label: what a row is.
        column_label: what a column is.
        description: for readers who cannot see it.
    """
    rows, columns = cells.shape
    pitch, left, top = _CELL + _GAP, 56, 8
    width = columns * pitch + (columns - 1) // group * _GROUP_GAP
    scale = min(1.0, (_WIDTH - left) / width)
    place = [c * pitch + c // group * _GROUP_GAP for c in range(columns)]
    ground = classes[0]
    dashes = [*[_CELL, _GAP] * (group - 1), _CELL, _GAP + _GROUP_GAP]
    drawn = [_path(ground, "".join(f"M0 {_middle(r)}h{width}" for r in range(rows)), f' stroke-dasharray="{_list(dashes)}"')]
    for number, kind in enumerate(classes[1:], start=1):
        marks = "".join(f"M{place[c]} {_middle(r)}h{_CELL}" for r, c in np.argwhere(cells == number))
        drawn.append(_path(kind, marks))
    parts = [f'<g transform="translate({left} {top}) scale({scale:.4g})">{"".join(drawn)}</g>']
    step = max(8, group)
    parts += [_text(left - 6, top + scale * _middle(r) + 4, str(first[0] + r), "end") for r in range(0, rows, step)]
    below = top + scale * rows * pitch + 14
    wide = group * -(-2 * step // group)
    parts += [_text(left + scale * place[c], below, str(first[1] + c)) for c in range(0, columns, wide)]
    parts.append(_text(left + scale * width, below, clean_label(column_label), "end"))
    middle = top + scale * rows * pitch / 2
    parts.append(_text(12, middle, clean_label(row_label), "middle", f' transform="rotate(-90 12 {middle:.4g})"'))
    for i, number in enumerate([*range(1, len(classes)), 0]):
        x, y = left + i % 2 * _WIDTH // 2.4, below + (i // 2 + 1) * _LINE + 4
        kind, count = classes[number], int((cells == number).sum())
        parts.append(_path(kind, f"M{x:.4g} {y - 4:.4g}h{_CELL}") + _text(x + 16, y, f"{clean_label(kind.name)}: {count:,}"))
    return _picture(parts, below + -(-len(classes) // 2) * _LINE + 12, description)


def draw_heat(
    rows: Mapping[str, Mapping[int, float]], *, show: Callable[[float], str], column_label: str, description: str
) -> Svg:
    """A figure for each row and column: the deeper the colour, the larger; the mean of a row stands at its right.

    Args:
        rows: values of at least 0 by the row's name and the column's number; a cell without one stays empty.
        show: a value for readers.
        column_label: what a column is.
        description: for readers who cannot see it.
    """
    left, right, top = 108, 64, _LINE + 4
    most = max((v for row in rows.values() for v in row.values()), default=0.0) or 1.0
    columns = 1 + max((c for row in rows.values() for c in row), default=0)
    width = min(24.0, (_WIDTH - left - right) / columns)
    end = left + columns * width
    parts, cells = [_text(end + 8, _LETTER, "mean")], []
    for r, (name, row) in enumerate(rows.items()):
        y = top + r * _LINE
        short = name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"
        parts.append(_text(left - 8, y + 14, clean_label(short), "end"))
        parts.append(_text(end + 8, y + 14, show(sum(row.values()) / len(row))))
        for c, value in row.items():
            title = f"{column_label} {c}, {clean_label(name)}: {show(value)}"
            cells.append(_swatch(left + c * width, y, width - 1, value / most, title))
    below = top + len(rows) * _LINE + 14
    step = next(s for s in _steps() if s * width >= 28)
    parts += [_text(left + (c + 0.5) * width, below, str(c), "middle") for c in range(0, columns, step)]
    below += _LINE
    parts.append(_text(left, below, clean_label(column_label)))
    legend = max(left + 150, int(end) - 200)
    parts.append(_text(legend - 6, below, show(0.0), "end"))
    cells += [_swatch(legend + i * 20, below - 14, 20, i / 6) for i in range(7)]
    parts += [_text(legend + 146, below, show(most)), f'<g fill="{COLOURS[0]}">{"".join(cells)}</g>']
    return _picture(parts, below + 10, description)


def _steps() -> Sequence[int]:
    return [factor * 10**power for power in range(7) for factor in (1, 2, 5)]


def _middle(row: int) -> int:
    """The height of the middle of a row of cells."""
    return row * (_CELL + _GAP) + _CELL // 2


def _list(numbers: Sequence[int]) -> str:
    return " ".join(map(str, numbers))


def _path(kind: CellClass, marks: str, more: str = "") -> str:
    opacity = f' stroke-opacity="{kind.opacity:g}"' if kind.opacity < 1 else ""
    return f'<path stroke="{kind.colour}" stroke-width="{_CELL * kind.height:g}"{opacity}{more} d="{marks}"/>'


def _swatch(x: float, y: float, width: float, depth: float, title: str = "") -> str:
    """A cell of a heat map; `depth` is 0 to 1."""
    opacity = _FAINTEST + (1 - _FAINTEST) * depth
    shape = f'x="{x:.4g}" y="{y:.4g}" width="{width:.4g}" height="{_LINE - 1}" fill-opacity="{opacity:.2g}"'
    return f"<rect {shape}><title>{escape(title)}</title></rect>" if title else f"<rect {shape}/>"


def _text(x: float, y: float, words: str, anchor: str = "", more: str = "") -> str:
    at = f' text-anchor="{anchor}"' if anchor else ""
    return f'<text x="{x:.4g}" y="{y:.4g}"{at}{more}>{escape(words)}</text>'


def _picture(parts: Sequence[str], height: float, description: str) -> Svg:
    head = f'role="img" aria-label={quoteattr(clean_label(description))} viewBox="0 0 {_WIDTH} {height:.4g}"'
    style = f'font-family="sans-serif" font-size="{_LETTER}" fill="currentColor"'
    return Svg(f'<svg xmlns="http://www.w3.org/2000/svg" {head} {style}>{"".join(parts)}</svg>')
