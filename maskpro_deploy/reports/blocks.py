"""A self-contained HTML report: one file without scripts or network, readable on screen (light and dark) and in print.

    report = Report(
        title="Benchmark",
        headline="No difference seen.",
        sections=[
            TableSection(title="Latency", header=("model", "ms"), rows=[("dense", "11.9"), ("sparse", "11.8")]),
            PlotSection(title="Distribution", plot=plots.draw_distribution(...), caption="..."),
        ],
    )
    write(report, Path("report.html"))

Everything but drawn plots is escaped by the template.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar

from maskpro_deploy._version import __version__
from maskpro_deploy.errors import ConfigError
from maskpro_deploy.reports.svg import Svg
from maskpro_deploy.system.extras import require
from maskpro_deploy.system.files import atomic_file

TEMPLATE = "report.html"
_NUMBER = re.compile(r"[-+]?[\d.,]+(e[-+]?\d+)?( ?(%|x|ms|s|MB|GB))?|-")


@dataclass(frozen=True, slots=True, kw_only=True)
class ListSection:
    """Points, one line each; `warning` sets them off."""

    kind: ClassVar[str] = "list"
    title: str
    points: Sequence[str]
    warning: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TableSection:
    """A table; columns that hold numbers only are set to the right. Without a header the first column names the rows."""

    kind: ClassVar[str] = "table"
    title: str
    rows: Sequence[Sequence[str]]
    header: Sequence[str] = ()
    note: str = ""

    def __post_init__(self) -> None:
        widths = {len(row) for row in self.rows} | ({len(self.header)} if self.header else set())
        if len(widths) > 1:
            raise ConfigError(f"table {self.title!r} has rows of different lengths: {sorted(widths)}.")

    @property
    def numeric(self) -> list[bool]:
        """Which columns hold numbers only."""
        return [all(_NUMBER.fullmatch(str(row[i])) for row in self.rows) for i in range(len(self.rows[0]))] if self.rows else []


@dataclass(frozen=True, slots=True, kw_only=True)
class PlotSection:
    """A drawn plot with a caption."""

    kind: ClassVar[str] = "plot"
    title: str
    plot: Svg
    caption: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeSection:
    """Commands or data, letter by letter."""

    kind: ClassVar[str] = "code"
    title: str
    code: str
    note: str = ""


Section = ListSection | TableSection | PlotSection | CodeSection


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A page: the result in one sentence, what, where and when in a line, and sections in reading order.

    `invalid`: the headline says that the result must not be used.
    """

    title: str
    headline: str
    sections: Sequence[Section]
    subtitle: str = ""
    invalid: bool = False


def facts_table(title: str, facts: Mapping[str, Any] | Iterable[tuple[str, Any]]) -> TableSection:
    """Names and values as a table of two columns; what could not be read is said so."""
    pairs = facts.items() if isinstance(facts, Mapping) else facts
    return TableSection(title=title, rows=[(key.replace("_", " "), show_value(value)) for key, value in pairs])


def environment_sections(environment: Mapping[str, Any], note: str) -> list[Section]:
    """What something was measured on, and the command that measures it again."""
    command = CodeSection(title="How to reproduce", code=str(environment.get("command_line", "")), note=note)
    return [facts_table("Environment", environment), command]


def show_value(value: Any) -> str:
    """A JSON value for a reader."""
    if value is None:
        return "not known"
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {show_value(v)}" for k, v in value.items()) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return str(value)


def warning_list(title: str, points: Sequence[str]) -> list[Section]:
    """Points that are set off; nothing without any."""
    return [ListSection(title=title, points=points, warning=True)] if points else []


def render(report: Report) -> str:
    """The page as HTML; a `MissingExtraError` without jinja2."""
    require("report", "writing an HTML report")
    from jinja2 import Environment, StrictUndefined

    source = resources.files("maskpro_deploy.reports").joinpath(TEMPLATE).read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(source).render(report=report, version=__version__)


def check_page(path: Path, flag: str) -> None:
    """Refuse early what would fail after the work: a page that cannot be made here, or a path that is a folder."""
    require("report", "writing an HTML report")
    if path.is_dir():
        raise ConfigError(f"{flag} {path} is a folder.\nName the file to write.")


def write(report: Report, path: Path) -> None:
    """Write the page to `path`, whole or not at all."""
    text = render(report)
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="replace")
