"""The item that times products: its shapes, its cells, and what makes it fail."""

from __future__ import annotations

import pytest
from gpu_torch import GpuTorch, WallClock, Wrong, make_int8_ways

from maskpro_deploy.bench.products.ways import linear
from maskpro_deploy.gpu_check import products as _gpu_products
from maskpro_deploy.gpu_check.items import FAILED, MEASURED, Record, Settings
from maskpro_deploy.gpu_check.models import ONE_B, SEVEN_B, SMOL
from maskpro_deploy.gpu_check.processes import gpu_is_here, run_here
from maskpro_deploy.system.extras import missing

with_torch = pytest.mark.skipif(bool(missing("learn")), reason="torch is not installed")


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


def test_shapes_are_those_of_the_three_models_each_once():
    shapes = _gpu_products.linear_shapes((SMOL, ONE_B, SEVEN_B))
    assert shapes[576, 576] == ["135m"]
    assert shapes[11008, 4096] == ["7b"]
    assert shapes[8192, 2048] == ["1b"]
    assert len(shapes) == 11


@with_torch
def test_the_item_keeps_its_cells_and_fails_on_a_wrong_product(torch, monkeypatch, tmp_path):
    library = GpuTorch(torch, {(torch.int32, True)})
    ways = {"float16": {"dense": linear(torch), "same": linear(torch)}, "int8": make_int8_ways(library)}
    monkeypatch.setattr(_gpu_products, "import_torch", lambda device: library)
    monkeypatch.setattr(_gpu_products, "find_working_ways", lambda torch, device: (ways, {"cutlass": "too new a GPU"}))
    monkeypatch.setattr(_gpu_products, "EventClock", lambda torch: WallClock())
    monkeypatch.setattr(_gpu_products, "linear_shapes", lambda models: {(32, 64): ["135m"]})
    monkeypatch.setattr(_gpu_products, "TOKENS", (1, 16))
    record = Record(None, 60.0)
    outcome = run_here("products", Settings(budget_s=60.0, scratch=tmp_path), record)
    assert outcome.status == MEASURED, outcome.trace
    assert outcome.detail.startswith("faster than dense: float16 ")
    assert "int8 " in outcome.detail
    assert "of 2" in outcome.detail
    assert [(c["dtype"], c["m"]) for c in record.figures["cells"]] == [
        (dtype, m) for m in (1, 16) for dtype in ("float16", "int8")
    ]
    assert record.figures["refused"] == {"cutlass": "too new a GPU"}
    ways["float16"]["wrong"] = linear(torch, Wrong.from_dense)
    outcome = run_here("products", Settings(budget_s=60.0, scratch=tmp_path), record)
    assert outcome.status == FAILED
    assert "2 of 4 products are wrong" in outcome.detail
    outcome = run_here("products", Settings(budget_s=1e-9, scratch=tmp_path), Record(None, 1e-9))
    assert "1 of 1 products are wrong" in outcome.detail


@pytest.mark.gpu
@pytest.mark.skipif(not gpu_is_here(), reason="no GPU")
def test_products_are_measured_on_a_gpu(tmp_path):
    record = Record(None, 3.0)
    outcome = run_here("products", Settings(budget_s=3.0, scratch=tmp_path), record)
    assert outcome.status == MEASURED, outcome.trace
    assert all(cell["median_ms"]["dense"] > 0 for cell in record.figures["cells"])
    assert {"float16", "bfloat16", "int8"} <= {cell["dtype"] for cell in record.figures["cells"]}
