"""Curves of runs as sections of a page: one run, or phases that follow each other, such as masks first and weights after them.

A phase's own points count tokens from 0; here they go on where the phase before ended.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from maskpro_deploy.learn.choices import OBJECTIVES, find
from maskpro_deploy.reports import plots
from maskpro_deploy.reports.blocks import PlotSection, Section, TableSection
from maskpro_deploy.reports.plots import Series, Stretch

if TYPE_CHECKING:
    from maskpro_deploy.learn import Point

_GAP = (math.nan, math.nan)  # interrupts a line


class Phase(NamedTuple):
    """One run of several: what it is called, its measurements, and what it minimised (a name of `OBJECTIVES`)."""

    name: str
    curve: Sequence[Point]
    objective: str = "ce"


class _Movement(NamedTuple):
    """A figure that says how far something moved: its axis, its column in the table, its value and the value for readers."""

    axis: str
    column: str
    value: Callable[[Point], float]
    show: Callable[[Point], str]
    meaning: str


_MOVEMENTS = (
    _Movement(
        "groups changed (%)", "flips %", lambda p: 100 * p.flips, lambda p: f"{100 * p.flips:.2f}",
        "Groups changed: those whose argmax mask differs from the prior's.",
    ),
    _Movement(
        "entropy (nats)", "entropy", lambda p: p.entropy, lambda p: f"{p.entropy:.3f}",
        "Entropy: of the masks' distribution, mean over groups.",
    ),
    _Movement(
        "weights moved (%)", "moved %", lambda p: 100 * p.moved, lambda p: f"{100 * p.moved:.2f}",
        "Weights moved: length of what was added to the kept weights, relative to theirs at the start.",
    ),
)  # fmt: skip


def list_starts(phases: Sequence[Phase]) -> list[int]:
    """Tokens seen before each phase began."""
    starts = [0]
    for phase in phases[:-1]:
        starts.append(starts[-1] + phase.curve[-1].tokens)
    return starts


def join_losses(phases: Sequence[Phase]) -> dict[str, list[tuple[float, float]]]:
    """The lines of the learning curve by name: (tokens, loss in nats per token), NaN between two phases.

    A training loss of another unit is left out.
    """
    lines: dict[str, list[tuple[float, float]]] = {}
    for phase, start in zip(phases, list_starts(phases), strict=True):
        trained = [(start + p.tokens, p.sample_loss) for p in phase.curve if p.sample_loss is not None and _in_nats(phase)]
        held_out = [(start + p.tokens, p.heldout_loss) for p in phase.curve]
        for name, points in ((f"training ({phase.objective})", trained), ("held out", held_out)):
            if points:
                _append(lines.setdefault(name, []), points)
    return lines


def draw_losses(phases: Sequence[Phase], references: Mapping[str, float]) -> PlotSection:
    """Training and held-out loss over the tokens seen; references are held-out losses, NaN where not known."""
    lines = [_line(name, points) for name, points in join_losses(phases).items()]
    plot = plots.draw_lines(
        lines, x_label="tokens seen", y_label="loss (nats per token)",
        description="Loss over the tokens seen.", references={n: v for n, v in references.items() if math.isfinite(v)},
        stretches=_name_stretches(phases),
    )  # fmt: skip
    caption = "Training: mean of what is minimised since the last point. Held out: cross-entropy, were the result written then."
    if any(phase.objective != "ce" for phase in phases):
        caption += " Of what is minimised, ce alone can be compared with it."
    if hidden := [phase.name for phase in phases if not _in_nats(phase)]:
        caption += f" What {' and '.join(hidden)} minimised has another unit and is in the table alone."
    return PlotSection(title="Learning curve", plot=plot, caption=caption)


def draw_movements(phases: Sequence[Phase]) -> list[Section]:
    """How far masks and weights moved, one small plot each; nothing for what stayed where it was."""
    panels, meanings = {}, []
    for movement in _list_movements(phases):
        points: list[tuple[float, float]] = []
        for phase, start in zip(phases, list_starts(phases), strict=True):
            if any(map(movement.value, phase.curve)):
                _append(points, [(start + p.tokens, movement.value(p)) for p in phase.curve])
        panels[movement.axis] = _line(movement.axis, points)
        meanings.append(movement.meaning)
    if not panels:
        return []
    words = f"{', '.join(panels)} over the tokens seen."
    plot = plots.draw_panels(panels, x_label="tokens seen", description=words, stretches=_name_stretches(phases))
    return [PlotSection(title="Movement", plot=plot, caption=" ".join(meanings))]


def tabulate_points(phases: Sequence[Phase]) -> TableSection:
    """Every measurement, one row each; steps and tokens are the phase's own."""
    movements, several = _list_movements(phases), len(phases) > 1
    losses = ("sample loss", "held-out loss", "perplexity")
    header = ("step", "tokens", "seconds", *losses, *(m.column for m in movements), "peak GB")
    rows = [
        (
            *([phase.name] if several else []), str(p.step), f"{p.tokens:,}", f"{p.seconds:.0f}",
            "-" if p.sample_loss is None else f"{p.sample_loss:.4f}", f"{p.heldout_loss:.4f}", f"{math.exp(p.heldout_loss):.2f}",
            *(m.show(p) for m in movements), f"{p.memory / 1e9:.2f}",
        )
        for phase in phases
        for p in phase.curve
    ]  # fmt: skip
    return TableSection(title="Measured points", header=("phase", *header) if several else header, rows=rows)


def _in_nats(phase: Phase) -> bool:
    """Whether the loss that is minimised has the unit of the held-out loss."""
    return not find(OBJECTIVES, phase.objective).by_block


def _list_movements(phases: Sequence[Phase]) -> list[_Movement]:
    """Those in which anything moved."""
    return [m for m in _MOVEMENTS if any(m.value(p) for phase in phases for p in phase.curve)]


def _name_stretches(phases: Sequence[Phase]) -> Sequence[Stretch]:
    """Where each phase is on the axis of tokens; a single one needs no name."""
    ends = [(phase.name, start, start + phase.curve[-1].tokens) for phase, start in zip(phases, list_starts(phases), strict=True)]
    return [Stretch(name=name, start=start, end=end) for name, start, end in ends] if len(ends) > 1 else []


def _append(line: list[tuple[float, float]], points: Sequence[tuple[float, float]]) -> None:
    """Let a line go on after a gap."""
    line += [*([_GAP] if line else []), *points]


def _line(name: str, points: Sequence[tuple[float, float]]) -> Series:
    return Series(name=name, x=[x for x, _ in points], y=[y for _, y in points], dots=True)
