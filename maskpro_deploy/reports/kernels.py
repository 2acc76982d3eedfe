"""The page of a model's products: bars by layer."""

from __future__ import annotations

from maskpro_deploy.bench.kernels.result import KernelResult
from maskpro_deploy.bench.kernels.summary import describe
from maskpro_deploy.bench.results.document import format_number
from maskpro_deploy.reports import plots
from maskpro_deploy.reports.blocks import PlotSection, Report
from maskpro_deploy.reports.plots import Bar
from maskpro_deploy.reports.run import build_run_page


def build_page(result: KernelResult) -> Report:
    """The report."""
    return build_run_page(describe(result), [plot for m in result.tokens if (plot := _plot_layer(result, m)) is not None])


def _plot_layer(result: KernelResult, m: int) -> PlotSection | None:
    """What each product adds to a layer, by form."""
    bars = []
    for case in result.cases:
        share = case.count if (case.k, case.n) == result.last else case.count / result.layers
        for place, form in enumerate(result.forms):
            if case.m == m and (each := result.product_ms(case, form)) is not None:
                where = "logits" if (case.k, case.n) == result.last else f"{case.k} x {case.n}, {share:g} a layer"
                bars.append(
                    Bar(name=f"{where}: {form}", value=share * each, note=f"{format_number(share * each)} ms", colour=place)
                )
    if not bars:
        return None
    plot = plots.draw_bars(bars, x_label="ms", description=f"Milliseconds of each product in one layer at M {m}, for each form.")
    return PlotSection(
        title=f"Per layer, M {m}", plot=plot, caption="Medians. All products of a shape in one layer; logits once."
    )
