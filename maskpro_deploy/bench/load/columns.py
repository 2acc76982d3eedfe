"""The columns of a load run's table: one row for each server at each load. A new figure is one entry here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from maskpro_deploy.bench import stats
from maskpro_deploy.bench.load.figures import Figures, Slo
from maskpro_deploy.bench.results.document import Column, columns_json, number_column, plain_column


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerFigures:
    """One server under one load: a row of the table."""

    load: str
    server: str
    figures: Figures
    slo: Slo | None


def _of_summary(metric: str, figure: Callable[[stats.Summary], float | None]) -> Callable[[ServerFigures], float | None]:
    return lambda row: figure(summary) if (summary := row.figures.summary(metric)) is not None else None


def _median(metric: str, meaning: str) -> Column[ServerFigures]:
    return number_column(f"{metric} ms", _of_summary(metric, lambda s: s.median), meaning=meaning)


def _p99(metric: str) -> Column[ServerFigures]:
    return number_column(f"{metric} p99", _of_summary(metric, lambda s: s.p99))


def _show_lag(row: ServerFigures) -> float | None:
    lag = row.figures.lag_ms()
    return stats.percentile(lag, 0.99) if lag else None


_GOODPUT = "requests that kept the bounds of --slo"
COLUMNS: tuple[Column[ServerFigures], ...] = (
    plain_column("load", lambda row: row.load),
    plain_column("server", lambda row: row.server),
    plain_column("answered", lambda row: len(row.figures.answered), key="completed"),
    plain_column("failed", lambda row: row.figures.failed, key="failed"),
    number_column("requests/s", lambda row: row.figures.request_rate, meaning="answered requests", key="request_throughput"),
    number_column("goodput/s", lambda row: row.figures.goodput(row.slo), meaning=_GOODPUT, key="request_goodput"),
    number_column("tokens/s", lambda row: row.figures.token_rate, meaning="tokens generated", key="output_throughput"),
    _median("ttft", "median time to the first token"),
    _p99("ttft"),
    _median("tpot", "median time per further token"),
    _median("itl", "median time between two pieces of an answer"),
    _median("e2el", "median time of a whole request"),
    _p99("e2el"),
    number_column("lag p99", _show_lag, meaning="how late the generator sent requests, in ms", digits=2),
)


def choose_columns(slo: Slo | None) -> tuple[Column[ServerFigures], ...]:
    """The columns that are shown: goodput only where there are bounds."""
    return tuple(column for column in COLUMNS if slo is not None or column.key != "request_goodput")


def figures_json(row: ServerFigures) -> dict[str, Any]:
    """All figures of a server under a load, and the raw samples."""
    return {**columns_json(COLUMNS, row), **row.figures.to_json()}
