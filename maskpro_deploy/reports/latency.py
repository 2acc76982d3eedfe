"""A benchmark result as a report page."""

from __future__ import annotations

import math

import numpy as np

from maskpro_deploy.bench.results.document import format_number
from maskpro_deploy.bench.statistics import intervals, stats
from maskpro_deploy.bench.sweeps.columns import CaseResult
from maskpro_deploy.bench.sweeps.result import BenchResult
from maskpro_deploy.bench.sweeps.summary import describe
from maskpro_deploy.reports import plots
from maskpro_deploy.reports.blocks import PlotSection, Report, Section
from maskpro_deploy.reports.plots import Bar
from maskpro_deploy.reports.run import build_run_page

_METRIC = {"ttft": "time to first token (ms)", "tpot": "time per output token (ms)", "e2el": "time for the whole batch (ms)"}


def build_page(result: BenchResult) -> Report:
    """The report of one benchmark run."""
    throughput = _plot_throughput(result) if result.kind == "throughput" else []
    cases = [plot for case in result.cases for plot in _plot_case(result, case)]
    return build_run_page(describe(result), [*plot_medians(result), *throughput, *cases])


def plot_medians(result: BenchResult) -> list[Section]:
    """Medians with intervals of all cases, one plot for each metric."""
    sections: list[Section] = []
    for metric, unit in _METRIC.items():
        bars = [
            _make_bar(case, arm.name, place)
            for case in result.cases
            if case.metric == metric
            for place, arm in enumerate(result.arms)
            if case.measurement.samples[arm.name]
        ]
        if bars:
            sections.append(
                PlotSection(
                    title=f"Median {unit.removesuffix(' (ms)')}",
                    plot=plots.draw_bars(bars, x_label=unit, description=f"Median {unit} of each model in each case."),
                    caption="With 95 % intervals over sessions. The verdicts compare inside pairs of sessions: they see more.",
                )
            )
    return sections


def _plot_case(result: BenchResult, case: CaseResult) -> list[Section]:
    """Distribution and drift of one case, as far as there are samples."""
    names = [arm.name for arm in result.arms if case.measurement.samples[arm.name]]
    if not names:
        return []
    label, unit = case.case.label, _METRIC[case.metric]
    values = {name: case.values_ms(name)[case.metric] for name in names}
    blocks = {name: _group_by_block(case, name, values[name]) for name in names}
    return [
        PlotSection(
            title=f"{label}: all samples",
            plot=plots.draw_distribution(values, x_label=unit, description=f"Distribution of {unit}, {label}."),
            caption="The part of the samples that took at most so long.",
        ),
        PlotSection(
            title=f"{label}: over the run",
            plot=plots.draw_drift(blocks, y_label=unit, description=f"{unit} over the blocks of the run, {label}."),
            caption="Each dot is a sample, the line the mean of its block: shows drift, disturbances and how sessions differ.",
        ),
    ]


def _make_bar(case: CaseResult, name: str, colour: int) -> Bar:
    values = case.values_ms(name)[case.metric]
    median = stats.summarise(values).median
    sessions = np.array([np.log(np.median(portion)) for portion in case.measurement.portions(name)])
    low = high = None
    if len(sessions) >= stats.MIN_SESSIONS:
        estimate = intervals.trimmed_mean(sessions)
        half = intervals.half_width(float(estimate.error), float(estimate.degrees), stats.CONFIDENCE)
        low, high = median * math.exp(-half), median * math.exp(half)
    return Bar(
        name=f"{case.case.label}: {name}",
        value=median,
        low=low,
        high=high,
        note=f"{format_number(median)} ms",
        colour=colour,
    )


def _group_by_block(case: CaseResult, name: str, values: list[float]) -> list[list[float]]:
    blocks: list[list[float]] = [[] for _ in range(1 + max(s.block for s in case.measurement.samples[name]))]
    for sample, value in zip(case.measurement.samples[name], values, strict=True):
        blocks[sample.block].append(value)
    return blocks


def _plot_throughput(result: BenchResult) -> list[Section]:
    """Tokens per second over batch size."""
    series = []
    for arm in result.arms:
        points = [(c.case.batch_size, rate) for c in result.cases if (rate := c.tokens_per_s(arm.name)) is not None]
        if points:
            series.append(plots.Series(name=arm.name, x=[b for b, _ in points], y=[r for _, r in points], dots=True))
    if not series:
        return []
    plot = plots.draw_lines(
        series, x_label="batch size", y_label="tokens per second", description="Tokens per second over batch size."
    )
    return [PlotSection(title="Throughput over batch size", plot=plot)]
