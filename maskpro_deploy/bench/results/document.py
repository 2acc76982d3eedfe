"""A result in words and tables: the one document that stdout, report.md and report.html show, each in its own form.

A benchmark describes its result as a `Document`; `to_text` and `to_markdown` render it here, `reports.benchmarks` as a page.

Its tables are made of columns, each defined once, with its header, its cell, its meaning and its key in `result.json`. A
benchmark has a tuple of columns over its own kind of row; the figures of `result.json` are made from it too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from maskpro_deploy.bench import stats
from maskpro_deploy.bench.results import wording
from maskpro_deploy.system.output import table

R = TypeVar("R")
R_contra = TypeVar("R_contra", contravariant=True)

REPORT_FILE, MARKDOWN_FILE = "report.html", "report.md"
UNKNOWN = "-"
WHY_INVALID, VERDICTS, HOW_TO_READ = "Why this run is invalid", "Verdicts", "How to read this"


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table with a title, and a note below it."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """What is said of a result."""

    title: str  # such as "Benchmark: latency"
    headline: str  # the result in one sentence
    tables: Sequence[Table]  # the figures; empty ones are left out
    verdicts: Sequence[str]  # comparisons in words
    notes: Sequence[str]  # what the reader has to know besides the figures
    environment: Mapping[str, Any]  # what it was measured on
    machine: str = ""  # the same in a line
    invalid_reasons: Sequence[str] = ()  # why the figures prove nothing, if so
    preface: Sequence[str] = ()  # lines that come first

    @property
    def command(self) -> str:
        """The command line that measures the same again."""
        return str(self.environment["command_line"])

    @property
    def filled_tables(self) -> list[Table]:
        return [table for table in self.tables if table.rows]


def headline_of(invalid_reasons: Sequence[str], headline: str) -> str:
    """The sentence of a result: that it is invalid, and why, if so."""
    return f"Invalid: {invalid_reasons[0]}" if invalid_reasons else headline


def to_text(document: Document) -> str:
    """What is printed."""
    lines = [*document.preface, ""] if document.preface else []
    for each in document.filled_tables:
        lines += [table(each.rows, each.header), ""]
    if document.invalid_reasons:
        lines += [f"INVALID: {reason}" for reason in document.invalid_reasons] + [""]
    lines += [*document.verdicts, "", *document.notes]
    if document.machine:
        lines.append(f"Machine: {document.machine}")
    return "\n".join(lines)


def to_markdown(document: Document) -> str:
    """`report.md`."""
    lines = [f"# {document.title}", "", f"**{_escape(document.headline)}**", ""]
    for line in document.preface:
        lines += [_escape(line), ""]
    lines += _list_section(WHY_INVALID, document.invalid_reasons)
    for each in document.filled_tables:
        lines += [f"## {each.title}", "", _markdown_table(each), ""]
        if each.note:
            lines += [_escape(each.note), ""]
    lines += [*_list_section(VERDICTS, document.verdicts), *_list_section(HOW_TO_READ, document.notes)]
    lines += ["## Where and how", ""]
    if document.machine:
        lines += [_escape(document.machine), ""]
    return "\n".join([*lines, "```", document.command, "```"]) + "\n"


def _list_section(title: str, points: Sequence[str]) -> list[str]:
    return [f"## {title}", "", *[f"- {_escape(point)}" for point in points], ""] if points else []


def _markdown_table(each: Table) -> str:
    lines = ["| " + " | ".join(each.header) + " |", "|" + "|".join(" --- " for _ in each.header) + "|"]
    lines += ["| " + " | ".join(_escape(cell) for cell in row) + " |" for row in each.rows]
    return "\n".join(lines)


def _escape(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*").replace("_", "\\_")


def format_number(value: float | None, digits: int = 4) -> str:
    """A figure with so many significant digits, or `UNKNOWN`."""
    if value is None:
        return UNKNOWN
    if value == 0 or 10 ** (digits - 1) <= abs(value):
        return f"{value:.0f}"
    text = f"{value:.{digits}g}"
    return f"{value:.6f}".rstrip("0") if "e" in text else text


def describe_machine(environment: Mapping[str, Any], *more: str) -> str:
    """Where a run was measured, in a line; with what else is to be said."""
    parts = [environment.get("cpu_model"), f"{environment.get('cpu_count')} cores", environment.get("platform"), *more]
    return ", ".join(str(part) for part in parts if part)


@dataclass(frozen=True, slots=True, kw_only=True)
class Column(Generic[R_contra]):
    """One column."""

    header: str  # above it
    cell: Callable[[R_contra], str]  # what it shows of a row
    meaning: str = ""  # what it is, for the reader; "" where the header says it all
    key: str = ""  # of its value in `result.json`; "" where that has it in another form
    value: Callable[[R_contra], Any] = lambda row: None  # what stands there


def number_column(
    header: str, value: Callable[[R], float | None], *, meaning: str = "", key: str = "", digits: int = 4, scale: float = 1.0
) -> Column[R]:
    """A column of figures: a row's `value`, None where it is not known, is shown times `scale` with so many `digits`."""

    def show(row: R) -> str:
        figure = value(row)
        return format_number(None if figure is None else scale * figure, digits)

    return Column(header=header, cell=show, meaning=meaning, key=key, value=value)


def plain_column(header: str, value: Callable[[R], str | int], *, meaning: str = "", key: str = "") -> Column[R]:
    """A column of names or counts, shown as they are."""
    return Column(header=header, cell=lambda row: str(value(row)), meaning=meaning, key=key, value=value)


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedRow:
    """A row that is compared with a baseline."""

    ratio: stats.Ratio | None  # how it compares; None where there was not enough to compare
    is_baseline: bool = False  # it is what the others are compared with
    same_kernels: bool = False  # it is known to run the kernels of the baseline


def comparison_columns(header: str) -> tuple[Column[ComparedRow], ...]:
    """The ratio under this header, its interval and the verdict."""

    def show(row: ComparedRow) -> tuple[str, str, str]:
        if row.is_baseline or row.ratio is None:
            return UNKNOWN, UNKNOWN, UNKNOWN if row.is_baseline else "too few sessions"
        return (*wording.format_ratio(row.ratio), wording.describe_outcome(row.ratio, same_kernels=row.same_kernels))

    return (
        Column(header=header, cell=lambda row: show(row)[0], meaning="ratio of speeds, above 1 is faster"),
        Column(header="interval", cell=lambda row: show(row)[1], meaning="of that ratio"),
        Column(header="verdict", cell=lambda row: show(row)[2]),
    )


def make_table(title: str, columns: Sequence[Column[R]], rows: Iterable[R]) -> Table:
    """The rows as a table, with the meaning of its columns as its note."""
    meanings = [f"{column.header}: {column.meaning}" for column in columns if column.meaning]
    return Table(
        title=title,
        header=[column.header for column in columns],
        rows=[[column.cell(row) for column in columns] for row in rows],
        note=f"{'; '.join(meanings)}." if meanings else "",
    )


def columns_json(columns: Iterable[Column[R]], row: R) -> dict[str, Any]:
    """The values of a row by the keys of its columns."""
    return {column.key: column.value(row) for column in columns if column.key}
