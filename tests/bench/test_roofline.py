from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from maskpro_deploy.bench import roofline
from maskpro_deploy.errors import FormatError


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
    assert roofline.weight_bytes(save_graph(tmp_path / "m.onnx", [table, weight], nodes)) == 8 * 16 * 4


def test_a_tied_table_counts_once(tmp_path: Path) -> None:
    table = numpy_helper.from_array(np.zeros((100, 8), np.float16), "table")
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["x"]),
        helper.make_node("Gemm", ["x", "table"], ["out"], transB=1),
    ]
    assert roofline.weight_bytes(save_graph(tmp_path / "m.onnx", [table], nodes)) == 100 * 8 * 2


def test_four_bit_weights_count_half_a_byte(tmp_path: Path) -> None:
    weight = helper.make_tensor("weight", TensorProto.INT4, [5, 3], [1] * 15)
    scale = numpy_helper.from_array(np.float32(1), "scale")
    nodes = [helper.make_node("DequantizeLinear", ["weight", "scale"], ["w"]), helper.make_node("MatMul", ["x", "w"], ["out"])]
    assert roofline.weight_bytes(save_graph(tmp_path / "m.onnx", [weight, scale], nodes)) == 8 + 4


def test_a_bundle_reads_about_its_data_file(tiny_bundle: Path) -> None:
    data = (tiny_bundle / "model.onnx.data").stat().st_size
    assert 0.8 * data < roofline.weight_bytes(tiny_bundle / "model.onnx") <= data + 4096


def test_a_file_that_is_no_graph_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"\xff\xff no protobuf")
    with pytest.raises(FormatError, match=r"m\.onnx is no ONNX file"):
        roofline.weight_bytes(tmp_path / "m.onnx")


def test_bandwidth_is_measured_and_says_how() -> None:
    found = roofline.measure_bandwidth(threads=2, buffer_bytes=8 << 20)
    assert found.read_bytes_per_s is not None
    assert found.copy_bytes_per_s is not None
    assert found.bytes_per_s == max(found.read_bytes_per_s, found.copy_bytes_per_s) > 0
    assert "2 threads over buffers of 8 MiB" in found.method


def test_bandwidth_that_cannot_be_measured_is_none() -> None:
    found = roofline.measure_bandwidth(threads=1, buffer_bytes=1 << 55)
    assert found.bytes_per_s is None
    assert "not enough memory" in found.method
    assert roofline.floor_s(1000, 0, found) is None


def test_the_floor_is_bytes_over_bandwidth() -> None:
    bandwidth = roofline.Bandwidth(
        bytes_per_s=1e9, read_bytes_per_s=1e9, copy_bytes_per_s=1e9, threads=1, buffer_bytes=1, method="given"
    )
    assert roofline.floor_s(3_000_000, 1_000_000, bandwidth) == pytest.approx(4e-3)
    assert roofline.floor_s(3_000_000, None, bandwidth) == pytest.approx(3e-3)
    assert roofline.floor_s(None, 5, bandwidth) is None
