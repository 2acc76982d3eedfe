"""Packed weights are read as onnxruntime multiplies with them: its product with an identity matrix is the weight."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper
from onnx_cases import FLOAT, node
from onnx_cases import save_model as save

from maskpro_deploy.validation.formats.readers import open_source

K, N, BLOCK = 32, 6, 16


def save_model(folder, nodes, constants):
    """As in the other tests, with a type and shape for onnxruntime."""
    path = save(folder, nodes, constants, opset=21)
    model = onnx.load(path)
    del model.graph.input[:]
    model.graph.input.append(helper.make_tensor_value_info("x", FLOAT, [K, K]))
    model.ir_version = 10
    onnx.save(model, path)
    return path


def by_running(path):
    """The weight (N, K), as onnxruntime multiplies with it."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": np.eye(K, dtype=np.float32)})[0].T


def by_reading(path):
    """The weight (N, K), as the checker reads it."""
    (weight,) = open_source(path).weights
    values = np.asarray(weight.data.read(0, weight.size), np.float32).reshape(weight.shape)
    return values if weight.axis == 1 else values.T


def pieces_agree(path):
    """Reading in pieces gives what reading at once gives."""
    (weight,) = open_source(path).weights
    whole = weight.data.read(0, weight.size)
    cuts = [0, 1, 7, 8, 33, 100, weight.size]
    return np.array_equal(np.concatenate([weight.data.read(a, b) for a, b in itertools.pairwise(cuts)]), whole)


def pack(codes, bits):
    """Numbers (rows, count), the first in the lowest bits of a byte."""
    parts = codes.reshape(codes.shape[0], -1, 8 // bits).astype(np.uint32)
    return (parts << np.arange(0, 8, bits, dtype=np.uint32)).sum(axis=-1).astype(np.uint8)


@pytest.mark.parametrize(("bits", "zero"), [(4, "none"), (4, "integer"), (4, "float"), (8, "none"), (8, "integer")])
@pytest.mark.parametrize("columns", [K, K - 3], ids=["whole blocks", "a part of one"])
def test_matmul_of_few_bits(tmp_path, bits, zero, columns):
    rng = np.random.default_rng(bits)
    blocks = -(-columns // BLOCK)
    codes = rng.integers(0, 1 << bits, (N, blocks * BLOCK))
    constants = {
        "w": pack(codes, bits).reshape(N, blocks, -1),
        "s": rng.uniform(0.5, 2, N * blocks).astype(np.float32),
    }
    inputs = ["xk", "w", "s"]
    if zero == "integer":
        points = np.zeros((N, -(-blocks * bits // 8) * 8 // bits), np.int64)
        points[:, :blocks] = rng.integers(0, 1 << bits, (N, blocks))
        constants["z"] = pack(points, bits).reshape(-1)
    elif zero == "float":
        constants["z"] = rng.integers(0, 1 << bits, N * blocks).astype(np.float32)
    inputs += ["z"] if zero != "none" else []
    constants |= {"from": np.array([0]), "to": np.array([columns]), "axis": np.array([1])}
    nodes = [
        node("Slice", ["x", "from", "to", "axis"], ["xk"]),
        node("MatMulNBits", inputs, ["y"], K=columns, N=N, bits=bits, block_size=BLOCK, domain="com.microsoft"),
    ]
    path = save_model(tmp_path, nodes, constants)
    np.testing.assert_allclose(by_reading(path), by_running(path)[:, :columns], rtol=1e-5, atol=1e-5)
    assert pieces_agree(path)


@pytest.mark.parametrize("kind", [0, 1], ids=["fp4", "nf4"])
def test_matmul_of_a_table_of_values(tmp_path, kind):
    codes = np.random.default_rng(kind).integers(0, 16, N * K).astype(np.uint8)
    constants = {"w": codes[0::2] << 4 | codes[1::2], "s": np.full(N * K // BLOCK, 2.0, np.float32)}
    nodes = [node("MatMulBnb4", ["x", "w", "s"], ["y"], K=K, N=N, block_size=BLOCK, quant_type=kind, domain="com.microsoft")]
    path = save_model(tmp_path, nodes, constants)
    np.testing.assert_array_equal(by_reading(path) != 0, by_running(path) != 0)
    assert (by_running(path) == 0).any()
    assert pieces_agree(path)


@pytest.mark.parametrize("channels", [False, True], ids=["one scale", "a scale a channel"])
@pytest.mark.parametrize("op", ["QGemm", "QGemm transposed", "DynamicQuantizeMatMul", "MatMulIntegerToFloat"])
def test_quantised_products(tmp_path, op, channels):
    """With a zero point that is not zero; activations are rounded, so that only zeros can be compared."""
    rng = np.random.default_rng(0)
    weight = rng.integers(0, 4, (K, N)).astype(np.uint8)
    transposed = op == "QGemm transposed"
    size = N if channels else 1
    constants = {
        "w": weight.T.copy() if transposed else weight,
        "ws": np.full(size, 0.5, np.float32) if channels else np.float32(0.5),
        "wz": np.full(size, 2, np.uint8) if channels else np.uint8(2),
    }
    quantise = [node("DynamicQuantizeLinear", ["x"], ["xq", "xs", "xz"])]
    domain = {"domain": "com.microsoft"}
    if op.startswith("QGemm"):
        inputs = ["xq", "xs", "xz", "w", "ws", "wz"]
        nodes = [*quantise, node("QGemm", inputs, ["y"], transB=int(transposed), **domain)]
    elif op == "DynamicQuantizeMatMul":
        nodes = [node(op, ["x", "w", "ws", "wz"], ["y"], **domain)]
    else:
        nodes = [*quantise, node(op, ["xq", "w", "xs", "ws", "xz", "wz"], ["y"], **domain)]
    path = save_model(tmp_path, nodes, constants)
    np.testing.assert_array_equal(by_reading(path) != 0, np.abs(by_running(path)) > 1e-3)


def test_fused_matmul_and_einsum(tmp_path):
    weight = np.random.default_rng(0).standard_normal((N, K)).astype(np.float32)
    fused = [node("FusedMatMul", ["x", "w"], ["y"], transB=1, domain="com.microsoft")]
    summed = [node("Einsum", ["x", "w"], ["y"], equation="bk,nk->bn")]
    for nodes in (fused, summed):
        path = save_model(tmp_path, nodes, {"w": weight})
        np.testing.assert_allclose(by_reading(path), by_running(path), rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "value"),
    [("K", 33), ("block_size", 0), ("bits", 5)],
)
def test_sizes_that_contradict_each_other_are_not_passed(tmp_path, change, value):
    attributes = {"K": K, "N": N, "bits": 4, "block_size": BLOCK} | {change: value}
    constants = {"w": np.full((N, 2, 8), 0x88, np.uint8), "s": np.ones(N * 2, np.float32)}
    path = save_model(tmp_path, [node("MatMulNBits", ["x", "w", "s"], ["y"], domain="com.microsoft", **attributes)], constants)
    source = open_source(path)
    assert [u.name for u in source.unchecked] == ["w"]
