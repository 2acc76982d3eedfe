"""A load run in words: the document with its table, the verdicts, the caveats."""

from __future__ import annotations

from maskpro_deploy.bench import stats
from maskpro_deploy.bench.environment import describe_circumstances
from maskpro_deploy.bench.load.columns import choose_columns
from maskpro_deploy.bench.load.point import Point
from maskpro_deploy.bench.load.result import LoadResult
from maskpro_deploy.bench.load.schedule import ClosedLoop, OpenLoop
from maskpro_deploy.bench.results import wording
from maskpro_deploy.bench.results.document import Document, describe_machine, format_number, headline_of, make_table

METRIC_WORDS = {
    "ttft": "time to first token",
    "tpot": "time per output token",
    "e2el": "whole request",
    "request_throughput": "requests per second",
}


def describe(result: LoadResult) -> Document:
    """What is said of a run, in all forms of its report."""
    servers = [f"{server.name}: {server.facts['base_url']}" for server in result.servers if server.facts.get("base_url")]
    return Document(
        title="Benchmark: serve",
        headline=headline_of(result.invalid_reasons, _say_headline(result)),
        tables=[make_table("Measured", choose_columns(result.slo), result.rows)],
        verdicts=[*_list_verdicts(result), *_best_loads(result)],
        notes=_caveats(result),
        environment=result.environment,
        machine=describe_machine(result.environment, *servers),
        invalid_reasons=result.invalid_reasons,
    )


def _list_verdicts(result: LoadResult) -> list[str]:
    """The first server against the second, load by load; empty for an invalid run."""
    lines = []
    for point in result.points:
        for metric, ratio in result.comparisons(point).items():
            first, second = (server.name for server in result.servers)
            if ratio is None:
                lines.append(
                    f"{point.load.label}, {METRIC_WORDS[metric]}: too few blocks to compare {first} with {second} "
                    f"({stats.MIN_BLOCKS}, or {stats.MIN_SESSIONS} sessions, are needed), or no times."
                )
            else:
                words = wording.describe_comparison(first, second, ratio, same_kernels=result.same_kernels)
                lines.append(f"{point.load.label}, {METRIC_WORDS[metric]}: {words}")
    return lines


def _best_loads(result: LoadResult) -> list[str]:
    """Each server's load with the most goodput, or the most tokens a second, in words."""
    if not result.valid or len(result.points) < 2:
        return []
    lines = []
    for server in result.servers:
        figures = [(p.load.label, p.figures(server.name)) for p in result.points]
        rates = [(label, (f.token_rate if result.slo is None else f.goodput(result.slo)) or 0.0) for label, f in figures]
        label, rate = max(rates, key=lambda pair: pair[1])
        if result.slo is not None:
            bounds = ", ".join(f"{name} within {bound:g} ms" for name, bound in result.slo.bounds_ms.items())
            lines.append(f"{server.name}: most goodput ({bounds}) at {label}: {format_number(rate)} requests/s.")
        else:
            lines.append(f"{server.name}: most tokens per second at {label}: {format_number(rate)}.")
    return lines


def _say_headline(result: LoadResult) -> str:
    if len(result.servers) > 1:
        first, second = (server.name for server in result.servers)
        ratios = [ratio for point in result.points for ratio in result.comparisons(point).values()]
        outcomes = wording.count_outcomes(ratios, [result.same_kernels] * len(ratios), few="too few blocks")
        return f"{first} compared with {second}: {outcomes}."
    if len(result.points) > 1:
        return _best_loads(result)[0]
    figures, load = result.points[0].figures(result.servers[0].name), result.points[0].load
    ttft = figures.summary("ttft")
    first = f", first token after {format_number(ttft.median)} ms (median)" if ttft else ""
    rate, tokens = format_number(figures.request_rate), format_number(figures.token_rate)
    return f"{result.servers[0].name}: {rate} requests/s and {tokens} tokens/s at {load.label}{first}."


def _caveats(result: LoadResult) -> list[str]:
    lines = []
    if any(isinstance(p.load, OpenLoop) for p in result.points):
        lines.append("Open loop: requests are sent by a seeded timetable, and times count from the scheduled moment of sending.")
    if any(isinstance(p.load, ClosedLoop) for p in result.points):
        lines.append(
            "Closed loop: an answer triggers the next request, so the load slows down with the server; the times tell what it "
            "can do, not what users of a fixed rate would wait."
        )
    lines += [line for point in result.points if (line := _self_test_line(result, point)) is not None]
    if result.valid and result.comparison_count:
        lines.append(wording.describe_family(result.comparison_count, result.least_difference))
    if any(server.facts.get("same_machine") for server in result.servers):
        lines.append("The server ran on the same machine as the load generator, and both took from its cores.")
    lines += describe_circumstances(result.environment)
    return [*lines, *result.all_notes]


def _self_test_line(result: LoadResult, point: Point) -> str | None:
    test = point.self_test
    if test is None:
        return None
    name = result.servers[0].name
    seen = f"Self-test, {point.load.label}: {name} against itself gave {test.speedup:.3f}x [{test.low:.3f}, {test.high:.3f}]"
    if not test.differs:
        return f"{seen}, no difference seen, as it should be."
    return f"{seen}: a difference where there is none. The timing here cannot be trusted."
