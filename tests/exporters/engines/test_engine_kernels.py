"""Both wordings of TensorRT's `(Sparsity)` lines. The logs here are written for this test in the builders' form."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from maskpro_deploy.exporters.engines.kernels import mentions, parse_log
from maskpro_deploy.exporters.engines.preflight import inspect_weights
from maskpro_deploy.exporters.engines.report import UNKNOWN, layer_rows
from maskpro_deploy.exporters.graph.weights import matmul_weights
from maskpro_deploy.manifest import Manifest

LOGS = Path(__file__).parent / "build_logs"

OLDER = [
    "[MemUsageChange] Init builder kernel library: CPU +1, GPU +2, now: CPU 3, GPU 4 (MiB)",
    "(Sparsity) Layers eligible for sparse math: /model/layers.0/mlp/up_proj, /model/layers.0/mlp/down_proj",
    "(Sparsity) TRT inference plan picked sparse implementation for layers: /model/layers.0/mlp/down_proj",
]
NEWER = [
    "(Sparsity) Found 2 layer(s) eligible to use sparse tactics: /model/layers.0/mlp/up_proj, /model/layers.0/mlp/down_proj",
    "(Sparsity) Chose 1 layer(s) using sparse tactics: /model/layers.0/mlp/down_proj",
]


@pytest.mark.parametrize("log", [OLDER, NEWER], ids=["older", "newer"])
def test_both_wordings_give_the_same_lists(log):
    found = parse_log(log)
    assert found.spoke
    assert found.eligible == ("/model/layers.0/mlp/up_proj", "/model/layers.0/mlp/down_proj")
    assert found.chosen == ("/model/layers.0/mlp/down_proj",)


def test_several_profiles_add_up_without_repeats():
    found = parse_log([*NEWER, NEWER[0], "(Sparsity) Chose 1 layer(s) using sparse tactics: /model/layers.0/mlp/up_proj"])
    assert found.eligible == ("/model/layers.0/mlp/up_proj", "/model/layers.0/mlp/down_proj")
    assert found.chosen == ("/model/layers.0/mlp/down_proj", "/model/layers.0/mlp/up_proj")


@pytest.mark.parametrize(
    "line",
    [
        "(Sparsity) Found 0 layer(s) eligible to use sparse tactics:",
        "(Sparsity) Chose 0 layer(s) using sparse tactics",
        "(Sparsity) Layers eligible for sparse math: ",
    ],
)
def test_an_empty_list_is_a_word_about_sparsity(line):
    found = parse_log([line])
    assert found.spoke
    assert found.eligible == found.chosen == ()


def test_a_log_without_a_word_is_told_apart_from_an_empty_list():
    assert not parse_log(["Total Weights Memory: 3538944 bytes", "sparse is mentioned here: a, b"]).spoke


def test_lists_may_run_over_several_lines():
    found = parse_log(["(Sparsity) Found 3 layer(s) eligible to use sparse tactics:\n  /a/q_proj,\n  /a/k_proj + /a/bias,\n/b"])
    assert found.eligible == ("/a/q_proj", "/a/k_proj + /a/bias", "/b")


@pytest.mark.parametrize(
    ("layer", "node", "expected"),
    [
        ("/model/layers.1/mlp/up_proj", "/model/layers.1/mlp/up_proj", True),
        ("/model/layers.11/mlp/up_proj", "/model/layers.1/mlp/up_proj", False),
        ("/model/layers.1/mlp/up_proj/bias", "/model/layers.1/mlp/up_proj", False),
        ("/model/layers.1/mlp/up_proj + /model/layers.1/mlp/gated", "/model/layers.1/mlp/up_proj", True),
        ("/model/layers.1/mlp/up_proj+/model/layers.1/mlp/gate_proj", "/model/layers.1/mlp/gate_proj", True),
        ("prefix/model/layers.1/mlp/up_proj", "/model/layers.1/mlp/up_proj", False),
        ("__myl_Fc_[ONNX Layer: /model/layers.1/mlp/up_proj]", "/model/layers.1/mlp/up_proj", True),
    ],
)
def test_a_fused_layer_mentions_its_nodes_and_no_others(layer, node, expected):
    assert mentions(layer, node) is expected


# -- logs of whole builds -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(LOGS.glob("*.json")), ids=lambda p: p.stem)
def test_the_lists_of_a_whole_log_reach_the_layers_they_name(path, half_bundle):
    """Written for this test in the builders' form; `nodes` are the graph's nodes that run sparse kernels."""
    log = json.loads(path.read_text(encoding="utf-8"))
    found = parse_log(log["messages"])
    assert found.spoke == (log["eligible"] is not None)
    assert list(found.eligible) == (log["eligible"] or [])
    assert list(found.chosen) == (log["chosen"] or [])
    weights = inspect_weights(Manifest.load(half_bundle), matmul_weights(half_bundle / "model.onnx"))
    facts = {"spoke": found.spoke, "chosen": found.chosen, "inspection": ""}
    rows = layer_rows(weights, dense=False, facts=facts)
    assert {row.node for row in rows if row.chosen == "yes"} == set(log["nodes"])
    assert all((row.chosen == UNKNOWN) != found.spoke for row in rows)


def test_the_logs_cover_both_wordings_and_silence():
    names = {path.stem.split("_")[0] for path in LOGS.glob("*.json")}
    assert names == {"older", "newer", "no"}
