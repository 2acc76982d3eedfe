"""A load run as a report page."""

from __future__ import annotations

from maskpro_deploy.bench.load.point import Point
from maskpro_deploy.bench.load.result import LoadResult
from maskpro_deploy.bench.load.sending.schedule import OpenLoop
from maskpro_deploy.bench.load.summary import METRIC_WORDS, describe
from maskpro_deploy.reports import plots
from maskpro_deploy.reports.blocks import PlotSection, Report
from maskpro_deploy.reports.run import build_run_page

_MOST_POINTS = 4000  # of a curve: more cannot be seen, and make the page heavy


def build_page(result: LoadResult) -> Report:
    """The report of one load run."""
    pictures = [_plot_against_throughput(result, metric) for metric in ("ttft", "e2el")] if len(result.points) > 1 else []
    for metric, words in (("ttft", "time to first token (ms)"), ("itl", "inter-token latency (ms)")):
        pictures += [_plot_distribution(point, metric, words) for point in result.points]
    pictures += [_plot_lag(result, point) for point in result.points]
    return build_run_page(describe(result), [picture for picture in pictures if picture is not None])


def _plot_against_throughput(result: LoadResult, metric: str) -> PlotSection | None:
    """Median latency over the throughput reached, load by load."""
    series = []
    for server in result.servers:
        reached = [(f.per_s(len(f.answered)), f.summary(metric)) for f in (p.figures(server.name) for p in result.points)]
        dots = sorted((rate, s.median) for rate, s in reached if rate is not None and s is not None)
        if dots:
            series.append(plots.Series(name=server.name, x=[x for x, _ in dots], y=[y for _, y in dots], dots=True))
    if not series:
        return None
    words = f"median {METRIC_WORDS[metric]} (ms)"
    plot = plots.draw_lines(series, x_label="requests per second reached", y_label=words, description=f"{words} over throughput.")
    return PlotSection(title=f"{METRIC_WORDS[metric].capitalize()} against throughput", plot=plot)


def _plot_distribution(point: Point, metric: str, words: str) -> PlotSection | None:
    """Which part of the samples took at most so long, by server."""
    values = {name: _thin_out(sorted(taken)) for name in point.recordings if (taken := point.figures(name).values_ms(metric))}
    if not values:
        return None
    plot = plots.draw_distribution(values, x_label=words, description=f"Distribution of {words}, {point.load.label}.")
    return PlotSection(
        title=f"{point.load.label}: {words.removesuffix(' (ms)')}",
        plot=plot,
        caption="The part of the samples that took at most so long.",
    )


def _plot_lag(result: LoadResult, point: Point) -> PlotSection | None:
    """How late each request was sent, over the run."""
    if not isinstance(point.load, OpenLoop):
        return None
    series = []
    for name in point.recordings:
        records = [r for r in point.figures(name).records if r.scheduled_s is not None]
        step = -(-len(records) // _MOST_POINTS)
        worst = [max(records[i : i + step], key=lambda r: r.lag_s) for i in range(0, len(records), step)]
        series.append(plots.Series(name=name, x=list(range(0, len(records), step)), y=[1e3 * r.lag_s for r in worst]))
    bounds = [result.limits.lag_bound_ms(point.figures(name).values_ms("ttft")) for name in point.recordings]
    plot = plots.draw_lines(
        series,
        x_label="request",
        y_label="lag (ms)",
        description=f"How late the generator sent each request, {point.load.label}.",
        references={"bound on the 99th percentile": min(bounds)},
    )
    return PlotSection(
        title=f"{point.load.label}: lag of the generator", plot=plot, caption="Actual minus scheduled time of sending."
    )


def _thin_out(ordered: list[float]) -> list[float]:
    """At most so many of sorted values, the first and the last among them."""
    if len(ordered) <= _MOST_POINTS:
        return ordered
    return [ordered[round(i * (len(ordered) - 1) / (_MOST_POINTS - 1))] for i in range(_MOST_POINTS)]
