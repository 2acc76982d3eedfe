"""Columns are defined once: whatever shows a table shows them, with their meaning, and result.json has them by their key."""

from __future__ import annotations

import dataclasses
import re

import pytest

from maskpro_deploy.bench.kernels import columns as kernels
from maskpro_deploy.bench.load import columns as load
from maskpro_deploy.bench.results.document import Column, number_column, to_markdown, to_text
from maskpro_deploy.bench.sweeps import columns as sweeps
from maskpro_deploy.bench.sweeps import compare
from maskpro_deploy.bench.sweeps.columns import ArmFigures
from maskpro_deploy.bench.sweeps.result import BenchResult
from maskpro_deploy.bench.sweeps.summary import describe
from maskpro_deploy.reports.benchmarks import build_sweep_page
from maskpro_deploy.reports.blocks import render

ALL: dict[str, tuple[Column, ...]] = {
    "latency": sweeps.LATENCY,
    "throughput": sweeps.THROUGHPUT,
    "compare": compare.COLUMNS,
    "serve": load.COLUMNS,
    "products": kernels.product_columns("fp32"),
    "totals": kernels.total_columns("fp32"),
    "gpu": kernels.GPU,
}


@pytest.mark.parametrize("table", ALL)
def test_headers_and_keys_are_unique_and_a_meaning_is_one_phrase(table: str) -> None:
    headers, keys = [c.header for c in ALL[table]], [c.key for c in ALL[table] if c.key]
    assert len(set(headers)) == len(headers)
    assert len(set(keys)) == len(keys)
    assert all(re.fullmatch(r"[a-z0-9_]+", key) for key in keys)
    assert not any(column.meaning.endswith(".") or ";" in column.meaning for column in ALL[table])


def test_a_new_column_is_everywhere_by_one_entry(latency_result: BenchResult, monkeypatch: pytest.MonkeyPatch) -> None:
    new: Column[ArmFigures] = number_column(
        "slowest ms", lambda row: max(row.result.values_ms(row.arm.name)[row.result.metric]), meaning="of all", key="slowest_ms"
    )
    monkeypatch.setattr(sweeps, "LATENCY", (*sweeps.LATENCY, new))
    document = describe(latency_result)
    for shown in (to_markdown(document), render(build_sweep_page(latency_result))):
        assert "slowest ms" in shown
        assert "slowest ms: of all" in shown
    assert "slowest ms" in to_text(document).splitlines()[0]
    arm = latency_result.to_json()["cases"][0]["arms"][0]
    assert arm["slowest_ms"] == max(arm["samples"]["ttft_ms"])


def test_a_document_leaves_out_tables_without_rows_and_names_why_a_run_is_invalid(latency_result: BenchResult) -> None:
    document = describe(latency_result)
    empty = dataclasses.replace(document.tables[0], title="Nothing", rows=[])
    changed = dataclasses.replace(document, tables=[*document.tables, empty], invalid_reasons=["the clock jumped."])
    assert "Nothing" not in to_markdown(changed)
    assert "## Why this run is invalid\n\n- the clock jumped." in to_markdown(changed)
    assert "INVALID: the clock jumped." in to_text(changed)
