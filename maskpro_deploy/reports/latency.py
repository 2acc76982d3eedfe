"""A benchmark result as a report page."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from maskpro_deploy.bench.environment import reproduce_note
from maskpro_deploy.bench.statistics import intervals, stats
from maskpro_deploy.bench.sweeps import summary
from maskpro_deploy.bench.sweeps.result import BenchResult, CaseResult
from maskpro_deploy.reports import plots
from maskpro_deploy.reports.blocks import CodeSection, ListSection, PlotSection, Report, Section, TableSection
from maskpro_deploy.reports.plots import Bar

_METRIC = {"ttft": "time to first token (ms)", "tpot": "time per output token (ms)", "e2el": "time for the whole batch (ms)"}


def page(result: BenchResult) -> Report:
    """The report of one benchmark run."""
    sections: list[Section] = []
    if not result.valid:
        sections.append(ListSection(title="Why this run is invalid", points=result.invalid_reasons, warning=True))
    if points := [*(v.sentence for v in summary.verdicts(result)), *summary.best_batches(result)]:
        sections.append(ListSection(title="Verdicts", points=points))
    sections.append(TableSection(title="Measured", header=summary.columns(result), rows=summary.rows(result)))
    sections.append(ListSection(title="How to read this", points=summary.caveats(result)))
    sections += median_plots(result)
    if result.kind == "throughput":
        sections += throughput_plot(result)
    for case in result.cases:
        sections += case_plots(result, case)
    sections.append(environment_table(result.environment))
    command = str(result.environment["command_line"])
    sections.append(CodeSection(title="How to reproduce", code=command, note=reproduce_note(result.environment)))
    return Report(
        title=f"Benchmark: {result.kind}",
        headline=summary.headline(result),
        subtitle=f"{summary.machine_line(result)}, {result.environment['date']}",
        sections=sections,
        invalid=not result.valid,
    )


def median_plots(result: BenchResult) -> list[Section]:
    """Medians with intervals of all cases, one plot for each metric."""
    sections: list[Section] = []
    for metric, unit in _METRIC.items():
        bars = [
            _bar(case, arm.name, place)
            for case in result.cases
            if case.metric == metric
            for place, arm in enumerate(result.arms)
            if case.measurement.samples[arm.name]
        ]
        if bars:
            sections.append(
                PlotSection(
                    title=f"Median {unit.removesuffix(' (ms)')}",
                    plot=plots.bars(bars, x_label=unit, description=f"Median {unit} of each model in each case."),
                    caption="With 95 % intervals over sessions. The verdicts compare inside pairs of sessions: they see more.",
                )
            )
    return sections


def case_plots(result: BenchResult, case: CaseResult) -> list[Section]:
    """Distribution and drift of one case, as far as there are samples."""
    names = [arm.name for arm in result.arms if case.measurement.samples[arm.name]]
    if not names:
        return []
    label, unit = case.case.label, _METRIC[case.metric]
    values = {name: case.values_ms(name)[case.metric] for name in names}
    blocks = {name: _by_block(case, name, values[name]) for name in names}
    return [
        PlotSection(
            title=f"{label}: all samples",
            plot=plots.ecdf(values, x_label=unit, description=f"Distribution of {unit}, {label}."),
            caption="The part of the samples that took at most so long.",
        ),
        PlotSection(
            title=f"{label}: over the run",
            plot=plots.drift(blocks, y_label=unit, description=f"{unit} over the blocks of the run, {label}."),
            caption="Each dot is a sample, the line the mean of its block: shows drift, disturbances and how sessions differ.",
        ),
    ]


def _bar(case: CaseResult, name: str, colour: int) -> Bar:
    values = case.values_ms(name)[case.metric]
    found = stats.summarise(values)
    sessions = np.array([np.log(np.median(portion)) for portion in case.measurement.portions(name)])
    low = high = None
    if len(sessions) >= stats.MIN_SESSIONS:
        estimate = intervals.trimmed_mean(sessions)
        half = intervals.half_width(float(estimate.error), float(estimate.degrees), stats.CONFIDENCE)
        low, high = found.median * math.exp(-half), found.median * math.exp(half)
    return Bar(
        name=f"{case.case.label}: {name}",
        value=found.median,
        low=low,
        high=high,
        note=f"{summary.number(found.median)} ms",
        colour=colour,
    )


def _by_block(case: CaseResult, name: str, values: list[float]) -> list[list[float]]:
    blocks: list[list[float]] = [[] for _ in range(1 + max(s.block for s in case.measurement.samples[name]))]
    for sample, value in zip(case.measurement.samples[name], values, strict=True):
        blocks[sample.block].append(value)
    return blocks


def throughput_plot(result: BenchResult) -> list[Section]:
    """Tokens per second over batch size."""
    series = []
    for arm in result.arms:
        points = [(c.case.batch_size, rate) for c in result.cases if (rate := c.tokens_per_s(arm.name)) is not None]
        if points:
            series.append(plots.Series(name=arm.name, x=[b for b, _ in points], y=[r for _, r in points], dots=True))
    if not series:
        return []
    plot = plots.lines(
        series, x_label="batch size", y_label="tokens per second", description="Tokens per second over batch size."
    )
    return [PlotSection(title="Throughput over batch size", plot=plot)]


def environment_table(environment: Mapping[str, Any]) -> TableSection:
    """The environment as a table of two columns; what could not be read is said so."""
    return TableSection(title="Environment", rows=[(key.replace("_", " "), _cell(value)) for key, value in environment.items()])


def _cell(value: Any) -> str:
    if value is None:
        return "not known"
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {v}" for k, v in value.items()) or "none"
    if isinstance(value, (list, tuple)):
        return ", ".join(str(v) for v in value)
    return str(value)
