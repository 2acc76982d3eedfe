"""The files and the pages of benchmarks: result.json, and what is said of it as report.md and as a page with plots."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from maskpro_deploy.bench import intervals, stats
from maskpro_deploy.bench.environment import reproduce_note
from maskpro_deploy.bench.kernels import summary as kernels_summary
from maskpro_deploy.bench.kernels.result import KernelResult
from maskpro_deploy.bench.load import summary as load_summary
from maskpro_deploy.bench.load.point import Point
from maskpro_deploy.bench.load.result import LoadResult
from maskpro_deploy.bench.load.schedule import OpenLoop
from maskpro_deploy.bench.results.document import (
    HOW_TO_READ,
    MARKDOWN_FILE,
    REPORT_FILE,
    VERDICTS,
    WHY_INVALID,
    Document,
    format_number,
)
from maskpro_deploy.bench.results.run import RESULT_FILE
from maskpro_deploy.bench.sweeps import compare
from maskpro_deploy.bench.sweeps import summary as sweeps_summary
from maskpro_deploy.bench.sweeps.columns import CaseResult
from maskpro_deploy.bench.sweeps.result import BenchResult
from maskpro_deploy.reports import blocks, plots
from maskpro_deploy.reports.blocks import ListSection, PlotSection, Report, Section, TableSection
from maskpro_deploy.reports.plots import Bar, Series
from maskpro_deploy.system.files import atomic_file, write_json

_METRIC = {"ttft": "time to first token (ms)", "tpot": "time per output token (ms)", "e2el": "time for the whole batch (ms)"}
_INTERVALS = "With 95 % intervals over sessions. The verdicts compare inside pairs of sessions: they see more."
_AT_MOST = "The part of the samples that took at most so long."
_OVER_RUN = "Each dot is a sample, the line the mean of its block: shows drift, disturbances and how sessions differ."
_MOST_POINTS = 4000  # of a curve: more cannot be seen, and make the page heavy


def build_run_page(document: Document, pictures: Sequence[Section] = ()) -> Report:
    """The page of a run; its pictures stand after the tables and their notes."""
    sections = blocks.warning_list(WHY_INVALID, document.invalid_reasons)
    if document.verdicts:
        sections.append(ListSection(title=VERDICTS, points=document.verdicts))
    sections += [TableSection(title=t.title, header=t.header, rows=t.rows, note=t.note) for t in document.filled_tables]
    sections.append(ListSection(title=HOW_TO_READ, points=document.notes))
    about = document.preface or (document.machine, str(document.environment["date"]))
    return Report(
        title=document.title,
        headline=document.headline,
        subtitle=", ".join(about),
        sections=[*sections, *pictures, *blocks.environment_sections(document.environment, reproduce_note(document.environment))],
        invalid=bool(document.invalid_reasons),
    )


def write_run(folder: Path, value: Mapping[str, Any], markdown: str, page: Report) -> None:
    """Write report.md and report.html, and then result.json with `value`, each whole or not at all, into a folder that exists."""
    with atomic_file(folder / MARKDOWN_FILE) as temporary:
        temporary.write_text(markdown, encoding="utf-8")
    blocks.write(page, folder / REPORT_FILE)
    write_json(folder / RESULT_FILE, value)


def build_sweep_page(result: BenchResult) -> Report:
    """The report of one benchmark run."""
    throughput = _plot_throughput(result) if result.kind == "throughput" else []
    cases = [plot for case in result.cases for plot in _plot_case(result, case)]
    return build_run_page(sweeps_summary.describe(result), [*plot_medians(result), *throughput, *cases])


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
            plot = plots.draw_bars(bars, x_label=unit, description=f"Median {unit} of each model in each case.")
            sections.append(PlotSection(title=f"Median {unit.removesuffix(' (ms)')}", plot=plot, caption=_INTERVALS))
    return sections


def _plot_case(result: BenchResult, case: CaseResult) -> list[Section]:
    """Distribution and drift of one case, as far as there are samples."""
    names = [arm.name for arm in result.arms if case.measurement.samples[arm.name]]
    if not names:
        return []
    label, unit = case.case.label, _METRIC[case.metric]
    values = {name: case.values_ms(name)[case.metric] for name in names}
    blocks = {name: _group_by_block(case, name, values[name]) for name in names}
    samples = plots.draw_distribution(values, x_label=unit, description=f"Distribution of {unit}, {label}.")
    drift = plots.draw_drift(blocks, y_label=unit, description=f"{unit} over the blocks of the run, {label}.")
    return [
        PlotSection(title=f"{label}: all samples", plot=samples, caption=_AT_MOST),
        PlotSection(title=f"{label}: over the run", plot=drift, caption=_OVER_RUN),
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
        name=f"{case.case.label}: {name}", value=median, low=low, high=high, note=f"{format_number(median)} ms", colour=colour
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
            series.append(Series(name=arm.name, x=[b for b, _ in points], y=[r for _, r in points], dots=True))
    if not series:
        return []
    words = "Tokens per second over batch size."
    plot = plots.draw_lines(series, x_label="batch size", y_label="tokens per second", description=words)
    return [PlotSection(title="Throughput over batch size", plot=plot)]


def build_comparison_page(comparison: compare.Comparison) -> Report:
    """The page of two results that were measured at different times."""
    bars = [
        Bar(name=f"{p.case.label}: {name}", value=r.speedup, low=r.low, high=r.high, note=f"{r.speedup:.3f}x", colour=place)
        for place, name in enumerate(dict.fromkeys(p.name for p in comparison.pairs))
        for p in comparison.pairs
        if p.name == name and (r := p.ratio) is not None
    ]
    pictures = []
    if bars:
        plot = plots.draw_bars(bars, x_label="speed of B over speed of A", description="Speed of B over A in each case.")
        pictures.append(PlotSection(title="Speed of B over A", plot=plot, caption="With 95 % intervals."))
    return build_run_page(compare.describe(comparison), pictures)


def build_kernels_page(result: KernelResult) -> Report:
    """The page of a model's products: bars by layer."""
    pictures = [picture for m in result.tokens if (picture := _plot_layer(result, m)) is not None]
    return build_run_page(kernels_summary.describe(result), pictures)


def _plot_layer(result: KernelResult, m: int) -> PlotSection | None:
    """What each product adds to a layer, by form."""
    bars = []
    for case in result.cases:
        share = case.count if (case.k, case.n) == result.last else case.count / result.layers
        for place, form in enumerate(result.forms):
            if case.m == m and (each := result.product_ms(case, form)) is not None:
                where = "logits" if (case.k, case.n) == result.last else f"{case.k} x {case.n}, {share:g} a layer"
                ms = share * each
                bars.append(Bar(name=f"{where}: {form}", value=ms, note=f"{format_number(ms)} ms", colour=place))
    if not bars:
        return None
    plot = plots.draw_bars(bars, x_label="ms", description=f"Milliseconds of each product in one layer at M {m}, for each form.")
    caption = "Medians. All products of a shape in one layer; logits once."
    return PlotSection(title=f"Per layer, M {m}", plot=plot, caption=caption)


def build_load_page(result: LoadResult) -> Report:
    """The report of one load run."""
    pictures = [_plot_against_throughput(result, metric) for metric in ("ttft", "e2el")] if len(result.points) > 1 else []
    for metric, words in (("ttft", "time to first token (ms)"), ("itl", "inter-token latency (ms)")):
        pictures += [_plot_load_distribution(point, metric, words) for point in result.points]
    pictures += [_plot_lag(result, point) for point in result.points]
    return build_run_page(load_summary.describe(result), [picture for picture in pictures if picture is not None])


def _plot_against_throughput(result: LoadResult, metric: str) -> PlotSection | None:
    """Median latency over the throughput reached, load by load."""
    series = []
    for server in result.servers:
        reached = [(f.per_s(len(f.answered)), f.summary(metric)) for f in (p.figures(server.name) for p in result.points)]
        dots = sorted((rate, s.median) for rate, s in reached if rate is not None and s is not None)
        if dots:
            series.append(Series(name=server.name, x=[x for x, _ in dots], y=[y for _, y in dots], dots=True))
    if not series:
        return None
    words = f"median {load_summary.METRIC_WORDS[metric]} (ms)"
    plot = plots.draw_lines(series, x_label="requests per second reached", y_label=words, description=f"{words} over throughput.")
    return PlotSection(title=f"{load_summary.METRIC_WORDS[metric].capitalize()} against throughput", plot=plot)


def _plot_load_distribution(point: Point, metric: str, words: str) -> PlotSection | None:
    """Which part of the samples took at most so long, by server."""
    values = {name: _thin_out(sorted(taken)) for name in point.recordings if (taken := point.figures(name).values_ms(metric))}
    if not values:
        return None
    plot = plots.draw_distribution(values, x_label=words, description=f"Distribution of {words}, {point.load.label}.")
    return PlotSection(title=f"{point.load.label}: {words.removesuffix(' (ms)')}", plot=plot, caption=_AT_MOST)


def _plot_lag(result: LoadResult, point: Point) -> PlotSection | None:
    """How late each request was sent, over the run."""
    if not isinstance(point.load, OpenLoop):
        return None
    series = []
    for name in point.recordings:
        records = [r for r in point.figures(name).records if r.scheduled_s is not None]
        step = -(-len(records) // _MOST_POINTS)
        worst = [max(records[i : i + step], key=lambda r: r.lag_s) for i in range(0, len(records), step)]
        series.append(Series(name=name, x=list(range(0, len(records), step)), y=[1e3 * r.lag_s for r in worst]))
    bounds = [result.limits.lag_bound_ms(point.figures(name).values_ms("ttft")) for name in point.recordings]
    plot = plots.draw_lines(
        series,
        x_label="request",
        y_label="lag (ms)",
        description=f"How late the generator sent each request, {point.load.label}.",
        references={"bound on the 99th percentile": min(bounds)},
    )
    caption = "Actual minus scheduled time of sending."
    return PlotSection(title=f"{point.load.label}: lag of the generator", plot=plot, caption=caption)


def _thin_out(ordered: list[float]) -> list[float]:
    """At most so many of sorted values, the first and the last among them."""
    if len(ordered) <= _MOST_POINTS:
        return ordered
    return [ordered[round(i * (len(ordered) - 1) / (_MOST_POINTS - 1))] for i in range(_MOST_POINTS)]
