"""Products in words and as a page: tables, verdicts, bars by layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from maskpro_deploy.bench.environment import circumstances, reproduce_note
from maskpro_deploy.bench.kernels.measure import KernelCase, KernelResult
from maskpro_deploy.bench.results import wording
from maskpro_deploy.bench.roofline import Load, floor
from maskpro_deploy.bench.statistics import stats
from maskpro_deploy.bench.sweeps.summary import UNKNOWN, markdown_page, number
from maskpro_deploy.reports import plots
from maskpro_deploy.reports.blocks import CodeSection, ListSection, PlotSection, Report, Section, TableSection
from maskpro_deploy.reports.latency import environment_table
from maskpro_deploy.reports.plots import Bar
from maskpro_deploy.system.output import table

TOTALS = ("M", "form", "model ms", "layer ms", "against {}", "interval", "verdict")
PRODUCTS = ("product", "count", "M", "form", "us", "GFLOP/s", "floor us", "against {}", "interval", "verdict")
GPU_TOTALS = ("dtype", "M", "arm", "model ms", "against dense")


def _compared(result: KernelResult, form: str, ratio: stats.Ratio | None) -> list[str]:
    first = form == result.forms[0]
    if first or ratio is None:
        return [UNKNOWN, UNKNOWN, UNKNOWN if first else "too few sessions"]
    return [*wording.figures(ratio), wording.outcome(ratio, same_kernels=result.same_kernels(form))]


def header(columns: tuple[str, ...], result: KernelResult) -> tuple[str, ...]:
    """Column names for this result."""
    return tuple(c.format(result.forms[0]) for c in columns)


def total_rows(result: KernelResult) -> list[list[str]]:
    """All products of the model, for each M and form."""
    rows = []
    for m in result.tokens:
        for form in result.forms:
            times = [number(result.model_ms(m, form)), number(result.model_ms(m, form, layer=True))]
            first = form == result.forms[0]
            rows.append([str(m), form, *times, *_compared(result, form, None if first else result.model_ratio(m, form))])
    return rows


def product_rows(result: KernelResult) -> list[list[str]]:
    """Each product, for each M and form."""
    return [_product_row(result, case, form) for case in result.cases for form in result.forms]


def _product_row(result: KernelResult, case: KernelCase, form: str) -> list[str]:
    each_ms, first = result.product_ms(case, form), form == result.forms[0]
    rate = None if each_ms is None else case.operations / each_ms / 1e6
    least = None
    if form == "fp32":  # what the ceilings are for
        least = floor([Load(bytes=4 * case.k * case.n, operations=case.operations)], result.bandwidth, result.arithmetic)
    cells = [f"{case.k} x {case.n}", str(case.count), str(case.m), form]
    cells += [
        number(None if each_ms is None else 1e3 * each_ms),
        number(rate),
        number(None if least is None else 1e6 * least.seconds),
    ]
    return [*cells, *_compared(result, form, None if first else result.ratio(case, form))]


def verdicts(result: KernelResult) -> list[str]:
    """For each form: where it is faster than the first."""
    if not result.valid:
        return []
    lines = []
    for form in result.forms[1:]:
        for m in result.tokens:
            if (ratio := result.model_ratio(m, form)) is not None:
                same = result.same_kernels(form)
                words = wording.sentence(form, result.forms[0], ratio, same_kernels=same)
                lines.append(f"all products of the model, M {m}: {words}")
        if result.same_kernels(form):
            continue
        shapes = dict.fromkeys((c.k, c.n) for c in result.cases)
        found = {shape: result.faster_at(form, shape) for shape in shapes}
        parts = [f"{k} x {n} at {', '.join(map(str, at))}" for (k, n), at in found.items() if at]
        lines.append(f"{form} is faster than {result.forms[0]} at M: {'; '.join(parts) or 'none of those measured'}.")
    return lines


def headline(result: KernelResult) -> str:
    """The one sentence of the report."""
    if not result.valid:
        return f"Invalid: {result.invalid_reasons[0]}"
    parts = []
    for form in result.forms[1:]:
        ratios = [(m, r) for m in result.tokens if (r := result.model_ratio(m, form)) is not None]
        told = [f"{r.speedup:.2f}x at M {m}" for m, r in ratios if r.differs]
        if even := [str(m) for m, r in ratios if not r.differs]:
            told.append(f"no difference seen at M {', '.join(even)}")
        expected = f" ({wording.SAME_KERNELS})" if result.same_kernels(form) else ""
        parts.append(f"{form} {', '.join(told) or 'not compared (too few sessions)'}{expected}")
    return f"All matrix products of {result.facts['name']} against {result.forms[0]}: {'; '.join(parts)}."


def notes(result: KernelResult) -> list[str]:
    """What a reader has to know."""
    test = result.run.verdict()
    lines = []
    if test.attempts:
        last = test.attempts[-1]
        lines.append(
            f"Self-test: {result.forms[0]} against itself gave {last.speedup:.3f}x [{last.low:.3f}, {last.high:.3f}] over "
            f"{last.sessions} pairs of sessions."
        )
    lines += [
        "Each sample is several products of one shape with different weights, after the caches were emptied. Weights are random, "
        "and the same numbers in all forms"
        + (", but for 2:4, which has two of every four zero." if "2:4" in result.forms else "."),
        f"Memory bandwidth {_rate(result.bandwidth.bytes_per_s)} GB/s, arithmetic {_rate(result.arithmetic.operations_per_s)} "
        "GFLOP/s, measured in this run; the floor is the longer of both, for fp32.",
        "Layer: the mean over the layers, without the product that makes the logits.",
    ]
    if "2:4" in result.forms:
        lines.append("Stock onnxruntime has no 2:4 kernels on a CPU: the form shows that zeros are multiplied like any value.")
    if result.valid and result.comparison_count:
        lines.append(wording.family_note(result.comparison_count, result.least_difference))
    lines += circumstances(result.environment, result.earlier)
    return [*lines, *gpu_lines(result.gpu)]


def _rate(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value / 1e9:.1f}"


def gpu_lines(gpu: Mapping[str, Any]) -> list[str]:
    """What is known of the GPU."""
    if not gpu["measured"]:
        return [f"Sparse kernels on a GPU: not measured ({gpu['reason']})."]
    cells = gpu["cells"]
    lines = [f"GPU: {gpu['device']}, torch's 2:4 products against dense ones, {len(cells)} of {gpu['planned']} measured."]
    for b in gpu["break_even"]:
        at = "at none of the M measured up to the largest" if b["from_m"] is None else f"from M {b['from_m']} on"
        lines.append(f"{b['dtype']}, {b['k']} x {b['n']}, {b['backend']}: faster than dense {at}.")
    lines += [f"Not on this GPU: {name}: {why}" for name, why in gpu["refused"].items()]
    if padded := {(c["dtype"], c["m"], name, rows) for c in cells for name, rows in c.get("rows", {}).items()}:
        told = ", ".join(f"{dtype} {name} M {m} as {rows}" for dtype, m, name, rows in sorted(padded))
        lines.append(f"Padded inside the timed call, as the library takes no smaller M: {told}.")
    lines.append("Verdicts on the GPU hold for one product at a time: among many products, some differ by chance.")
    if any("cusparselt-tuned" in c["against_dense"] for c in cells):
        lines.append("cusparselt-tuned: by the fastest algorithm that cuSPARSELt's search finds; cusparselt: by torch's default.")
    if any(c["dtype"] == "int8" for c in cells):
        lines.append("int8: the products alone, 8 bits to 32-bit sums; a layer also quantises its input and scales its output.")
    if some := {f"{c['dtype']} {name}: {why}" for c in cells for name, why in c["refused"].items()}:
        lines.append(f"Refused for some products: {'; '.join(sorted(some))}")
    if failed := [c["failed"] for c in cells if c["failed"]]:
        lines.append(f"Failed on the GPU, and not measured: {failed[0]} ({len(failed)} in all).")
    if wrong := [c["wrong"] for c in cells if c["wrong"]]:
        lines.append(f"WRONG products on the GPU, not timed: {wrong[0]} ({len(wrong)} in all). Do not use that way to multiply.")
    return lines


def gpu_rows(gpu: Mapping[str, Any]) -> list[list[str]]:
    """All products of the model on the GPU."""
    return [
        [t["dtype"], str(t["m"]), arm, number(ms), _against(t["ms"], arm)]
        for t in gpu.get("whole_model", [])
        for arm, ms in t["ms"].items()
    ]


def _against(ms: Mapping[str, float], arm: str) -> str:
    return f"{ms['dense'] / ms[arm]:.3f}x" if "dense" in ms and arm != "dense" else UNKNOWN


def page(result: KernelResult) -> Report:
    """The report."""
    sections: list[Section] = []
    if not result.valid:
        sections.append(ListSection(title="Why this run is invalid", points=result.invalid_reasons, warning=True))
    if points := verdicts(result):
        sections.append(ListSection(title="Verdicts", points=points))
    sections.append(TableSection(title="The whole model", header=header(TOTALS, result), rows=total_rows(result)))
    sections += [plot for m in result.tokens if (plot := layer_plot(result, m)) is not None]
    sections.append(TableSection(title="Each product", header=header(PRODUCTS, result), rows=product_rows(result)))
    if rows := gpu_rows(result.gpu):
        sections.append(TableSection(title="The whole model on the GPU", header=GPU_TOTALS, rows=rows))
    sections.append(ListSection(title="How to read this", points=notes(result)))
    sections.append(environment_table(result.environment))
    command = str(result.environment["command_line"])
    sections.append(CodeSection(title="How to reproduce", code=command, note=reproduce_note(result.environment)))
    e, threads = result.environment, result.config["threads"] or "all cores"
    return Report(
        title="Benchmark: kernels",
        headline=headline(result),
        subtitle=f"{e.get('cpu_model')}, {e.get('cpu_count')} cores, threads: {threads}, {e['date']}",
        sections=sections,
        invalid=not result.valid,
    )


def layer_plot(result: KernelResult, m: int) -> PlotSection | None:
    """What each product adds to a layer, form beside form."""
    bars = []
    for case in result.cases:
        share = case.count if (case.k, case.n) == result.last else case.count / result.layers
        for place, form in enumerate(result.forms):
            if case.m == m and (each := result.product_ms(case, form)) is not None:
                where = "logits" if (case.k, case.n) == result.last else f"{case.k} x {case.n}, {share:g} a layer"
                bars.append(Bar(name=f"{where}: {form}", value=share * each, note=f"{number(share * each)} ms", colour=place))
    if not bars:
        return None
    plot = plots.bars(bars, x_label="ms", description=f"Milliseconds of each product in one layer at M {m}, for each form.")
    return PlotSection(
        title=f"Per layer, M {m}", plot=plot, caption="Medians. All products of a shape in one layer; logits once."
    )


def markdown(result: KernelResult) -> str:
    """`report.md`."""
    tables = [("The whole model", header(TOTALS, result), total_rows(result))]
    tables.append(("Each product", header(PRODUCTS, result), product_rows(result)))
    if rows := gpu_rows(result.gpu):
        tables.append(("The whole model on the GPU", GPU_TOTALS, rows))
    points = {"Why this run is invalid": result.invalid_reasons, "Verdicts": verdicts(result), "How to read this": notes(result)}
    return markdown_page("Benchmark: kernels", headline(result), tables, points, str(result.environment["command_line"]))


def render_text(result: KernelResult) -> str:
    """The result as it is printed."""
    lines = [table(product_rows(result), header(PRODUCTS, result)), "", table(total_rows(result), header(TOTALS, result)), ""]
    if rows := gpu_rows(result.gpu):
        lines += [table(rows, GPU_TOTALS), ""]
    lines += [f"INVALID: {reason}" for reason in result.invalid_reasons]
    return "\n".join([*lines, *verdicts(result), "", *notes(result)])
