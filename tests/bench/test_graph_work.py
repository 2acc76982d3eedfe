from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from maskpro_deploy.bench.graph_work import GraphWork, graph_work
from maskpro_deploy.errors import FormatError
from maskpro_deploy.exporters import ExportConfig, export


def save_graph(path: Path, initializers: list[onnx.TensorProto], nodes: list[onnx.NodeProto]) -> Path:
    """A model of these nodes; only its structure counts."""
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("ids", TensorProto.INT64, [None])], [out], initializers)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)]), path)
    return path


def test_weights_that_are_only_looked_up_do_not_count_as_read(tmp_path: Path) -> None:
    table = numpy_helper.from_array(np.zeros((100, 8), np.float32), "table")
    weight = numpy_helper.from_array(np.zeros((8, 16), np.float32), "weight")
    nodes = [helper.make_node("Gather", ["table", "ids"], ["x"]), helper.make_node("MatMul", ["x", "weight"], ["out"])]
    assert graph_work(save_graph(tmp_path / "m.onnx", [table, weight], nodes)) == GraphWork(
        weight_bytes=8 * 16 * 4, products={(8, 16): 1}, last=(8, 16)
    )


def test_a_tied_table_counts_once(tmp_path: Path) -> None:
    table = numpy_helper.from_array(np.zeros((100, 8), np.float16), "table")
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["x"]),
        helper.make_node("Gemm", ["x", "table"], ["out"], transB=1),
    ]
    found = graph_work(save_graph(tmp_path / "m.onnx", [table], nodes))
    assert (found.weight_bytes, found.products) == (100 * 8 * 2, {(8, 100): 1})


def test_tables_of_positions_are_looked_up(tmp_path: Path) -> None:
    tables = [numpy_helper.from_array(np.zeros((1000, 4), np.float32), name) for name in ("cos", "sin")]
    inputs = ("q", "k", "v", "past_k", "past_v", "last", "total", "cos", "sin")
    nodes = [
        helper.make_node("RotaryEmbedding", ["x", "cos", "sin", "positions"], ["turned"]),
        helper.make_node("GroupQueryAttention", inputs, ["out"], domain="com.microsoft"),
    ]
    assert graph_work(save_graph(tmp_path / "m.onnx", tables, nodes)).weight_bytes == 0
    whole = [helper.make_node("RotaryEmbedding", ["x", "cos", "sin"], ["out"])]
    assert graph_work(save_graph(tmp_path / "m.onnx", tables, whole)).weight_bytes == 2 * 1000 * 4 * 4


def test_four_bit_weights_count_half_a_byte(tmp_path: Path) -> None:
    weight = helper.make_tensor("weight", TensorProto.INT4, [5, 3], [1] * 15)
    scale = numpy_helper.from_array(np.float32(1), "scale")
    nodes = [helper.make_node("DequantizeLinear", ["weight", "scale"], ["w"]), helper.make_node("MatMul", ["x", "w"], ["out"])]
    found = graph_work(save_graph(tmp_path / "m.onnx", [weight, scale], nodes))
    assert (found.weight_bytes, found.products) == (8 + 4, {(5, 3): 1})


def test_a_bundle_reads_about_its_data_file(dense_bundle: Path) -> None:
    data = (dense_bundle / "model.onnx.data").stat().st_size
    assert 0.8 * data < graph_work(dense_bundle / "model.onnx").weight_bytes <= data + 4096


def test_a_file_that_is_no_graph_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"\xff\xff no protobuf")
    with pytest.raises(FormatError, match=r"m\.onnx is not an ONNX file"):
        graph_work(tmp_path / "m.onnx")


def test_products_of_a_model_are_those_of_its_layers(dense_bundle: Path, tiny_checkpoint: Path) -> None:
    """Seven linear layers in each of two layers, and the logits; counted from the tiny model's own sizes."""
    import json

    c = json.loads((tiny_checkpoint / "config.json").read_text())
    hidden, inner, head = c["hidden_size"], c["intermediate_size"], c["head_dim"]
    queries, keys, layers = c["num_attention_heads"] * head, c["num_key_value_heads"] * head, c["num_hidden_layers"]
    each = hidden * queries + 2 * hidden * keys + queries * hidden + 3 * hidden * inner
    found = graph_work(dense_bundle / "model.onnx")
    assert sum(found.products.values()) == 7 * layers + 1
    assert found.operations_per_token == 2 * (layers * each + hidden * c["vocab_size"])
    assert found.last == (hidden, c["vocab_size"])


def test_quantised_bundles_have_the_same_products(dense_bundle: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    export(tiny_checkpoint, tmp_path / "int8", ExportConfig(quantize="int8"))
    found = graph_work(tmp_path / "int8" / "model.onnx")
    assert found.products == graph_work(dense_bundle / "model.onnx").products
    assert found.weight_bytes < 0.5 * graph_work(dense_bundle / "model.onnx").weight_bytes


def test_models_that_differ_in_weights_only_have_the_same_structure(
    tiny_checkpoint: Path, tiny_sparse: Path, tmp_path: Path
) -> None:
    kinds = {
        "dense": (tiny_checkpoint, ExportConfig()),
        "sparse": (tiny_sparse, ExportConfig()),
        "int8": (tiny_checkpoint, ExportConfig(quantize="int8")),
        "fp16": (tiny_checkpoint, ExportConfig(dtype="fp16")),
    }
    for name, (checkpoint, config) in kinds.items():
        export(checkpoint, tmp_path / name, config, unverified="only the graph counts")
    found = {name: graph_work(tmp_path / name / "model.onnx").structure_sha256 for name in kinds}
    assert found["dense"] == found["sparse"]
    assert len({found[name] for name in ("dense", "int8", "fp16")}) == 3


@pytest.mark.parametrize(("value", "same"), [(np.ones((8, 16), np.float32), True), (np.ones((8, 17), np.float32), False)])
def test_shapes_count_for_the_structure_and_values_do_not(value: np.ndarray, same: bool, tmp_path: Path) -> None:
    def digest(name: str, weight: np.ndarray) -> str:
        nodes = [helper.make_node("MatMul", ["x", "weight"], ["out"])]
        return graph_work(save_graph(tmp_path / name, [numpy_helper.from_array(weight, "weight")], nodes)).structure_sha256

    assert (digest("a.onnx", np.zeros((8, 16), np.float32)) == digest("b.onnx", value)) == same


def test_numbers_that_shape_the_work_count_for_the_structure(tmp_path: Path) -> None:
    def digest(shape: list[int]) -> str:
        nodes = [helper.make_node("Reshape", ["ids", "shape"], ["out"])]
        constants = [numpy_helper.from_array(np.array(shape, np.int64), "shape")]
        return graph_work(save_graph(tmp_path / "m.onnx", constants, nodes)).structure_sha256

    assert digest([1, -1]) != digest([-1, 1])
