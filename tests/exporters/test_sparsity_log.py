"""Both wordings of TensorRT's `(Sparsity)` lines. The logs here are written for this test in the builders' form."""

from __future__ import annotations

import pytest

from maskpro_deploy.exporters.sparsity_log import mentions, parse_log

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
