"""Half-precision graphs run with every value rounded, and the runtime keeps the roundings."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import pytest
from numpy_llama import NumpyLlama
from onnx import TensorProto, helper

from maskpro_deploy.errors import MachineError
from maskpro_deploy.exporters import ExportConfig, export, verify
from maskpro_deploy.exporters.checks.half_precision import opening
from maskpro_deploy.exporters.checks.half_precision.opening import open_to_compare
from maskpro_deploy.exporters.checks.half_precision.rounding import round_graph
from maskpro_deploy.exporters.checks.ort_model import open_session
from maskpro_deploy.manifest import Manifest

KINDS = {"fp16": (TensorProto.FLOAT16, np.float16), "bf16": (TensorProto.BFLOAT16, ml_dtypes.bfloat16)}
PROMPTS = [list(range(3, 40)), list(range(100, 120))]
# between two numbers of the type, a tie, the largest ones and what lies behind, subnormal, zero in fp16
VALUES = np.asarray([1 + 2.0**-12, 1 + 2.0**-9, 65519.0, 65520.0, 1e5, -7e4, 3e38, 3.4e38, 6e-8, 2e-8, 1e-40, np.nan], np.float32)


def graph_of(nodes, element, inputs=("x",), stored=(), output=("y", None)):
    ends = [helper.make_tensor_value_info(name, element, [None]) for name in inputs]
    y = helper.make_tensor_value_info(output[0], output[1] or element, [None])
    graph = helper.make_graph(nodes, "g", ends, [y], initializer=list(stored))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11)


def run(model, dtype, **feeds):
    rounded, _ = round_graph(model, dtype)
    return open_session(rounded.SerializeToString(), rounded=True).run(None, feeds)[0]


def to_half(values, dtype):
    with np.errstate(over="ignore"):
        return np.asarray(values, np.float32).astype(KINDS[dtype][1]).astype(np.float32)


@pytest.mark.parametrize("dtype", KINDS)
def test_every_value_is_what_numpy_rounds_it_to(dtype):
    """The runtime keeps the casts: without them, nothing here would overflow or lose a bit."""
    element, _ = KINDS[dtype]
    two = helper.make_tensor("two", element, [1], [2.0])
    nodes = [
        helper.make_node("Add", ["x", "x"], ["a"], name="/double"),
        helper.make_node("Mul", ["a", "two"], ["b"], name="/again"),
        helper.make_node("Div", ["b", "two"], ["y"], name="/back"),
    ]
    found = run(graph_of(nodes, element, stored=[two]), dtype, x=VALUES)
    with np.errstate(over="ignore"):
        expected = to_half(to_half(to_half(VALUES * 2, dtype) * 2, dtype) / 2, dtype)
    np.testing.assert_array_equal(found, expected)
    assert np.isinf(found[4] if dtype == "fp16" else found[6])


@pytest.mark.parametrize("dtype", KINDS)
def test_products_are_summed_up_in_fp32_and_rounded_once(dtype):
    element, kind = KINDS[dtype]
    rng = np.random.default_rng(0)
    x, w = (rng.standard_normal(shape).astype(kind) for shape in ((3, 500), (500, 4)))
    stored = helper.make_tensor("w", element, w.shape, w.tobytes(), raw=True)
    model = graph_of([helper.make_node("MatMul", ["x", "w"], ["y"], name="/product")], element, stored=[stored])
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim.add()
    found = run(model, dtype, x=x.astype(np.float32))
    exact = x.astype(np.float64) @ w.astype(np.float64)
    np.testing.assert_array_equal(found, to_half(found, dtype))
    np.testing.assert_allclose(found, exact, rtol=float(ml_dtypes.finfo(kind).eps), atol=1e-4)


def test_what_the_graph_computes_in_fp32_is_not_rounded():
    nodes = [
        helper.make_node("Cast", ["x"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["f", "three"], ["y"]),
    ]
    three = helper.make_tensor("three", TensorProto.FLOAT, [1], [3.0])
    model = graph_of(nodes, TensorProto.FLOAT16, stored=[three], output=("y", TensorProto.FLOAT))
    np.testing.assert_array_equal(run(model, "fp16", x=np.ones(1, np.float32)), np.float32([1 / 3]))


def test_casts_constants_and_values_that_only_move():
    nodes = [
        helper.make_node("Constant", [], ["c"], value=helper.make_tensor("", TensorProto.FLOAT16, [1], [0.1])),
        helper.make_node("Cast", ["x"], ["h"], to=TensorProto.FLOAT16),
        helper.make_node("Concat", ["h", "c"], ["y"], axis=0),
    ]
    model = graph_of(nodes, TensorProto.FLOAT)
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT16
    rounded, places = round_graph(model, "fp16")
    assert [place.rounded for place in places] == ["c", "h"]
    found = open_session(rounded.SerializeToString(), rounded=True).run(None, {"x": np.float32([1 / 3, 1e5])})[0]
    np.testing.assert_array_equal(found, np.float32([np.float16(1 / 3), np.inf, np.float16(0.1)]))
    assert model.graph.node[1].attribute[0].i == TensorProto.FLOAT16  # the model itself is as it was


def test_inner_graphs_are_rounded_too():
    def branch(name, factor):
        node = helper.make_node("Mul", ["x", "x"] if factor == "x" else ["x", factor], [name])
        return helper.make_graph([node], name, [], [helper.make_tensor_value_info(name, TensorProto.FLOAT16, [None])])

    nodes = [helper.make_node("If", ["which"], ["y"], then_branch=branch("a", "x"), else_branch=branch("b", "two"))]
    stored = [helper.make_tensor("two", TensorProto.FLOAT16, [1], [2.0])]
    model = graph_of(nodes, TensorProto.FLOAT16, stored=stored)
    model.graph.input.append(helper.make_tensor_value_info("which", TensorProto.BOOL, []))
    x = np.float32([300.0, 3e4 + 16])
    for which, expected in ((True, to_half(x * x, "fp16")), (False, to_half(x * 2, "fp16"))):
        np.testing.assert_array_equal(run(model, "fp16", x=x, which=np.asarray(which)), expected)


def test_functions_are_written_out_first():
    body = [helper.make_node("Mul", ["a", "a"], ["b"])]
    function = helper.make_function("own", "Square", ["a"], ["b"], body, [helper.make_opsetid("", 23)])
    model = graph_of([helper.make_node("Square", ["x"], ["y"], domain="own")], TensorProto.FLOAT16)
    model.functions.append(function)
    model.opset_import.append(helper.make_opsetid("own", 1))
    assert np.isinf(run(model, "fp16", x=np.float32([300.0])))


def test_an_operator_of_unknown_type_is_refused():
    model = graph_of([helper.make_node("Riddle", ["x"], ["y"], domain="other")], TensorProto.FLOAT16)
    model.graph.output[0].name = "z"
    model.graph.node.append(helper.make_node("Identity", ["y"], ["z"], name="/last"))
    model.opset_import.append(helper.make_opsetid("other", 1))
    with pytest.raises(MachineError, match=r"type of 'y', which Riddle '' puts out, is not known"):
        round_graph(model, "fp16")


# -- bundles --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", KINDS)
def test_a_bundle_of_every_form_computes_in_its_own_arithmetic(tiny_sparse, tmp_path, dtype):
    manifest = export(tiny_sparse, tmp_path / "out", ExportConfig(dtype=dtype, forms=("cat", "static", "gqa")))
    logits = []
    for graph in (manifest.graph, *manifest.siblings):
        opened = open_to_compare(tmp_path / "out", manifest, graph)
        assert (opened.arithmetic, opened.unrounded) == (f"{dtype}, rounded after every node, accumulated in fp32", "")
        logits.append(opened.model.logits(np.asarray([PROMPTS[0]])))
    for found in logits:
        np.testing.assert_array_equal(found, to_half(found, dtype))  # rounded before they are cast to fp32
        np.testing.assert_allclose(found, logits[0], atol=0.1 if dtype == "fp16" else 1.0)
    assert {f["arithmetic"] for f in manifest.verification["forms"].values()} == {opened.arithmetic}


def test_logits_are_those_of_numpy_in_fp16(half_bundle, tiny_sparse):
    """An independent model that rounds in the same places comes to the same logits, up to single roundings."""
    reference = NumpyLlama(tiny_sparse).logits(np.asarray([PROMPTS[0]]))
    opened = open_to_compare(half_bundle, Manifest.load(half_bundle))
    difference = np.abs(opened.model.logits(np.asarray([PROMPTS[0]])) - reference)
    assert 1e-3 < difference.max() < 0.1


def test_a_runtime_that_drops_the_roundings_is_found_and_fp16_is_then_not_verified(
    half_bundle, tiny_sparse, tmp_path, monkeypatch
):
    def forgetful(model, folder=None, *, rounded=False):
        parsed = onnx.load_model_from_string(model) if rounded else None
        for node in parsed.graph.node if parsed else ():
            if node.name.endswith("/down"):
                node.attribute[0].i = TensorProto.FLOAT
        return open_session(parsed.SerializeToString() if parsed else model, folder, rounded=rounded)

    monkeypatch.setattr(opening, "open_session", forgetful)
    opening._check_roundings.cache_clear()
    try:
        result = verify(half_bundle, NumpyLlama(tiny_sparse), PROMPTS, greedy_tokens=4)
        assert result.arithmetic == "fp32"
        assert result.to_json()["half_precision"].startswith("fp16 not verified: this version of onnxruntime leaves out")
        assert "range" not in result.to_json()
        export(tiny_sparse, tmp_path / "bf16", ExportConfig(dtype="bf16"))
        with pytest.raises(MachineError, match="leaves out the roundings to bf16"):
            verify(tmp_path / "bf16", NumpyLlama(tiny_sparse), PROMPTS, greedy_tokens=4)
        made = export(tiny_sparse, tmp_path / "out", ExportConfig(dtype="bf16"), reference=lambda: NumpyLlama(tiny_sparse))
        assert made.verification["status"] == "not verified"
        assert made.verification["half_precision"].startswith("bf16 not verified: this version of onnxruntime")
    finally:
        opening._check_roundings.cache_clear()


def test_probe_outputs_cost_nothing_where_they_are_not_asked_for(half_bundle):
    opened = open_to_compare(half_bundle, Manifest.load(half_bundle))
    executor = opened.model._onnx
    assert len(executor._session.get_outputs()) > 100
    opened.model.logits(np.array([[3, 4, 5]]))
    asked_for = {name for name in executor._bound if not executor.tensors[name].is_input}
    assert asked_for == {"logits", *(f"present.{i}.{kind}" for i in range(2) for kind in ("key", "value"))}
    assert executor._needed_only.only_execute_path_to_fetches
