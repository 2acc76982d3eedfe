"""The largest value of every layer, what vanishes, and what the cast of the weights loses."""

from __future__ import annotations

import json

import ml_dtypes
import numpy as np
import onnx
import pytest
from numpy_llama import NumpyLlama
from onnx import TensorProto, helper

from maskpro_deploy.errors import CheckFailed
from maskpro_deploy.exporters import ExportConfig, export
from maskpro_deploy.exporters.checks.half_precision.opening import open_to_compare
from maskpro_deploy.exporters.checks.half_precision.ranges import LayerRange, Probes, Ranges, assign_layers, find_masked_values
from maskpro_deploy.exporters.checks.half_precision.rounding import round_graph
from maskpro_deploy.exporters.checks.ort_model import open_session
from maskpro_deploy.exporters.graph.weight_tiles import Underflow
from maskpro_deploy.manifest import Manifest

PROMPTS = [list(range(3, 40)), list(range(100, 120))]
DOWN = "model.layers.{}.mlp.down_proj.weight"


def ranges(largest, dtype="fp16", limit=65504.0):
    return Ranges(dtype=dtype, limit=limit, layers=(LayerRange(layer="layer 0", node="/n", largest=largest),), fault="")


class Plain:
    """A session whose only input is `x`; a prompt's tokens are multiplied by a factor."""

    def __init__(self, model, factor):
        self._session, self._factor = open_session(model.SerializeToString(), rounded=True), factor

    def values(self, tokens, names):
        return self._session.run(names, {"x": tokens[0].astype(np.float32) * np.float32(self._factor)})


def measure(nodes, factor, stored=(), dtype="fp16", prompts=((1, 2, 3), (1, 0, -5))):
    element = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}[dtype]
    ends = [helper.make_tensor_value_info(name, element, [None]) for name in "xy"]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], initializer=list(stored))
    model, places = round_graph(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11), dtype)
    probes = Probes(model, places, dtype)
    return probes.measure(Plain(model, factor), prompts)


SQUARE = helper.make_node("Mul", ["x", "x"], ["y"], name="/model/layers.3/square")


def test_the_largest_magnitude_over_all_prompts():
    found = measure([SQUARE], 10.0)
    assert found.layers == (LayerRange(layer="layer 3", node="/model/layers.3/square", largest=2500.0),)
    assert found.margin == pytest.approx(65504 / 2500)
    assert (found.fault, found.warning()) == ("", "")


@pytest.mark.parametrize(
    ("factor", "words"),
    [
        (51.2, "layer 3, /model/layers.3/square reaches 65536, and the largest fp16 number is 65504"),
        (1e-5, r"layer 3, /model/layers.3/square reaches 2.5e-09, and all of its values vanish to zero in fp16"),
        (float("nan"), r"layer 3, /model/layers.3/square is not a number"),
        (1e20, r"layer 3, /model/layers.3/square is infinite in fp16"),
    ],
)
def test_what_fp16_cannot_hold_is_named(factor, words):
    assert measure([SQUARE], factor).fault.startswith(words)


def test_bf16_holds_them():
    for factor in (51.2, 1e-5):
        assert measure([SQUARE], factor, dtype="bf16").fault == ""


def test_zeros_that_were_zeros_before_have_not_vanished():
    assert measure([SQUARE], 0.0).fault == ""


def test_what_hides_tokens_may_be_as_low_as_it_likes():
    low = helper.make_tensor("low", TensorProto.FLOAT16, [1], [-65504.0])
    nodes = [helper.make_node("Add", ["x", "low"], ["a"]), helper.make_node("Add", ["a", "low"], ["y"])]
    assert measure(nodes, 1.0, [low]).fault == ""
    assert measure([*nodes[:1], helper.make_node("Mul", ["a", "low"], ["y"])], 1.0, [low]).fault != ""


def test_values_belong_to_the_layers_of_names_and_weights(half_bundle):
    graph = round_graph(onnx.load(half_bundle / "model.onnx", load_external_data=False), "fp16")[0].graph
    layers = assign_layers(graph)
    assert layers["/model/layers.1/mlp/gated/out/exact"] == layers["present.1.key"] == "layer 1"
    assert layers["/model/norm/out/exact"] == layers["logits"] == "head"
    assert layers["/model/embed_tokens/out"] == "embedding"
    assert find_masked_values(graph, -65504.0) == set()  # its mask is boolean


def test_figures_of_a_bundle(half_bundle):
    opened = open_to_compare(half_bundle, Manifest.load(half_bundle))
    found = opened.probes.measure(opened.model, PROMPTS)
    assert [layer.layer for layer in found.layers] == ["layer 0", "layer 1", "head"]
    (head,) = [layer.largest for layer in found.layers if layer.node == "/lm_head"]
    logits = [opened.model.logits(np.asarray([prompt])) for prompt in PROMPTS]
    assert np.float16(head) == max(np.abs(x).max() for x in logits)


def test_a_margin_below_two_is_a_warning():
    assert ranges(30000.0).warning() == ""
    words = "layer 0, /n reaches 4e+04, only 1.64 times below the largest fp16 number: other prompts may overflow."
    assert ranges(40000.0).warning().startswith(words)
    assert "--dtype bf16" in ranges(40000.0).warning()
    json.dumps(ranges(float("inf")).to_json(), allow_nan=False)


def test_the_range_of_a_form_is_checked_too(variant, tiny_sparse, tmp_path):
    def change(config, weights):
        weights[DOWN.format(1)] *= 2.0**15

    with pytest.raises(CheckFailed, match=r"a form of the exported graph does not work in fp16; nothing was kept.\nlayer 1"):
        export(variant(change, tiny_sparse), tmp_path / "out", ExportConfig(dtype="fp16", forms=("cat", "static")))
    assert not (tmp_path / "out").exists()


# -- weights --------------------------------------------------------------------------------------------------------------


def test_weights_that_become_zero_or_subnormal_are_counted():
    lost = Underflow("fp16")
    before = np.asarray([[1.0, 0.0, 1e-5, 1e-9], [-2.0, -1e-6, -1e-9, 0.0]], np.float32)
    lost.count("w", before, before.astype(np.float16))
    lost.count("v", np.ones(4, np.float32), np.ones(4, np.float16))
    assert lost.to_json() == {"values": 10, "zero": 2, "subnormal": 2, "worst": "w", "worst_zero": 2}
    assert lost.warning() == "2 of 6 nonzero values of w become 0 in fp16"


def test_nothing_is_lost_where_nothing_is_cast():
    lost = Underflow("fp16")
    lost.count("w", np.full(3, 1e-7, np.float16), np.full(3, 1e-7, np.float16))
    lost.count("w", np.full(3, 1e-9, np.float32), np.full(3, 1e-9, np.float32))
    assert (lost.to_json()["values"], lost.warning()) == (0, "")


def test_bf16_loses_what_lies_below_its_own_range():
    lost = Underflow("bf16")
    before = np.asarray([1e-9, 1e-39, 1e-42], np.float32)
    lost.count("w", before, before.astype(ml_dtypes.bfloat16))
    assert (lost.weights["w"].zero, lost.weights["w"].subnormal) == (1, 1)


def test_weights_that_vanish_without_harm_are_a_warning(variant, tiny_sparse, tmp_path):
    def change(config, weights):
        for name in ("gate", "up"):  # a layer whose MLP does next to nothing
            weights[f"model.layers.0.mlp.{name}_proj.weight"] *= 2.0**-7
        weights[DOWN.format(0)] = np.where(np.abs(weights[DOWN.format(0)]) > 0.3, weights[DOWN.format(0)], 1e-9)

    dense = variant(change, tiny_sparse)
    (dense / "masks.safetensors").unlink()
    manifest = export(dense, tmp_path / "out", ExportConfig(dtype="fp16"), reference=lambda: NumpyLlama(dense))
    figures = manifest.verification
    assert figures["status"] == "passed"
    assert figures["underflow"]["worst"] == "model.layers.0.mlp.down_proj.weight"
    assert figures["underflow"]["zero"] >= figures["underflow"]["worst_zero"] > 100
    (warning,) = figures["warnings"]
    assert "nonzero values of model.layers.0.mlp.down_proj.weight become 0 in fp16" in warning
