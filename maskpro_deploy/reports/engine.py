"""An engine's report as a page, and as text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from maskpro_deploy.reports import plots
from maskpro_deploy.reports.blocks import ListSection, PlotSection, Report, Section, TableSection, warning_list
from maskpro_deploy.reports.plots import Bar, Series
from maskpro_deploy.system.output import table

if TYPE_CHECKING:
    from maskpro_deploy.exporters import EngineReport
    from maskpro_deploy.exporters.engines.report import LayerRow
    from maskpro_deploy.exporters.engines.timing.results import Comparison, PointResult

_HEADER = ("layer", "K", "N", "stored", "MB", "eligible", "shape", "chosen", "sparse ms", "dense ms", "from batch", "kernel")
_HOW_TO_READ = (
    "Eligible: sparse tensor cores could run the layer; the reason stands there if not. Shape: small means K or N of at most "
    "256, where sparse kernels are rarely faster. Chosen: the builder took a sparse kernel after timing it against dense ones; "
    "not known where the library decides when it loads the engine. "
    "Times are of the kernels that use the weight, taken under the profiler at the largest prefill; a kernel that fuses several "
    "layers counts for each of them. From batch: the smallest prefill batch from which on the layer's sparse kernels took less "
    "time than the dense ones at every batch measured, by medians, without an interval."
)
_LARGEST = 20


def build_page(bundle: Path, report: EngineReport) -> Report:
    """The page: the sentence, what was built, the comparison, one row a layer."""
    engine = report.engine
    sections: list[Section] = [TableSection(title="Engine", rows=_facts(report))]
    spoiled = [f"{count} pruned layers: {cause}" for cause, count in report.spoiled.items() if count]
    sections += warning_list("Kept from sparse tensor cores by the graph", spoiled)
    header = ("profile", "input", "minimum", "optimum", "maximum")
    profiles = [
        (profile["name"], name, *("x".join(map(str, shape)) for shape in bounds))
        for profile in engine.settings["profiles"]
        for name, bounds in profile["shapes"].items()
    ]
    sections.append(TableSection(title="Profiles", header=header, rows=profiles))
    if report.comparison is not None:
        sections += _compare_engines(report.comparison)
    if rows := [_row(layer, report.comparison) for layer in report.layers]:
        used = [i for i in range(len(_HEADER)) if any(row[i] != "-" for row in rows)]  # no columns of things not measured
        columns, *cells = [[row[i] for i in used] for row in (_HEADER, *rows)]
        sections.append(TableSection(title="Layers", header=columns, rows=cells, note=_HOW_TO_READ))
    if report.warnings:
        sections.append(ListSection(title="What the library warned of", points=report.warnings))
    return Report(
        title="Engine report",
        headline=f"Speed gained by sparsity: {report.gain}.",
        subtitle=f"{bundle / engine.file}: {engine.library} {engine.library_version}, {engine.target}, {engine.dtype}",
        sections=sections,
    )


def _facts(report: EngineReport) -> list[tuple[str, str]]:
    engine, settings = report.engine, report.engine.settings
    eligible = sum(row.eligible for row in report.layers)
    flags = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in settings["flags"].items())
    return [
        ("library", f"{engine.library} {engine.library_version}"),
        ("target", engine.target),
        ("dtype", engine.dtype),
        ("form of the cache", settings["form"]),
        ("longest sequence", f"{settings['max_length']} tokens"),
        ("size", f"{report.bytes / 1e6:.1f} MB"),
        ("built in", f"{report.build_s:.1f} s, {report.peak_rss_bytes / 1e6:.0f} MB of memory at most"),
        ("layers eligible for sparse kernels", f"{eligible} of {len(report.layers)}"),
        ("sparse kernels", engine.sparse_kernels),
        ("eligible by the builder's log", "it has no word about it" if report.log_eligible is None else str(report.log_eligible)),
        ("flags", flags or "the library's defaults"),
        ("cache key", settings["key"]),
    ]


def _compare_engines(comparison: Comparison) -> list[Section]:
    rows = [
        ("size", f"{comparison.sparse_bytes / 1e6:.1f} MB", f"{comparison.dense_bytes / 1e6:.1f} MB"),
        ("build", f"{comparison.sparse_build_s:.1f} s", f"{comparison.dense_build_s:.1f} s"),
    ]
    sections: list[Section] = [TableSection(title="Against the dense engine", header=("", "sparse", "dense"), rows=rows)]
    if comparison.not_measured:
        sections.append(ListSection(title="Time", points=[comparison.not_measured]))
    return [*sections, *_show_calls(comparison)] if comparison.points else sections


def _show_calls(comparison: Comparison) -> list[Section]:
    evens = "; ".join(
        f"{kind}: sparse is faster from batch {batch} on" if batch else f"{kind}: sparse is faster at no batch"
        for kind, batch in comparison.break_even.items()
    )
    header = ("call", "sparse ms", "dense ms", "ratio", "95 % interval", "sparse is")
    note = f"Engines ran in turns in blocks A B B A. Break-even: {evens}."
    rows = [_point(p) for p in comparison.points]
    sections: list[Section] = [TableSection(title="Measured calls", header=header, rows=rows, note=note)]
    if (head := comparison.headline) is not None and (bars := _make_bars(head)):
        plot = plots.draw_bars(bars, x_label="ms", description="Milliseconds of the largest layers, sparse beside dense.")
        total = f"All layers under the profiler: {head.layers_sum_ms[0]:.3f} ms sparse, {head.layers_sum_ms[1]:.3f} ms dense."
        sections.append(PlotSection(title=f"Layers at {head.name}", plot=plot, caption=total))
    return [*sections, *_draw_curves(comparison)]


def _point(p: PointResult) -> tuple[str, ...]:
    ratio = "-" if p.speedup is None else f"{p.speedup:.3f}x"
    interval = "-" if p.low is None or p.high is None else f"[{p.low:.3f}, {p.high:.3f}]"
    return (p.name, f"{p.sparse_ms:.3f}", f"{p.dense_ms:.3f}", ratio, interval, p.verdict)


def _make_bars(head: PointResult) -> list[Bar]:
    """The layers that take longest, sparse next to dense."""
    known = [(name, s, d) for name, (s, d) in head.layers.items() if s is not None and d is not None]
    known.sort(key=lambda row: -row[2])
    return [
        Bar(name=f"{name.removesuffix('.weight')}: {kind}", value=value, note=f"{value:.3f} ms", colour=colour)
        for name, sparse, dense in known[: _LARGEST // 2]
        for colour, (kind, value) in enumerate((("sparse", sparse), ("dense", dense)))
    ]


def _draw_curves(comparison: Comparison) -> list[Section]:
    sections: list[Section] = []
    for kind in comparison.break_even:
        points = sorted((p for p in comparison.points if p.kind == kind and p.speedup is not None), key=lambda p: p.batch)
        if len({p.batch for p in points}) < 2:
            continue
        series: dict[str, list[PointResult]] = {}
        for p in points:
            series.setdefault(f"{p.new} new", []).append(p)
        drawn = [Series(name=n, x=[p.batch for p in ps], y=[p.speedup or 0.0 for p in ps], dots=True) for n, ps in series.items()]
        words = f"Ratio over batch, {kind}."
        plot = plots.draw_lines(drawn, x_label="batch", y_label="dense time / sparse time", description=words)
        title = f"{kind.capitalize()}: ratio over batch"
        sections.append(PlotSection(title=title, plot=plot, caption="Above 1, sparse is faster."))
    return sections


def _row(layer: LayerRow, comparison: Comparison | None) -> tuple[str, ...]:
    even = comparison.layer_break_even(layer.weight).get("prefill") if comparison is not None else None
    head = comparison.headline if comparison is not None else None
    sparse, dense = head.layers.get(layer.weight, (None, None)) if head is not None else (None, None)
    return (
        layer.weight.removesuffix(".weight"),
        *map(str, layer.shape),
        layer.dtype,
        f"{layer.bytes / 1e6:.3f}",
        "yes" if layer.eligible else f"no: {layer.reason}",
        layer.tensor_cores,
        layer.chosen.split(" ahead")[0],
        "-" if sparse is None else f"{sparse:.3f}",
        "-" if dense is None else f"{dense:.3f}",
        "-" if even is None else str(even),
        layer.kernel or "-",
    )


def render_text(bundle: Path, report: EngineReport) -> str:
    """The report as it is printed."""
    engine = report.engine
    how = "up to date, not built again" if report.reused else f"built in {report.build_s:.1f} s"
    lines = [
        f"{bundle / engine.file}: {engine.library} {engine.library_version}, {engine.target}, {engine.dtype}, "
        f"{report.bytes / 1e6:.1f} MB, {how}",
        f"profiles: {', '.join(p['name'] for p in engine.settings['profiles'])}",
        _layer_table(report),
    ]
    if report.comparison is not None and report.comparison.points:
        rows = [
            (p.name, f"{p.sparse_ms:.3f}", f"{p.dense_ms:.3f}", f"{p.speedup:.3f}x" if p.speedup else "-", p.verdict)
            for p in report.comparison.points
        ]
        lines.append(table(rows, ("call", "sparse ms", "dense ms", "ratio", "sparse is")))
    if spoiled := [f"{count} {cause}" for cause, count in report.spoiled.items() if count]:
        lines.append(f"pruned layers that the graph keeps from sparse tensor cores: {', '.join(spoiled)}")
    return "\n".join([*lines, f"sparse kernels: {engine.sparse_kernels}", f"speed gained by sparsity: {report.gain}"])


def _layer_table(report: EngineReport) -> str:
    """The layers as a table, equal ones in one row."""
    groups: dict[tuple[str, tuple[int, ...], str, str], list[LayerRow]] = {}
    for row in report.layers:
        key = (row.kind, row.shape, "yes" if row.eligible else row.reason, row.chosen)
        groups.setdefault(key, []).append(row)
    head = report.comparison.headline if report.comparison is not None else None
    header = ["layers", "count", "K", "N", "eligible", "sparse kernel chosen"]
    rows: list[list[object]] = []
    for (kind, shape, eligible, chosen), members in groups.items():
        rows.append([kind, len(members), shape[0], shape[1], eligible, chosen])
        if head is not None:
            rows[-1] += [_sum_ms([head.layers[m.weight][side] for m in members]) for side in (0, 1)]
    if head is not None:
        header += ["sparse ms", "dense ms"]
    return table(rows, header)


def _sum_ms(values: list[float | None]) -> str:
    known = [v for v in values if v is not None]
    return f"{sum(known):.3f}" if known else "-"
