"""The page of two results that were measured at different times."""

from __future__ import annotations

from maskpro_deploy.bench.sweeps.compare import COLUMNS, Comparison, headline, notes, rows
from maskpro_deploy.reports import plots
from maskpro_deploy.reports.blocks import CodeSection, ListSection, PlotSection, Report, Section, TableSection
from maskpro_deploy.reports.plots import Bar


def page(found: Comparison) -> Report:
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
        for place, name in enumerate(dict.fromkeys(p.name for p in found.pairs))
        for p in found.pairs
        if p.name == name and p.ratio is not None
    ]
    sections: list[Section] = [
        TableSection(title="What differs between the runs", header=("what", "A", "B"), rows=found.differences)
        if found.differences
        else ListSection(title="What differs between the runs", points=["nothing that was recorded"]),
        TableSection(title="Compared", header=COLUMNS, rows=rows(found)),
        ListSection(title="How to read this", points=notes(found), warning=False),
    ]
    if bars:
        plot = plots.bars(bars, x_label="speed of B over speed of A", description="Speed of B over speed of A in each case.")
        sections.append(PlotSection(title="Speed of B over A", plot=plot, caption="With 95 % intervals."))
    sections.append(CodeSection(title="How to reproduce", code=str(found.environment["command_line"])))
    return Report(
        title=f"Benchmark: two {found.kind} runs",
        headline=headline(found),
        subtitle=f"A: {found.a}, B: {found.b}",
        sections=sections,
    )
