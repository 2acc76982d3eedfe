"""A run that recovered quality as a report page."""

from __future__ import annotations

from typing import TYPE_CHECKING

from maskpro_deploy.reports import plots
from maskpro_deploy.reports.blocks import CodeSection, ListSection, PlotSection, Report, Section, TableSection

if TYPE_CHECKING:
    from maskpro_deploy.learn import RecoverConfig, RecoverResult


def build_page(result: RecoverResult, config: RecoverConfig, rows: list[tuple[str, str]], command: str) -> Report:
    """The page: results, curve, every measured point, settings."""
    figures = result.summary()
    perplexity = figures["heldout_perplexity"]
    settings = [(k.replace("_", " "), str(v)) for k, v in config.to_json().items() if v is not None]
    sections: list[Section] = [TableSection(title="Results", rows=rows)]
    if result.memorised:
        sections.append(ListSection(title="Warning", points=["The text was being memorised."], warning=True))
    sections += [
        PlotSection(title="Quality", plot=plots.draw_quality_bars(perplexity), caption="Perplexity on the held-out text."),
        TableSection(title="Settings", rows=settings),
        CodeSection(title="How to reproduce", code=command),
    ]
    return Report(
        title="Recovery",
        headline=", ".join(f"{name} {value:.2f}" for name, value in perplexity.items()) + ": held-out perplexity.",
        subtitle=f"{figures['tokens']:,} tokens in {figures['steps']} steps, {figures['seconds']:.0f} s",
        sections=sections,
    )
