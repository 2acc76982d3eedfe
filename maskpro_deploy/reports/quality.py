"""An evaluation as a report page."""

from __future__ import annotations

from typing import TYPE_CHECKING

from maskpro_deploy.evaluate.result import PerplexityResult, TaskResult
from maskpro_deploy.reports import blocks, plots
from maskpro_deploy.reports.blocks import ListSection, PlotSection, Report, Section, TableSection
from maskpro_deploy.reports.plots import Bar

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

_NOTE = "The command of the last run that added to this result. Figures of single windows are in result.json."
_ERRORS = 2  # standard errors drawn on each side; few windows allow no exact confidence


def build_page(result: PerplexityResult | TaskResult) -> Report:
    """The page: figures, plots, the protocol, what it ran on."""
    pictures = _perplexity_plots(result) if isinstance(result, PerplexityResult) else _task_plots(result)
    facts = result.protocol if isinstance(result, PerplexityResult) else result.settings
    environment = result.environment or {}
    sections: list[Section] = [
        TableSection(title="Measured", header=result.header, rows=result.rows()),
        ListSection(title="How to read this", points=result.statements()),
        *pictures,
        blocks.facts_table("Protocol", _select_known(facts)),
        TableSection(
            title="Models", rows=[(name, blocks.show_value(_select_known(value))) for name, value in result.models.items()]
        ),
        *blocks.environment_sections(environment, _NOTE),
    ]
    subtitle = f"{facts.get('name') or facts.get('harness')}, {environment.get('date', '')}"
    return Report(title="Evaluation", headline=result.headline(), subtitle=subtitle, sections=sections)


def _perplexity_plots(result: PerplexityResult) -> list[Section]:
    perplexities, compared = result.perplexities, result.comparisons
    sections: list[Section] = []
    if compared:
        bars = []
        for place, (name, c) in enumerate(compared.items(), start=1):
            margin = None if c.ratio_stderr is None else _ERRORS * c.ratio_stderr
            bars.append(Bar.around(name, c.ratio, margin, note=f"{c.ratio:.3f}x", colour=place))
        label = f"perplexity over that of {result.reference}"
        plot = plots.draw_bars(bars, x_label=label, description=f"Ratio of {label}.")
        caption = "1 is no loss. With two standard errors on each side, paired over windows."
        sections.append(PlotSection(title="Ratio of perplexities", plot=plot, caption=caption))
    values, errors = ({n: getattr(p, key) for n, p in perplexities.items()} for key in ("perplexity", "stderr"))
    plot, caption = plots.draw_quality_bars(values, errors), "With one standard error over windows on each side."
    sections.append(PlotSection(title="Perplexity", plot=plot, caption=caption))
    if any(p.windows > 1 for p in perplexities.values()):
        plot = plots.draw_distribution(
            {name: p.window_nll for name, p in perplexities.items()},
            x_label="negative log-likelihood of a window (nats per token)",
            description="Distribution of the negative log-likelihood over windows.",
        )
        caption = "The part of the windows that has at most so much."
        sections.append(PlotSection(title="Window by window", plot=plot, caption=caption))
    return sections


def _task_plots(result: TaskResult) -> list[Section]:
    """One picture for all figures between 0 and 1, grouped by task."""
    bars = []
    keys = list(dict.fromkeys((m.task, m.label) for metrics in result.metrics.values() for m in metrics))
    for key in keys:
        for place, (name, metrics) in enumerate(result.metrics.items()):
            for m in metrics:
                if (m.task, m.label) == key and m.value is not None and 0 <= m.value <= 1:
                    margin = None if m.stderr is None else _ERRORS * m.stderr
                    bars.append(Bar.around(f"{m.task} {m.label}: {name}", m.value, margin, colour=place))
    if not bars:
        return []
    picture = plots.draw_bars(bars, x_label="score", description="Scores of each task and model.")
    return [PlotSection(title="Scores", plot=picture, caption="With two of the harness's standard errors on each side.")]


def _select_known(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The facts without those that are not known or empty."""
    return {key: value for key, value in facts.items() if value not in (None, {}, [])}
