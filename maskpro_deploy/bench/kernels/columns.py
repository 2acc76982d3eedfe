"""The columns of the tables of products. A new figure is one entry here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from maskpro_deploy.bench.kernels.measure import KernelCase
from maskpro_deploy.bench.results.document import UNKNOWN, Column, ComparedRow, comparison_columns, number_column, plain_column


@dataclass(frozen=True, slots=True, kw_only=True)
class ProductRow(ComparedRow):
    """One product in one form of the weight."""

    case: KernelCase
    form: str
    ms: float | None
    floor_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TotalRow(ComparedRow):
    """All products of the model in one form of the weight, at one number of tokens."""

    m: int
    form: str
    ms: float | None
    per_layer_ms: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuRow:
    """All products of the model on a GPU, by one way to multiply."""

    dtype: str
    m: int
    arm: str
    ms: Mapping[str, float]


@cache
def product_columns(first: str) -> tuple[Column[ProductRow], ...]:
    """The columns of single products, whose forms are compared with the first."""
    return (
        Column(header="product", cell=lambda row: f"{row.case.k} x {row.case.n}", meaning="K x N"),
        plain_column("count", lambda row: row.case.count, meaning="such products in the model"),
        plain_column("M", lambda row: row.case.m, meaning="tokens"),
        plain_column("form", lambda row: row.form, key="form"),
        number_column("us", lambda row: row.ms, meaning="median time of one product", key="product_ms", scale=1e3),
        number_column("GFLOP/s", lambda row: None if row.ms is None else row.case.operations / row.ms / 1e6),
        number_column("floor us", lambda row: row.floor_s, meaning="what this machine allows at best", scale=1e6),
        *comparison_columns(f"against {first}"),
    )


@cache
def total_columns(first: str) -> tuple[Column[TotalRow], ...]:
    """The columns of the whole model; see `product_columns`."""
    return (
        plain_column("M", lambda row: row.m, meaning="tokens"),
        plain_column("form", lambda row: row.form, key="form"),
        number_column("model ms", lambda row: row.ms, meaning="all products of the model", key="ms"),
        number_column("layer ms", lambda row: row.per_layer_ms, meaning="those of a layer, on average", key="per_layer_ms"),
        *comparison_columns(f"against {first}"),
    )


def _show_against_dense(row: GpuRow) -> str:
    return f"{row.ms['dense'] / row.ms[row.arm]:.3f}x" if "dense" in row.ms and row.arm != "dense" else UNKNOWN


GPU: tuple[Column[GpuRow], ...] = (
    plain_column("dtype", lambda row: row.dtype),
    plain_column("M", lambda row: row.m, meaning="tokens"),
    plain_column("arm", lambda row: row.arm, meaning="way to multiply"),
    number_column("model ms", lambda row: row.ms[row.arm], meaning="all products of the model"),
    Column(header="against dense", cell=_show_against_dense),
)
