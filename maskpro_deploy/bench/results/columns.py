"""Columns of result tables: each is defined once, with its header, its cell, its meaning and its key in `result.json`.

A benchmark has a tuple of columns over its own kind of row. The table on stdout, those of report.md and report.html with the
meaning of each column below, and the figures of `result.json` are all made from it: a new column is one entry.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from maskpro_deploy.bench.results import wording
from maskpro_deploy.bench.results.document import UNKNOWN, Table, format_number
from maskpro_deploy.bench.statistics import stats

R = TypeVar("R")
R_contra = TypeVar("R_contra", contravariant=True)


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
