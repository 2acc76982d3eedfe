"""Eligible, chosen and what is not known: three different things."""

from __future__ import annotations

import json

import numpy as np
import pytest

from maskpro_deploy.exporters.blob import Region
from maskpro_deploy.exporters.engine_report import UNKNOWN, eligibility, layer_rows, sentence, sparse_layers
from maskpro_deploy.exporters.graph_weights import MatMulWeight, matmul_weights
from maskpro_deploy.exporters.trt_library import _Phases

FACTS = {"spoke": False, "eligible": [], "chosen": [], "inspection": ""}


def weight_file(folder, values):
    path = folder / "data"
    path.write_bytes(values.tobytes())
    region = Region(offset=0, shape=values.shape, dtype=values.dtype)
    return MatMulWeight(node="/x/proj", initializer="x.proj.weight", file=path, region=region)


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
        (two_of_four(24, 16), "fp16", "K 24 or N 16 is no multiple of 16"),
        (two_of_four(32, 20), "fp16", "K 32 or N 20 is no multiple of 16"),
        (np.ones((30, 16), np.float16), "fp16", "K 30 is no multiple of 4"),
        (np.ones((32, 16), np.float16), "fp16", "does not hold 2:4"),
        (two_of_four(16, 32).T.copy(), "fp16", "does not hold 2:4"),  # zeros along N are of no use
        (-two_of_four(32, 16), "fp16", "does not hold 2:4"),  # zeros with a sign count as values
    ],
)
def test_eligibility_names_the_reason(tmp_path, values, dtype, reason):
    assert reason in eligibility(weight_file(tmp_path, values), dtype)
    assert bool(eligibility(weight_file(tmp_path, values), dtype)) == bool(reason)


def test_every_projection_of_the_graph_has_a_row(half_bundle):
    weights = matmul_weights(half_bundle / "model.onnx")
    rows = layer_rows(weights, "fp16", dense=False, facts=FACTS)
    assert len(rows) == 14
    assert all(row.eligible and row.chosen == UNKNOWN for row in rows)
    assert "ahead of time" in sentence("tensorrt-rtx", rows, dense=False)
    assert "14 of 14" in sentence("tensorrt-rtx", rows, dense=False)


def test_chosen_layers_come_from_the_log(half_bundle):
    weights = matmul_weights(half_bundle / "model.onnx")
    facts = {**FACTS, "spoke": True, "chosen": ["/model/layers.1/mlp/up_proj + /model/layers.1/mlp/gated"]}
    rows = layer_rows(weights, "fp16", dense=False, facts=facts)
    assert [row.weight for row in rows if row.chosen == "yes"] == ["model.layers.1.mlp.up_proj.weight"]
    assert {row.chosen for row in rows} == {"yes", "no"}
    assert "chose sparse kernels for 1 of 14" in sentence("tensorrt", rows, dense=False)


def test_chosen_layers_come_from_kernel_names_of_the_inspector(half_bundle):
    weights = matmul_weights(half_bundle / "model.onnx")
    layers = [
        {"Name": "fc1", "TacticName": "sm90_xmma_sparse_gemm_f16", "Metadata": "[ONNX Layer: /model/layers.0/self_attn/q_proj]"},
        {"Name": "/model/layers.0/self_attn/k_proj", "TacticName": "sm90_xmma_gemm_f16"},
        "a layer without details",
    ]
    rows = layer_rows(weights, "fp16", dense=False, facts={**FACTS, "inspection": json.dumps({"Layers": layers})})
    assert [row.node for row in rows if row.chosen == "yes"] == ["/model/layers.0/self_attn/q_proj"]
    assert sparse_layers("") is None


def test_a_dense_engine_chose_nothing(half_bundle):
    rows = layer_rows(matmul_weights(half_bundle / "model.onnx"), "fp16", dense=True, facts=FACTS)
    assert {row.chosen for row in rows} == {"no"}
    assert sentence("tensorrt", rows, dense=True) == "none: built dense"


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
