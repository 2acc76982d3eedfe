"""Which layers a run left dense, as sections of a page: what each mask costs alone, and the whole choice at several shares."""

from __future__ import annotations

from typing import TYPE_CHECKING

from maskpro_deploy.reports import plots
from maskpro_deploy.reports.blocks import PlotSection, Section, TableSection
from maskpro_deploy.reports.plots import Series

if TYPE_CHECKING:
    from maskpro_deploy.learn.dense_layers import DenseChoice

_HEADER = ("layer", "divergence, nats", "multiply-adds", "nats for 1 %", "")
_SHOWN = 40


def draw_choice(choice: DenseChoice | None) -> list[Section]:
    """The curve of shares and divergences with the chosen point, and the worthiest layers; nothing where nothing was chosen."""
    if choice is None:
        return []
    shares, divergences = [100 * share for share, _ in choice.curve], [divergence for _, divergence in choice.curve]
    lines = [Series(name="one-shot masks on all other layers", x=shares, y=divergences, dots=True)]
    chosen = [(x, y) for x, y in zip(shares, divergences, strict=True) if abs(x - 100 * choice.taken) < 1e-6]
    lines += [Series(name="chosen", x=[x], y=[y], dots=True) for x, y in chosen[:1]]
    plot = plots.draw_lines(
        lines, x_label="multiply-adds that stay dense (%)", y_label="divergence (nats a token)",
        description="Divergence from the dense model by the share of multiply-adds that stay dense.",
    )  # fmt: skip
    caption = (
        f"KL(dense ‖ masked) with one-shot masks, on {choice.tokens:,} tokens; {100 * choice.taken:.1f} % of the multiply-adds "
        f"stay dense, at most {100 * choice.share:.4g} % may."
    )
    dense = {name for unit in choice.dense for name in unit.layers}
    rows = [
        (
            unit.layers[0] if len(unit.layers) == 1 else f"{unit.layers[0]} and {len(unit.layers) - 1} more",
            f"{unit.divergence:.4f}", f"{100 * unit.work:.2f} %", f"{unit.worth / 100:.4f}",
            "dense" if unit.layers[0] in dense else "",
        )
        for unit in choice.units[:_SHOWN]
    ]  # fmt: skip
    note = (
        f"Each layer masked alone, by divergence for its multiply-adds; {min(_SHOWN, len(choice.units))} of {len(choice.units)}."
    )
    return [
        PlotSection(title="Share that stays dense", plot=plot, caption=caption),
        TableSection(title="What masks cost, layer by layer", header=_HEADER, rows=rows, note=note),
    ]
