"""A load run in words: the table, the verdicts, the caveats; plain text and Markdown."""

from __future__ import annotations

from maskpro_deploy.bench.environment import circumstances
from maskpro_deploy.bench.load.result import LoadResult, Point, ServerFacts
from maskpro_deploy.bench.load.schedule import ClosedLoop, OpenLoop
from maskpro_deploy.bench.results import wording
from maskpro_deploy.bench.statistics import stats
from maskpro_deploy.bench.sweeps.summary import escape, markdown_table, number
from maskpro_deploy.system.output import table

COLUMNS = (
    *("load", "server", "answered", "failed", "requests/s", "tokens/s", "ttft ms", "ttft p99", "tpot ms", "itl ms", "e2el ms"),
    *("e2el p99", "lag p99"),
)
GOODPUT = "goodput/s"
METRIC_WORDS = {
    "ttft": "time to first token",
    "tpot": "time per output token",
    "e2el": "whole request",
    "request_throughput": "requests per second",
}


def columns(result: LoadResult) -> tuple[str, ...]:
    """The header of the table."""
    return (*COLUMNS[:5], GOODPUT, *COLUMNS[5:]) if result.slo is not None else COLUMNS


def row(result: LoadResult, point: Point, server: ServerFacts) -> list[str]:
    """One line of the table; see `columns`."""
    figures = point.figures(server.name)
    found = {metric: figures.summary(metric) for metric in ("ttft", "tpot", "itl", "e2el")}
    median = {metric: number(s.median if s else None) for metric, s in found.items()}
    p99 = {metric: number(s.p99 if s else None) for metric, s in found.items()}
    lag = figures.lag_ms()
    goodput = [number(figures.goodput(result.slo))] if result.slo is not None else []
    return [
        point.load.label,
        server.name,
        str(len(figures.answered)),
        str(len(figures.records) - len(figures.answered)),
        number(figures.per_s(len(figures.answered))),
        *goodput,
        number(figures.per_s(figures.output_tokens)),
        *(median["ttft"], p99["ttft"], median["tpot"], median["itl"], median["e2el"], p99["e2el"]),
        number(stats.percentile(lag, 0.99) if lag else None, 2),
    ]


def rows(result: LoadResult) -> list[list[str]]:
    """The table of all loads and servers."""
    return [row(result, point, server) for point in result.points for server in result.servers]


def verdicts(result: LoadResult) -> list[str]:
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
                words = wording.sentence(first, second, ratio, same_kernels=result.same_kernels)
                lines.append(f"{point.load.label}, {METRIC_WORDS[metric]}: {words}")
    return lines


def best(result: LoadResult) -> list[str]:
    """Each server's load with the most goodput, or the most tokens a second, in words."""
    if not result.valid or len(result.points) < 2:
        return []
    lines = []
    for server in result.servers:
        figures = [(p.load.label, p.figures(server.name)) for p in result.points]
        if result.slo is not None:
            label, rate = max(((label, f.goodput(result.slo) or 0.0) for label, f in figures), key=lambda pair: pair[1])
            bounds = ", ".join(f"{name} within {bound:g} ms" for name, bound in result.slo.bounds_ms.items())
            lines.append(f"{server.name}: most goodput ({bounds}) at {label}: {number(rate)} requests/s.")
        else:
            label, rate = max(((label, f.per_s(f.output_tokens) or 0.0) for label, f in figures), key=lambda pair: pair[1])
            lines.append(f"{server.name}: most tokens per second at {label}: {number(rate)}.")
    return lines


def headline(result: LoadResult) -> str:
    """The one sentence of the report."""
    if not result.valid:
        return f"Invalid: {result.invalid_reasons[0]}"
    if len(result.servers) > 1:
        return _compared(result)
    if len(result.points) > 1:
        return best(result)[0]
    figures, load = result.points[0].figures(result.servers[0].name), result.points[0].load
    ttft = figures.summary("ttft")
    first = f", first token after {number(ttft.median)} ms (median)" if ttft else ""
    rate, tokens = number(figures.per_s(len(figures.answered))), number(figures.per_s(figures.output_tokens))
    return f"{result.servers[0].name}: {rate} requests/s and {tokens} tokens/s at {load.label}{first}."


def _compared(result: LoadResult) -> str:
    first, second = (server.name for server in result.servers)
    ratios = [ratio for point in result.points for ratio in result.comparisons(point).values()]
    return f"{first} compared with {second}: {wording.tally(ratios, [result.same_kernels] * len(ratios), few='too few blocks')}."


def caveats(result: LoadResult) -> list[str]:
    """What the reader has to know beside the figures."""
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
        lines.append(wording.family_note(result.comparison_count, result.least_difference))
    if any(server.facts.get("same_machine") for server in result.servers):
        lines.append("The server ran on the same machine as the load generator, and both took from its cores.")
    lines += circumstances(result.environment)
    return [*lines, *result.all_notes]


def _self_test_line(result: LoadResult, point: Point) -> str | None:
    test = point.self_test
    if test is None:
        return None
    name = result.servers[0].name
    found = f"Self-test, {point.load.label}: {name} against itself gave {test.speedup:.3f}x [{test.low:.3f}, {test.high:.3f}]"
    if not test.differs:
        return f"{found}, no difference seen, as it should be."
    return f"{found}: a difference where there is none. The timing here cannot be trusted."


def machine_line(result: LoadResult) -> str:
    """Where the generator ran, in a line."""
    e = result.environment
    parts = [e.get("cpu_model"), f"{e.get('cpu_count')} cores", e.get("platform")]
    parts += [f"{server.name}: {server.facts['base_url']}" for server in result.servers if server.facts.get("base_url")]
    return ", ".join(str(p) for p in parts if p)


def render_text(result: LoadResult) -> str:
    """The result as it is printed."""
    lines = [table(rows(result), columns(result)), ""]
    if not result.valid:
        lines += [f"INVALID: {reason}" for reason in result.invalid_reasons] + [""]
    lines += [*verdicts(result), *best(result)]
    return "\n".join([*lines, "", *caveats(result), f"Machine: {machine_line(result)}"])


def markdown(result: LoadResult) -> str:
    """`report.md`."""
    lines = ["# Benchmark: serve", "", f"**{escape(headline(result))}**", ""]
    if not result.valid:
        lines += ["Why this run is invalid:", "", *[f"- {escape(reason)}" for reason in result.invalid_reasons], ""]
    lines += [markdown_table(columns(result), rows(result)), ""]
    if found := [*verdicts(result), *best(result)]:
        lines += ["## Verdicts", "", *[f"- {escape(line)}" for line in found], ""]
    lines += ["## How to read this", "", *[f"- {escape(line)}" for line in caveats(result)], ""]
    lines += ["## Where and how", "", escape(machine_line(result)), "", "```", str(result.environment["command_line"]), "```"]
    return "\n".join(lines) + "\n"
