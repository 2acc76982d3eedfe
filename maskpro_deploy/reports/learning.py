"""A learning run as a report page."""

from __future__ import annotations

from typing import TYPE_CHECKING

from maskpro_deploy.reports import changes, curves, plots
from maskpro_deploy.reports.blocks import CodeSection, PlotSection, Report, Section, TableSection, warning_list
from maskpro_deploy.reports.curves import Phase
from maskpro_deploy.reports.dense_layers import draw_choice

if TYPE_CHECKING:
    from maskpro_deploy.learn import LearnConfig, LearnResult


def build_page(result: LearnResult, config: LearnConfig, rows: list[tuple[str, str]], command: str) -> Report:
    """The page: results, curves, what changed in the masks and the weights, every measured point, settings."""
    figures = result.summary()
    perplexity = figures["heldout_perplexity"]
    settings = [(k.replace("_", " "), str(v)) for k, v in config.to_json().items() if v is not None]
    phases = [Phase("masks", result.curve, result.objective)]
    sections: list[Section] = [
        TableSection(title="Results", rows=rows),
        *warning_list("Warning", ["The learning text was being memorised."] if result.memorised else []),
        curves.draw_losses(phases, name_references(result)),
        *curves.draw_movements(phases),
        *draw_choice(result.choice),
        *changes.draw_masks(result.masks, result.prior_masks),
        *changes.draw_moved(result.moved_by_layer),
        PlotSection(title="Quality", plot=plots.draw_quality_bars(perplexity), caption="Perplexity on the held-out text."),
        curves.tabulate_points(phases),
        TableSection(title="Settings", rows=settings),
        CodeSection(title="How to reproduce", code=command),
    ]
    learned = "mask and weights" if config.trains_weights else "mask"
    return Report(
        title="Learning",
        headline=(
            f"{config.pattern} {learned}: held-out perplexity {perplexity['learned']:.2f}, prior {perplexity['prior']:.2f}, "
            f"dense {perplexity['dense']:.2f}."
        ),
        subtitle=f"{figures['tokens']:,} tokens in {figures['steps']} steps, {figures['seconds']:.0f} s",
        sections=sections,
    )


def name_references(result: LearnResult) -> dict[str, float]:
    """What a run that learns masks is compared with: held-out losses by name."""
    return {"dense, held out": result.dense_loss, "one-shot prior, held out": result.curve[0].heldout_loss}
