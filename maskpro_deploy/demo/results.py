"""The folder of the demo: what may be in it, and what is written and printed at the end, the page among them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from maskpro_deploy.bench.results.document import REPORT_FILE
from maskpro_deploy.bench.sweeps.summary import describe
from maskpro_deploy.errors import InputError
from maskpro_deploy.reports import blocks, changes, curves, learning, plots
from maskpro_deploy.reports.benchmarks import plot_medians
from maskpro_deploy.reports.blocks import ListSection, PlotSection, Report, Section, TableSection
from maskpro_deploy.reports.curves import Phase
from maskpro_deploy.system.files import write_json
from maskpro_deploy.system.output import table

if TYPE_CHECKING:
    from maskpro_deploy.demo.state import Demo

RESULT_FILE = "result.json"
_PHASES = {"masked", "masked.learning", "masked-run", "sparse", "sparse.learning"}
_OWN = {*_PHASES, "bundle", "bundle-dense", "bundle-fp16", RESULT_FILE, REPORT_FILE}


def check_out(out: Path) -> None:
    """Refuse a folder with anything but results of a demo: these are replaced, and nothing else.

    Raises:
        InputError: the folder holds something else, or is a file.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file.\nChoose another --out.")
    foreign = [p.name for p in out.iterdir() if p.name not in _OWN and not p.name.startswith(".")] if out.exists() else []
    if foreign:
        raise InputError(f"{out} holds other things than a demo's results ({foreign[0]}).\nChoose another --out.")


def write_results(demo: Demo) -> dict[str, Any]:
    """Write result.json and report.html; all figures, as `--json` prints them."""
    figures = {**demo.figures, "not_measured": demo.not_measured}
    write_json(demo.out / RESULT_FILE, figures)
    blocks.write(build_page(demo), demo.out / REPORT_FILE)
    return {"report": str(demo.out / REPORT_FILE), **figures}


def render_text(demo: Demo) -> str:
    """The results as they are printed."""
    lines = [table(demo.rows), "", "not measured here:", *(f"  {point}" for point in demo.not_measured)]
    return "\n".join([*lines, "", f"report: {demo.out / REPORT_FILE}"])


def build_page(demo: Demo) -> Report:
    """The page: results, learning curve, what changed, quality, latency, environment."""
    assert demo.learned is not None
    assert demo.recovered is not None
    quality = demo.figures["quality"]
    perplexity = quality["perplexity"]
    below = 100 * quality["below_one_shot"]["recovered"]
    headline = (
        f"Strict {demo.pattern}: held-out perplexity {perplexity['recovered']:.1f} with learned masks and recovered weights, "
        f"{perplexity['learned']:.1f} before the recovery, one-shot {perplexity['one-shot']:.1f}, "
        f"dense {perplexity['dense']:.1f} ({below:.0f} % below one-shot)."
    )
    phases = [
        Phase("masks and deltas", demo.learned.curve, demo.learned.objective),
        Phase("weights", demo.recovered.curve, demo.recovered.objective),
    ]
    sections: list[Section] = [
        TableSection(title="Results", rows=demo.rows),
        *blocks.warning_list("Not measured here", demo.not_measured),
        curves.draw_losses(phases, learning.name_references(demo.learned)),
        *curves.draw_movements(phases),
        *changes.draw_masks(demo.learned.masks, demo.learned.prior_masks),
        *changes.draw_moved(demo.learned.moved_by_layer, "Weights moved with the masks"),
        *changes.draw_moved(demo.recovered.moved_by_layer, "Weights moved after the masks"),
        PlotSection(
            title="Quality",
            plot=plots.draw_quality_bars(perplexity, quality["stderr"]),
            caption=f"Perplexity on {quality['protocol']['windows']} held-out windows of {quality['protocol']['window']} tokens, "
            "fp32, with one standard error.",
        ),
        *_latency(demo),
        blocks.facts_table("Environment", demo.figures["environment"]),
    ]
    return Report(title="maskpro-deploy demo", headline=headline, subtitle=str(demo.figures["model"]), sections=sections)


def _latency(demo: Demo) -> list[Section]:
    result = demo.latency
    if result is None or not result.valid:
        return []
    document = describe(result)
    (latencies,) = document.tables
    measured = TableSection(title="Latency", header=latencies.header, rows=latencies.rows, note=latencies.note)
    points = [*document.verdicts, *document.notes]
    return [measured, ListSection(title="How to read the latency", points=points), *plot_medians(result)]
