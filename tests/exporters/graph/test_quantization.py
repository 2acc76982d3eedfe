"""Integers instead of floats: what is stored, what it stands for, and that zeros stay zeros."""

from __future__ import annotations

import json
import shutil

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy_llama import NumpyLlama

from maskpro_deploy.checkpoint import Checkpoint
from maskpro_deploy.errors import ConfigError
from maskpro_deploy.exporters import ExportConfig, export
from maskpro_deploy.exporters.checks.proof import count_groups
from maskpro_deploy.exporters.graph.quantization import Quantization, pack_nibbles
from maskpro_deploy.exporters.graph.weights import matmul_weights
from maskpro_deploy.exporters.quantize.descent import damp, descend
from maskpro_deploy.manifest import Manifest
from maskpro_deploy.pattern import NMPattern
from maskpro_deploy.validation import validate
from maskpro_deploy.validation.arrays import MemoryArray, NibbleArray

FP32 = np.dtype(np.float32)
KINDS = [("int8", 0), ("int8", 32), ("int4", 0), ("int4", 16)]


def dequantised(path):
    """name -> what DequantizeLinear makes of it, by onnx's own reference."""
    model = onnx.load(path)
    tensors = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    result = {}
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear":
            settings = {a.name: a.i for a in node.attribute}
            q, scale = tensors[node.input[0]].astype(np.float32), tensors[node.input[1]].astype(np.float32)
            if block := settings.get("block_size", 0):
                scale = np.repeat(scale, block, axis=0)
            result[node.input[0]] = (q * scale, np.broadcast_to(scale, q.shape))
    return result


def unpack_nibbles(packed, count):
    return NibbleArray(base=MemoryArray(packed), size=count, signed=True).read(0, count)


@given(st.lists(st.integers(-8, 7), min_size=0, max_size=33))
def test_nibbles_come_back_and_lie_as_onnx_says(values):
    array = np.asarray(values, np.int8)
    packed = pack_nibbles(array)
    np.testing.assert_array_equal(unpack_nibbles(packed, len(array)), array)
    tensor = onnx.helper.make_tensor("x", onnx.TensorProto.INT4, [len(array)], packed.tobytes(), raw=True)
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(tensor).astype(np.int8), array)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(KINDS), st.sampled_from([32, 64, 96]), st.booleans())
def test_rounding_is_within_half_a_step_or_clipped_and_never_worse_than_the_plain_scale(seed, kind, k, sparse):
    rng = np.random.default_rng(seed)
    w = rng.standard_normal((k, 5)).astype(np.float32) * np.float32(10.0 ** rng.integers(-4, 3))
    if sparse:
        w[::2] = 0
    q = Quantization(kind=kind[0], block=kind[1])
    scales, block = q.scales(np.ascontiguousarray(w.T), FP32), q.block_for(k)
    integers = q.integers(w, scales, 0, block)
    wide = np.repeat(scales, block, axis=0) if block else np.broadcast_to(scales, w.shape)
    assert (integers[w == 0] == 0).all()
    assert q.stored.smallest <= integers.min()
    assert integers.max() <= q.stored.largest
    inside = (q.stored.smallest * wide <= w) & (w <= q.stored.largest * wide)
    assert (np.abs(integers * wide - w)[inside] <= 0.5001 * wide[inside]).all()
    top = np.abs(w.reshape(-1, block or k, 5)).max(axis=1) / q.stored.largest
    plain = np.repeat(top, block or k, axis=0)
    error = ((integers * wide - w) ** 2).sum()
    assert error <= ((np.rint(w / np.where(plain, plain, 1)) * plain - w) ** 2).sum() * 1.0001 + 1e-30


@pytest.mark.parametrize("method", ["nearest", "calibrated"])
@pytest.mark.parametrize(("quantize", "block"), KINDS)
def test_written_integers_are_near_the_weights_and_hold_the_pattern(tiny_sparse, tmp_path, quantize, block, method):
    config = ExportConfig(quantize=quantize, block_size=block, method=method, require_sparsity=NMPattern(2, 4))
    manifest = export(tiny_sparse, tmp_path / "out", config)
    assert len(manifest.sparse_weights) == 14
    source = Checkpoint.open(tiny_sparse)
    found = dequantised(tmp_path / "out" / "model.onnx")
    assert len(found) == 15  # 14 projections and the head
    for name, (values, scale) in found.items():
        original = source.tensor("model.embed_tokens.weight" if name.startswith("lm_head") else name).T
        if name in source.masks.packed:
            assert (values[~source.masks.mask(name).T] == 0).all()
        if method == "nearest":
            clipped = np.abs(original) > scale * (127 if quantize == "int8" or name.startswith("lm_head") else 7)
            assert (np.abs(values - original)[~clipped] <= 0.501 * scale[~clipped]).all()
    # what a builder of engines sees
    weights = {w.initializer: w for w in matmul_weights(tmp_path / "out" / "model.onnx")}
    assert weights.keys() >= {w.initializer for w in manifest.sparse_weights}
    for listed in manifest.sparse_weights:
        weight = weights[listed.initializer]
        assert count_groups(weight.file, listed.initializer, weight.region, NMPattern(2, 4)).over == 0


def test_a_group_with_too_many_integers_is_counted(tiny_checkpoint, tmp_path):
    manifest = export(tiny_checkpoint, tmp_path / "out", ExportConfig(quantize="int4"))
    assert manifest.sparsity is None
    weight = next(w for w in matmul_weights(tmp_path / "out" / "model.onnx") if "gate_proj" in w.initializer)
    packed = np.fromfile(weight.file, np.uint8, weight.region.bytes, offset=weight.region.offset)
    q = unpack_nibbles(packed, int(np.prod(weight.region.shape))).reshape(weight.region.shape)
    expected = int(((q.reshape(-1, 4, q.shape[1]) != 0).sum(axis=1) > 2).sum())
    assert count_groups(weight.file, weight.initializer, weight.region, NMPattern(2, 4)).over == expected > 0


@pytest.mark.parametrize(("quantize", "block"), KINDS)
def test_onnxruntime_fuses_every_quantised_product(tiny_sparse, tmp_path, quantize, block):
    export(tiny_sparse, tmp_path / "out", ExportConfig(quantize=quantize, block_size=block, forms=("cat", "gqa")))
    for file in ("model.onnx", "model_gqa.onnx"):
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
        onnxruntime.InferenceSession(str(tmp_path / "out" / file), options, providers=["CPUExecutionProvider"])
        kinds = [n.op_type for n in onnx.load(tmp_path / "optimised.onnx", load_external_data=False).graph.node]
        assert kinds.count("MatMulNBits") == 15
        assert "DequantizeLinear" not in kinds
        assert "MatMul" not in kinds


@pytest.mark.parametrize("method", ["nearest", "calibrated"])
def test_a_gqa_graph_alone_has_packed_products_that_hold_the_pattern(tiny_sparse, tmp_path, method):
    config = ExportConfig(quantize="int4", block_size=16, head="int4", method=method, forms=("gqa",))
    manifest = export(tiny_sparse, tmp_path / "out", config, reference=lambda: NumpyLlama(tiny_sparse))
    assert manifest.graph.quantization == f"int4 block 16, int4 head, {method}"
    assert manifest.verification["status"] == "passed"
    both = [w.source.split(".")[-2] for w in manifest.sparse_weights if w.initializer == "model.layers.1.mlp.gate_up_proj.weight"]
    assert both == ["gate_proj", "up_proj"]
    model = onnx.load(tmp_path / "out" / "model_gqa.onnx", load_external_data=False)
    stored = {t.name: (t.data_type, tuple(t.dims)) for t in model.graph.initializer}
    assert stored["model.layers.0.mlp.gate_up_proj.weight"] == (onnx.TensorProto.INT4, (32, 128))
    assert stored["lm_head.weight"] == (onnx.TensorProto.INT4, (32, 320))
    report = validate(tmp_path / "out")
    assert report.holds, report.verdict


def test_sources_of_a_packed_weight_are_listed_in_the_order_of_its_columns(tiny_sparse, tmp_path):
    """Queries, keys and values: in a mask file they stand in another order."""
    sparse = tmp_path / "sparse"
    shutil.copytree(tiny_sparse, sparse)
    config = json.loads((sparse / "config.json").read_text())
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}  # the same weights, in heads that are packed
    (sparse / "config.json").write_text(json.dumps({**config, **heads}))
    manifest = export(sparse, tmp_path / "out", ExportConfig(forms=("gqa",)), reference=lambda: NumpyLlama(sparse))
    name = "model.layers.1.self_attn.qkv_proj.weight"
    assert [w.source.split(".")[-2] for w in manifest.sparse_weights if w.initializer == name] == ["q_proj", "k_proj", "v_proj"]
    report = validate(tmp_path / "out")
    assert report.holds, report.verdict


def test_8_bit_floats_keep_the_pattern_and_come_close(tiny_sparse, tmp_path):
    config = ExportConfig(quantize="fp8", require_sparsity=NMPattern(2, 4))
    manifest = export(tiny_sparse, tmp_path / "out", config, reference=lambda: NumpyLlama(tiny_sparse))
    assert manifest.graph.quantization == "fp8 per column, nearest"
    assert manifest.verification["status"] == "passed"
    source = Checkpoint.open(tiny_sparse)
    for weight in matmul_weights(tmp_path / "out" / "model.onnx"):
        region = weight.region
        stored = np.memmap(weight.file, region.dtype, "r", region.offset, region.shape)
        assert not (stored.view(np.uint8) == 0x80).any()  # -0.0
        name = "model.embed_tokens.weight" if weight.initializer == "lm_head.weight" else weight.initializer
        w = source.tensor(name).T
        scale = np.abs(w).max(axis=0) / 448
        error = np.abs(stored.astype(np.float32) * scale - w)
        assert (error <= np.abs(w) / 16 + scale * 2.0**-10 + 1e-9).all()  # three bits behind the point; subnormals below
    report = validate(tmp_path / "out")
    assert report.holds, report.verdict


def test_packed_columns_are_those_of_the_single_products(tiny_sparse, tmp_path):
    for name, forms in (("packed", ("gqa",)), ("single", ("cat", "gqa"))):
        export(tiny_sparse, tmp_path / name, ExportConfig(quantize="int8", block_size=16, forms=forms), compare=False)
    found = {}
    for name in ("packed", "single"):
        for weight in matmul_weights(tmp_path / name / "model_gqa.onnx"):
            region = weight.region
            found[name, weight.initializer] = np.memmap(weight.file, region.dtype, "r", region.offset, region.shape)
    parts = [found["single", f"model.layers.1.mlp.{kind}_proj.weight"] for kind in ("gate", "up")]
    np.testing.assert_array_equal(found["packed", "model.layers.1.mlp.gate_up_proj.weight"], np.concatenate(parts, axis=1))


def test_manifest_says_how_weights_are_stored_and_verification_measures_it(tiny_sparse, tmp_path):
    config = ExportConfig(quantize="int8", forms=("cat", "gqa"))
    manifest = export(tiny_sparse, tmp_path / "out", config, reference=lambda: NumpyLlama(tiny_sparse))
    assert (manifest.graph.dtype, manifest.graph.quantization) == ("fp32", "int8 per column, nearest")
    figures = Manifest.load(tmp_path / "out").verification
    assert figures["status"] == figures["forms"]["gqa"]["status"] == "passed"
    assert figures["tolerance"] is None
    assert 1e-3 < figures["max_logit_difference"] < 2
    assert figures["mean_kl"] < 0.02


def test_same_checkpoint_gives_the_same_bytes(tiny_sparse, tmp_path):
    config = ExportConfig(quantize="int4", method="calibrated")
    for name in ("a", "b"):
        export(tiny_sparse, tmp_path / name, config)
    for file in (tmp_path / "a").iterdir():
        assert (tmp_path / "b" / file.name).read_bytes() == file.read_bytes(), file.name


def test_calibration_loses_less_of_the_output_than_rounding_to_nearest():
    rng = np.random.default_rng(3)
    k, n = 128, 40
    mix = rng.standard_normal((k, k))  # inputs that depend on each other
    x, others = ((rng.standard_normal((count, k)) @ mix).astype(np.float32) for count in (600, 2000))
    w = rng.standard_normal((k, n)).astype(np.float32)
    w.reshape(-1, 4, n)[:, ::2] = 0  # 2:4
    q = Quantization(kind="int4", block=32)
    scales = q.scales(np.ascontiguousarray(w.T), FP32)
    nearest = q.integers(w, scales, 0, 32) * np.repeat(scales, 32, axis=0)
    integers, own = descend(w, damp(x.T @ x), q, FP32)
    clever = integers * np.repeat(own, 32, axis=0)
    assert (clever[w == 0] == 0).all()
    for inputs in (x, others):
        assert np.square(inputs @ (clever - w)).sum() < 0.9 * np.square(inputs @ (nearest - w)).sum()


def test_what_few_tokens_tell_is_not_taken_for_the_whole_truth():
    rng = np.random.default_rng(5)
    k, n = 128, 40
    mix = rng.standard_normal((k, k))
    x, others = ((rng.standard_normal((count, k)) @ mix).astype(np.float32) for count in (140, 2000))
    w = rng.standard_normal((k, n)).astype(np.float32)
    q = Quantization(kind="int4", block=32)

    def lost(hessian):
        integers, scales = descend(w, hessian, q, FP32)
        return np.square(others @ (integers * np.repeat(scales, 32, axis=0) - w)).sum()

    assert lost(damp(x.T @ x)) < 0.9 * lost(x.T @ x)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(KINDS))
def test_rows_that_count_more_are_rounded_better(seed, kind):
    rng = np.random.default_rng(seed)
    k, n = 64, 5
    w = rng.standard_normal((k, n)).astype(np.float32)
    importance = np.exp(2 * rng.standard_normal(k)).astype(np.float32)
    q = Quantization(kind=kind[0], block=kind[1])
    columns = np.ascontiguousarray(w.T)

    def lost(scales):
        wide = np.repeat(scales, kind[1], axis=0) if kind[1] else scales
        return (importance[:, None] * np.square(q.integers(w, scales, 0, q.block_for(k)) * wide - w)).sum()

    assert lost(q.scales(columns, FP32, importance)) <= 1.0001 * lost(q.scales(columns, FP32))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(KINDS), st.booleans())
def test_descent_never_costs_more_than_rounding_to_nearest_and_keeps_the_mask(seed, kind, drifted):
    rng = np.random.default_rng(seed)
    k, n = 64, 6
    x = rng.standard_normal((200, k)).astype(np.float32) @ rng.standard_normal((k, k)).astype(np.float32)
    own = x + np.float32(0.3 * drifted) * rng.standard_normal(x.shape).astype(np.float32)
    w = rng.standard_normal((k, n)).astype(np.float32)
    w.reshape(-1, 4, n)[:, 1:3] = 0  # 2:4
    q = Quantization(kind=kind[0], block=kind[1])

    def cost(integers, scales):
        wide = np.repeat(scales, kind[1], axis=0) if kind[1] else scales
        return np.square(own @ (integers * wide) - x @ w).sum()

    scales = q.scales(np.ascontiguousarray(w.T), FP32)
    nearest = cost(q.integers(w, scales, 0, q.block_for(k)), scales)
    slope = own.T @ (own - x) @ w
    results = [descend(w, own.T @ own, q, FP32, slope) for _ in range(2)]
    assert cost(*results[0]) <= 1.0001 * nearest
    assert (results[0][0][w == 0] == 0).all()
    assert q.stored.smallest <= results[0][0].min()
    assert results[0][0].max() <= q.stored.largest
    for first, again in zip(*results, strict=True):
        np.testing.assert_array_equal(first, again)


def test_knowing_how_inputs_have_changed_saves_some_of_the_output():
    rng = np.random.default_rng(4)
    k, n = 128, 40
    x = (rng.standard_normal((600, k)) @ rng.standard_normal((k, k))).astype(np.float32)
    own = x @ (np.eye(k) + 0.02 * rng.standard_normal((k, k))).astype(np.float32)  # as projections before it have made them
    w = rng.standard_normal((k, n)).astype(np.float32)
    w.reshape(-1, 4, n)[:, ::2] = 0
    q = Quantization(kind="int4", block=32)

    def lost(slope):
        integers, scales = descend(w, damp(own.T @ own), q, FP32, slope)
        return np.square(own @ (integers * np.repeat(scales, 32, axis=0)) - x @ w).sum()

    assert lost(own.T @ (own - x) @ w) < 0.9 * lost(None)


def test_all_16_values_of_4_bits_are_used():
    w = np.arange(-8, 8, dtype=np.float32)[:, None] * np.float32(0.25)
    q = Quantization(kind="int4", block=16)
    scales = q.scales(np.ascontiguousarray(w.T), FP32)
    np.testing.assert_array_equal(q.integers(w, scales, 0, 16)[:, 0], np.arange(-8, 8))
    np.testing.assert_array_equal(scales, [[0.25]])


def test_scales_are_rounded_to_the_type_they_are_stored_in():
    w = np.asarray([[0.3, -0.7, 0.1, 0.2] * 8], np.float32)
    for dtype in (np.float16, ml_dtypes.bfloat16):
        scales = Quantization(kind="int4", block=0).scales(w, np.dtype(dtype))
        np.testing.assert_array_equal(scales, scales.astype(dtype).astype(np.float32))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"quantize": "int3"}, "--quantize int3"),
        ({"quantize": "int4", "block_size": 24}, "--block-size 24"),
        ({"quantize": "int4", "block_size": 8}, "--block-size 8"),
        ({"block_size": 32}, "--quantize int8 or int4"),
        ({"quantize": "int4", "method": "magic"}, "--method magic"),
        ({"quantize": "fp8", "block_size": 32}, "--quantize fp8 has one scale a column"),
        ({"quantize": "fp8", "method": "calibrated"}, "--method calibrated makes integers"),
        ({"quantize": "int8", "head": "int4"}, "--quantize-head int4"),
        ({"quantize": "int4", "head": "int2"}, "--quantize-head int2"),
        ({"head": "int8"}, "--quantize int8 or int4"),
    ],
)
def test_settings_out_of_range_name_the_flag(config, message):
    with pytest.raises(ConfigError, match=message):
        ExportConfig(**config)
