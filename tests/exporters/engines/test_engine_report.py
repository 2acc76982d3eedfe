"""Eligible, chosen and what is not known: three different things."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from engine_files import engine_file

from maskpro_deploy.exporters import ExportConfig, export
from maskpro_deploy.exporters.engines.builder import _Phases
from maskpro_deploy.exporters.engines.preflight import BEHIND_QDQ, PADDING, WRONG_AXIS, count_spoiled, inspect_weights
from maskpro_deploy.exporters.engines.report import UNKNOWN, EngineReport, LayerRow, layer_rows, read_kernels, sentence
from maskpro_deploy.exporters.graph.data_file import Region
from maskpro_deploy.exporters.graph.weights import MatMulWeight, matmul_weights
from maskpro_deploy.manifest import Graph, Manifest, SparseWeight

FACTS = {"spoke": False, "eligible": [], "chosen": [], "inspection": ""}


def weight_file(folder, values):
    path = folder / "data"
    path.write_bytes(values.tobytes())
    region = Region(offset=0, shape=values.shape, dtype=values.dtype)
    return MatMulWeight(node="/x/proj", initializer="x.proj.weight", file=path, region=region)


def manifest(dtype, listed=None):
    weights = () if listed is None else (SparseWeight(initializer="x.proj.weight", source="x.proj.weight", shape=listed, axis=0),)
    graph = Graph(file="model.onnx", form="cat", opset=23, dtype=dtype)
    return Manifest(model=None, graph=graph, files=(), sparsity="2:4", sparse_weights=weights)


def two_of_four(k, n, dtype=np.float16):
    values = np.ones((k, n), dtype)
    values[2::4] = values[3::4] = 0
    return values


@pytest.mark.parametrize(
    ("values", "dtype", "reason"),
    [
        (two_of_four(32, 16), "fp16", ""),
        (two_of_four(32, 16), "bf16", ""),
        (two_of_four(32, 16, np.float32), "fp32", "fp32"),
        (two_of_four(24, 16), "fp16", "K 24 or N 16 is not a multiple of 16"),
        (two_of_four(32, 20), "fp16", "K 32 or N 20 is not a multiple of 16"),
        (np.ones((30, 16), np.float16), "fp16", "K 30 is not a multiple of 4"),
        (np.ones((32, 16), np.float16), "fp16", "does not hold 2:4"),
        (two_of_four(16, 32).T.copy(), "fp16", "does not hold 2:4"),  # zeros along N are of no use
        (-two_of_four(32, 16), "fp16", "does not hold 2:4"),  # zeros with a sign count as values
    ],
)
def test_eligibility_names_the_reason(tmp_path, values, dtype, reason):
    (found,) = inspect_weights(manifest(dtype), [weight_file(tmp_path, values)])
    assert reason in found.reason
    assert bool(found.reason) == bool(reason)


@pytest.mark.parametrize(
    ("listed", "values", "flags", "cause"),
    [
        ((32, 16), two_of_four(32, 16), {}, None),
        ((32, 16), two_of_four(16, 32).T.copy(), {}, WRONG_AXIS),
        ((28, 16), two_of_four(32, 16), {}, PADDING),
        ((32, 16), two_of_four(32, 16, np.int8), {"dequantised": True}, BEHIND_QDQ),
        ((32, 32), two_of_four(32, 32, np.int8), {"dequantised": True, "input_quantised": True}, None),  # runs on the integers
    ],
)
def test_pruned_layers_that_the_graph_spoils_are_counted_by_cause(tmp_path, listed, values, flags, cause):
    weight = dataclasses.replace(weight_file(tmp_path, values), **flags)
    found = inspect_weights(manifest("fp16", listed), [weight])
    assert count_spoiled(found) == {c: int(c == cause) for c in (WRONG_AXIS, PADDING, BEHIND_QDQ)}
    assert bool(found[0].reason) == (cause in (WRONG_AXIS, BEHIND_QDQ))


@pytest.mark.parametrize(("quantize", "spoiled"), [(None, 0), ("int8", 14), ("int4", 14)])
def test_an_exported_graph_spoils_no_layer_unless_it_is_quantised(tiny_sparse, tmp_path, quantize, spoiled):
    made = export(tiny_sparse, tmp_path / "b", ExportConfig(dtype="fp16", quantize=quantize), compare=False)
    found = inspect_weights(made, matmul_weights(tmp_path / "b" / "model.onnx"))
    assert count_spoiled(found) == {WRONG_AXIS: 0, PADDING: 0, BEHIND_QDQ: spoiled}
    assert sum(not f.reason for f in found if f.weight.initializer.endswith("proj.weight")) == 14 - spoiled


def facts_of(bundle):
    return inspect_weights(Manifest.load(bundle), matmul_weights(bundle / "model.onnx"))


def test_every_projection_of_the_graph_has_a_row(half_bundle):
    rows = layer_rows(facts_of(half_bundle), dense=False, facts=FACTS)
    assert len(rows) == 14
    assert {(row.kind, row.shape, row.bytes, row.tensor_cores) for row in rows} >= {("up_proj", (32, 64), 4096, "small")}
    assert all(row.eligible and row.chosen == UNKNOWN for row in rows)
    assert "ahead of time" in sentence("tensorrt-rtx", rows, dense=False)
    assert "14 of 14" in sentence("tensorrt-rtx", rows, dense=False)


def test_chosen_layers_come_from_the_log(half_bundle):
    facts = {**FACTS, "spoke": True, "chosen": ["/model/layers.1/mlp/up_proj + /model/layers.1/mlp/gated"]}
    rows = layer_rows(facts_of(half_bundle), dense=False, facts=facts)
    assert [row.weight for row in rows if row.chosen == "yes"] == ["model.layers.1.mlp.up_proj.weight"]
    assert {row.chosen for row in rows} == {"yes", "no"}
    assert "chose sparse kernels for 1 of 14" in sentence("tensorrt", rows, dense=False)


def test_chosen_layers_come_from_kernel_names_of_the_inspector(half_bundle):
    layers = [
        {"Name": "fc1", "TacticName": "sm90_xmma_sparse_gemm_f16", "Metadata": "[ONNX Layer: /model/layers.0/self_attn/q_proj]"},
        {"Name": "/model/layers.0/self_attn/k_proj", "TacticName": "sm90_xmma_gemm_f16"},
        "a layer without details",
    ]
    rows = layer_rows(facts_of(half_bundle), dense=False, facts={**FACTS, "inspection": json.dumps({"Layers": layers})})
    assert [row.node for row in rows if row.chosen == "yes"] == ["/model/layers.0/self_attn/q_proj"]
    assert [row.kernel for row in rows if row.kernel] == ["sm90_xmma_sparse_gemm_f16", "sm90_xmma_gemm_f16"]
    assert read_kernels("") is None


@pytest.mark.parametrize(
    ("spoke", "chosen", "said"), [(True, "yes", "for 1 of 1 layers (0 eligible)"), (False, "no", "none: no layer")]
)
def test_a_layer_that_is_not_eligible_by_our_rule_may_still_be_chosen_and_is_told_so(tmp_path, spoke, chosen, said):
    weights = inspect_weights(manifest("fp16"), [weight_file(tmp_path, two_of_four(24, 16))])
    (row,) = rows = layer_rows(weights, dense=False, facts={**FACTS, "spoke": spoke, "chosen": ["/x/proj"] if spoke else []})
    assert (row.eligible, row.chosen) == (False, chosen)
    assert said in sentence("tensorrt", rows, dense=False)


def test_a_dense_engine_chose_nothing(half_bundle):
    rows = layer_rows(facts_of(half_bundle), dense=True, facts=FACTS)
    assert {row.chosen for row in rows} == {"no"}
    assert sentence("tensorrt", rows, dense=True) == "none: built dense"


def test_a_report_comes_back_from_json_as_it_was():
    entry = engine_file(settings={"a": [1]})
    row = LayerRow(
        weight="a.q_proj.weight",
        node="/a",
        shape=(32, 16),
        dtype="float16",
        bytes=1024,
        tensor_cores="small",
        eligible=True,
        reason="",
        chosen="yes",
        kernel="k",
    )
    report = EngineReport(
        engine=entry, bytes=1, reused=False, build_s=1.5, peak_rss_bytes=2, warnings=("w",), layers=(row,), spoiled={"padding": 0}
    )
    assert EngineReport.from_json(json.loads(json.dumps(report.to_json()))) == report


def test_nested_phases_give_a_share_that_only_rises_and_ends_at_one():
    phases, shares = _Phases(), []
    phases.start("build", None, 2)
    for part in range(2):
        phases.start("part", "build", 4)
        for step in range(4):
            phases.step("part", step)
            shares.append(phases.share())
        phases.finish("part")
        phases.step("build", part)
        shares.append(phases.share())
    assert shares == sorted(shares)
    assert shares[1] == pytest.approx(0.25)
    assert shares[-1] == 1.0
