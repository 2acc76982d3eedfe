"""A run that trained the weights under masks as a report page."""

from __future__ import annotations

from typing import TYPE_CHECKING

from maskpro_deploy.reports import changes, curves, plots
from maskpro_deploy.reports.blocks import CodeSection, PlotSection, Report, Section, TableSection, warning_list
from maskpro_deploy.reports.curves import Phase

if TYPE_CHECKING:
    from maskpro_deploy.learn import RecoverConfig, RecoverResult


def build_page(result: RecoverResult, config: RecoverConfig, rows: list[tuple[str, str]], command: str) -> Report:
    """The page: results, curves, how far each layer moved, every measured point, settings."""
    figures = result.summary()
    perplexity = figures["heldout_perplexity"]
    settings = [(k.replace("_", " "), str(v)) for k, v in config.to_json().items() if v is not None]
    phases = [Phase("weights", result.curve, result.objective)]
    references = {"dense, held out": result.dense_loss, "before, held out": result.curve[0].heldout_loss}
    sections: list[Section] = [
        TableSection(title="Results", rows=rows),
        *warning_list("Warning", ["The text was being memorised."] if result.memorised else []),
        curves.draw_losses(phases, references),
        *curves.draw_movements(phases),
        *changes.draw_moved(result.moved_by_layer),
        PlotSection(title="Quality", plot=plots.draw_quality_bars(perplexity), caption="Perplexity on the held-out text."),
        curves.tabulate_points(phases),
        TableSection(title="Settings", rows=settings),
        CodeSection(title="How to reproduce", code=command),
    ]
    dense = f", dense {perplexity['dense']:.2f}" if "dense" in perplexity else ""
    return Report(
        title="Recovery",
        headline=f"Held-out perplexity {perplexity['recovered']:.2f}, before {perplexity['before']:.2f}{dense}.",
        subtitle=f"{figures['tokens']:,} tokens in {figures['steps']} steps, {figures['seconds']:.0f} s",
        sections=sections,
    )
