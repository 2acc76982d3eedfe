"""The columns of a sweep's table: one row for each arm in each case. A new figure is one entry here."""

from __future__ import annotations

from collections.abc import Callable

from maskpro_deploy.bench.results.columns import Column, number_column
from maskpro_deploy.bench.results.document import UNKNOWN
from maskpro_deploy.bench.statistics import stats
from maskpro_deploy.bench.sweeps.figures import ArmFigures


def _of_summary(figure: Callable[[stats.Summary], float | None]) -> Callable[[ArmFigures], float | None]:
    """A figure of the metric that arms are compared by."""
    return lambda row: figure(summary) if (summary := row.summary()) is not None else None


def _show_share(row: ArmFigures) -> str:
    return UNKNOWN if row.share_of_ceiling is None else f"{100 * row.share_of_ceiling:.0f} %"


_CASE: Column[ArmFigures] = Column(header="case", cell=lambda row: row.result.case.label)
_MODEL: Column[ArmFigures] = Column(header="model", cell=lambda row: row.arm.name)
_MAD = number_column("MAD ms", _of_summary(lambda s: s.mad), meaning="median absolute deviation from the median", digits=2)
_ENDS: tuple[Column[ArmFigures], ...] = (
    number_column(
        "tokens/s", lambda row: row.tokens_per_s, meaning="at the median time, of all rows of the batch", key="tokens_per_s"
    ),
    number_column(
        "floor ms",
        lambda row: row.floor_ms,
        meaning="what the memory and the arithmetic of this machine allow at best",
        key="floor_ms",
    ),
    Column(
        header="of ceiling",
        cell=_show_share,
        meaning="the floor over the median",
        key="share_of_ceiling",
        value=lambda row: row.share_of_ceiling,
    ),
    Column(header="samples", cell=lambda row: str(row.count), key="completed", value=lambda row: row.count),
)
LATENCY: tuple[Column[ArmFigures], ...] = (
    _CASE,
    _MODEL,
    number_column("median ms", _of_summary(lambda s: s.median), meaning="of a prefill, or of one decode step"),
    _MAD,
    number_column("p90 ms", _of_summary(lambda s: s.p90), meaning="nine samples in ten took at most this long"),
    *_ENDS,
)
THROUGHPUT: tuple[Column[ArmFigures], ...] = (
    _CASE,
    _MODEL,
    number_column("whole ms", _of_summary(lambda s: s.median), meaning="median time of the whole batch"),
    _MAD,
    number_column("first token ms", lambda row: row.median_ms("ttft"), meaning="median time to the first token"),
    number_column("per token ms", lambda row: row.median_ms("tpot"), meaning="median time of each further token"),
    *_ENDS,
)


def choose_columns(kind: str) -> tuple[Column[ArmFigures], ...]:
    """The columns of a kind of sweep."""
    return THROUGHPUT if kind == "throughput" else LATENCY
