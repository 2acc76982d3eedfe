"""The page of any benchmark run: its document, with plots."""

from __future__ import annotations

from collections.abc import Sequence

from maskpro_deploy.bench.environment import reproduce_note
from maskpro_deploy.bench.results.document import HOW_TO_READ, VERDICTS, WHY_INVALID, Document
from maskpro_deploy.reports.blocks import (
    ListSection,
    Report,
    Section,
    TableSection,
    environment_sections,
    warning_list,
)


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
