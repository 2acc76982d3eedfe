"""The folder of the demo: what may be in it, and the files and the text at the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from maskpro_deploy.demo.page import build_page
from maskpro_deploy.demo.state import Demo
from maskpro_deploy.errors import InputError
from maskpro_deploy.reports.blocks import REPORT_FILE, write
from maskpro_deploy.system.files import write_json
from maskpro_deploy.system.output import table

RESULT_FILE = "result.json"
_OWN = {"sparse", "sparse.learning", "bundle", "bundle-dense", "bundle-fp16", RESULT_FILE, REPORT_FILE}


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
    write(build_page(demo), demo.out / REPORT_FILE)
    return {"report": str(demo.out / REPORT_FILE), **figures}


def render_text(demo: Demo) -> str:
    """The results as they are printed."""
    lines = [table(demo.rows), "", "not measured here:", *(f"  {point}" for point in demo.not_measured)]
    return "\n".join([*lines, "", f"report: {demo.out / REPORT_FILE}"])
