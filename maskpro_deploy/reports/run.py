"""The files of a benchmark run: result.json, and its document as report.md and as a page with plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from maskpro_deploy.bench.environment import reproduce_note
from maskpro_deploy.bench.results.document import HOW_TO_READ, MARKDOWN_FILE, REPORT_FILE, VERDICTS, WHY_INVALID, Document
from maskpro_deploy.bench.results.run import RESULT_FILE
from maskpro_deploy.reports.blocks import ListSection, Report, Section, TableSection, environment_sections, warning_list, write
from maskpro_deploy.system.files import atomic_file, write_json


def build_run_page(document: Document, plots: Sequence[Section] = ()) -> Report:
    """The page of a run.

    Args:
        document: what is said of it.
        plots: its pictures, which stand after the tables and their notes.
    """
    sections = warning_list(WHY_INVALID, document.invalid_reasons)
    if document.verdicts:
        sections.append(ListSection(title=VERDICTS, points=document.verdicts))
    sections += [TableSection(title=t.title, header=t.header, rows=t.rows, note=t.note) for t in document.filled_tables]
    sections.append(ListSection(title=HOW_TO_READ, points=document.notes))
    about = document.preface or (document.machine, str(document.environment["date"]))
    return Report(
        title=document.title,
        headline=document.headline,
        subtitle=", ".join(about),
        sections=[*sections, *plots, *environment_sections(document.environment, reproduce_note(document.environment))],
        invalid=bool(document.invalid_reasons),
    )


def write_run(folder: Path, value: Mapping[str, Any], markdown: str, page: Report) -> None:
    """Write report.md and report.html, and then result.json, each whole or not at all.

    Args:
        folder: which exists.
        value: the content of result.json.
        markdown: what is said of the run.
        page: the same as a page.
    """
    with atomic_file(folder / MARKDOWN_FILE) as temporary:
        temporary.write_text(markdown, encoding="utf-8")
    write(page, folder / REPORT_FILE)
    write_json(folder / RESULT_FILE, value)
