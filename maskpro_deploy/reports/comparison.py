"""The page of two results that were measured at different times."""

from __future__ import annotations

from maskpro_deploy.bench.sweeps.compare import Comparison, describe
from maskpro_deploy.reports import plots
from maskpro_deploy.reports.blocks import PlotSection, Report
from maskpro_deploy.reports.plots import Bar
from maskpro_deploy.reports.run import build_run_page


def build_page(comparison: Comparison) -> Report:
    """The report."""
    bars = [
        Bar(
            name=f"{p.case.label}: {p.name}",
            value=p.ratio.speedup,
            low=p.ratio.low,
            high=p.ratio.high,
            note=f"{p.ratio.speedup:.3f}x",
            colour=place,
        )
        for place, name in enumerate(dict.fromkeys(p.name for p in comparison.pairs))
        for p in comparison.pairs
        if p.name == name and p.ratio is not None
    ]
    if not bars:
        return build_run_page(describe(comparison))
    plot = plots.draw_bars(bars, x_label="speed of B over speed of A", description="Speed of B over speed of A in each case.")
    return build_run_page(
        describe(comparison), [PlotSection(title="Speed of B over A", plot=plot, caption="With 95 % intervals.")]
    )
