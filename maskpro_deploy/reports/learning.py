"""A learning run as a report page."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from maskpro_deploy.reports import plots
from maskpro_deploy.reports.blocks import CodeSection, ListSection, PlotSection, Report, Section, TableSection
from maskpro_deploy.reports.plots import Bar, Series

if TYPE_CHECKING:
    from maskpro_deploy.learn import LearnConfig, LearnResult

_HEADER = ("step", "tokens", "seconds", "sample loss", "held-out loss", "perplexity", "flips %", "entropy", "peak GB")


def build_page(result: LearnResult, config: LearnConfig, rows: list[tuple[str, str]], command: str) -> Report:
    """The page: results, curves, flips per kind of layer, every measured point, settings."""
    figures = result.summary()
    perplexity = figures["heldout_perplexity"]
    settings = [(k.replace("_", " "), str(v)) for k, v in config.to_json().items() if v is not None]
    sections: list[Section] = [TableSection(title="Results", rows=rows)]
    if result.memorised:
        sections.append(ListSection(title="Warning", points=["The learning text was being memorised."], warning=True))
    sections += [_losses(result), _movement(result)]
    if any(by_kind := figures["groups_changed_by_kind"].values()):
        kinds = figures["groups_changed_by_kind"].items()
        bars = [Bar(name=kind, value=100 * share, note=f"{100 * share:.1f} %", colour=0) for kind, share in kinds]
        description = f"Groups changed in {len(by_kind)} kinds of layers."
        plot = plots.draw_bars(bars, x_label="groups changed (%)", description=description)
        caption = "Share of groups whose mask differs from the prior's."
        sections.append(PlotSection(title="Flips against the prior, by kind of layer", plot=plot, caption=caption))
    sections += [
        PlotSection(title="Quality", plot=plots.draw_quality_bars(perplexity), caption="Perplexity on the held-out text."),
        TableSection(title="Measured points", header=_HEADER, rows=[_row(p) for p in result.curve]),
        TableSection(title="Settings", rows=settings),
        CodeSection(title="How to reproduce", code=command),
    ]
    return Report(
        title="Learning",
        headline=(
            f"{config.pattern} mask: held-out perplexity {perplexity['learned']:.2f}, prior {perplexity['prior']:.2f}, "
            f"dense {perplexity['dense']:.2f}."
        ),
        subtitle=f"{figures['tokens']:,} tokens in {figures['steps']} steps, {figures['seconds']:.0f} s",
        sections=sections,
    )


def _losses(result: LearnResult) -> PlotSection:
    trained = [(p.tokens, p.sample_loss) for p in result.curve if p.sample_loss is not None]
    plot = plots.draw_learning_curve(
        [float(t) for t, _ in trained],
        [loss for _, loss in trained],
        [(float(p.tokens), p.heldout_loss) for p in result.curve],
        {"dense, held out": result.dense_loss, "prior, held out": result.curve[0].heldout_loss},
    )
    caption = "Training: mean objective since the last point. Held out: cross-entropy of the argmax mask at that point."
    return PlotSection(title="Learning curve", plot=plot, caption=caption)


def _movement(result: LearnResult) -> PlotSection:
    tokens = [float(p.tokens) for p in result.curve]
    series = [
        Series(name="groups changed (%)", x=tokens, y=[100 * p.flips for p in result.curve], dots=True),
        Series(name="entropy (hundredths of a nat)", x=tokens, y=[100 * p.entropy for p in result.curve], dots=True),
    ]
    description = "Groups changed and entropy over the tokens seen."
    plot = plots.draw_lines(series, x_label="tokens seen", y_label="", description=description)
    caption = "Groups whose argmax mask differs from the prior's, and mean entropy of the masks' distribution."
    return PlotSection(title="Movement of the masks", plot=plot, caption=caption)


def _row(point: Any) -> tuple[str, ...]:
    sample_loss = "-" if point.sample_loss is None else f"{point.sample_loss:.4f}"
    return (
        str(point.step), f"{point.tokens:,}", f"{point.seconds:.0f}", sample_loss, f"{point.heldout_loss:.4f}",
        f"{math.exp(point.heldout_loss):.2f}", f"{100 * point.flips:.2f}", f"{point.entropy:.3f}", f"{point.memory / 1e9:.2f}",
    )  # fmt: skip
