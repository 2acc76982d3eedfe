"""Options for onnxruntime's TensorRT provider: names that it knows, one profile for every call, a folder for every graph."""

from __future__ import annotations

import dataclasses
import re
from importlib.util import find_spec
from pathlib import Path

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from manifests import small_shape

from maskpro_deploy.backends.onnxruntime_.tensorrt_provider import graph_options, locate_kept_engines, whole_profile
from maskpro_deploy.backends.profiles import ProfileCoverage, serving_bounds
from maskpro_deploy.errors import ConfigError
from maskpro_deploy.exporters import ExportConfig, export
from maskpro_deploy.manifest import Graph, Manifest

# what the provider library of onnxruntime-gpu 1.31.1 has among its strings
# fmt: off
RECORDED = [
    "device_id", "trt_auxiliary_streams", "trt_bf16_enable", "trt_build_heuristics_enable",
    "trt_builder_optimization_level", "trt_context_memory_sharing_enable", "trt_cuda_graph_enable", "trt_detailed_build_log",
    "trt_dla_core", "trt_dla_enable", "trt_dump_ep_context_model", "trt_dump_subgraphs", "trt_engine_cache_enable",
    "trt_engine_cache_path", "trt_engine_cache_prefix", "trt_engine_decryption_enable", "trt_engine_decryption_lib_path",
    "trt_engine_hw_compatible", "trt_ep_context_embed_mode", "trt_ep_context_file_path", "trt_external_data_bytestream",
    "trt_external_data_bytestream_size", "trt_extra_plugin_lib_paths", "trt_force_sequential_engine_build",
    "trt_force_timing_cache", "trt_fp16_enable", "trt_int8_calibration_table_name", "trt_int8_enable",
    "trt_int8_use_native_calibration_table", "trt_layer_norm_fp32_fallback", "trt_load_user_initializer",
    "trt_max_partition_iterations", "trt_max_workspace_size", "trt_min_subgraph_size", "trt_onnx_bytestream",
    "trt_onnx_bytestream_size", "trt_onnx_model_folder_path", "trt_op_types_to_exclude", "trt_preview_features",
    "trt_profile_max_shapes", "trt_profile_min_shapes", "trt_profile_opt_shapes", "trt_sparsity_enable", "trt_tactic_sources",
    "trt_timing_cache_enable", "trt_timing_cache_path", "trt_weight_stripped_engine_enable",
]
# fmt: on
GRAPH = Graph(file="model.onnx", form="cat", opset=23, dtype="fp16")
MODEL = small_shape(
    num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, hidden_size=32, max_length=1024, vocab_size=100, eos_token_ids=(0,)
)


def known_options():
    """The provider's own strings where it is installed, else the recorded ones."""
    spec = find_spec("onnxruntime")
    library = Path(spec.origin).parent / "capi" / "libonnxruntime_providers_tensorrt.so"
    if not library.is_file():
        return set(RECORDED)
    return {m.decode() for m in re.findall(rb"(?<![\w])(?:trt_\w+|device_id)(?=\0)", library.read_bytes())}


def options(**changes):
    profile = whole_profile(MODEL, GRAPH, batch=4, new=64, length=256)
    return graph_options(GRAPH, profile, sparse=True, timing_cache=Path("/t"), **changes)


def test_every_option_is_known_to_the_provider():
    found = options(kept=Path("/k")) | options(context=Path("/c/x_ctx.onnx"))
    assert set(found) <= known_options()
    assert all(isinstance(value, str) for value in found.values())
    assert found["trt_sparsity_enable"] == "1"
    assert found["trt_fp16_enable"] == "1"


def test_with_an_ep_context_file_the_engine_has_no_path_of_its_own():
    """The provider refuses an absolute path of the engine there; it lies beside the file."""
    assert "trt_engine_cache_path" not in options(context=Path("/c/x_ctx.onnx"))
    assert options(kept=Path("/k"))["trt_engine_cache_path"] == "/k"
    assert "trt_dump_ep_context_model" not in options(kept=Path("/k"))


def test_every_varying_input_has_its_three_shapes_in_the_providers_form(tmp_path, tiny_sparse):
    export(tiny_sparse, tmp_path / "b", ExportConfig(), compare=False)
    manifest = Manifest.load(tmp_path / "b")
    profile = whole_profile(manifest.model, manifest.graph)
    found = graph_options(manifest.graph, profile, sparse=True, timing_cache=tmp_path)
    inputs = {i.name for i in onnx.load(tmp_path / "b" / "model.onnx", load_external_data=False).graph.input}
    for which in ("min", "opt", "max"):
        parts = found[f"trt_profile_{which}_shapes"].split(",")
        assert {part.split(":")[0] for part in parts} == inputs
        assert all(re.fullmatch(r"[\w.]+:\d+(x\d+)*", part) for part in parts)


@given(st.integers(1, 16), st.integers(1, 300), st.integers(0, 300))
def test_the_profile_covers_every_call(batch, new, more):
    length = new + more
    profile = whole_profile(MODEL, GRAPH, batch, new, length)
    for least, best, most in profile.values():
        assert all(a <= b <= c for a, b, c in zip(least, best, most, strict=True))
    coverage = ProfileCoverage.of(profile)
    for rows in (1, batch):
        for past in (0, length // 2, length - 1):
            wanted = min(new, length - past)
            assert coverage.new_tokens(rows, past, wanted) == wanted
    assert serving_bounds([coverage])[:2] == (batch, length) or length == 1


def test_another_form_is_refused_and_bounds_end_where_the_model_does():
    with pytest.raises(ConfigError, match="--form cat"):
        whole_profile(MODEL, dataclasses.replace(GRAPH, form="static", length=64))
    least, best, most = whole_profile(dataclasses.replace(MODEL, max_length=100), GRAPH)["input_ids"]
    assert (least, best, most) == ((1, 1), (1, 100), (8, 100))


def test_other_weights_shapes_or_gpus_have_other_folders(tmp_path, tiny_sparse, tiny_checkpoint, monkeypatch):
    monkeypatch.setenv("MASKPRO_CACHE", str(tmp_path / "cache"))
    export(tiny_sparse, tmp_path / "a", ExportConfig(), compare=False)
    export(tiny_checkpoint, tmp_path / "b", ExportConfig(), compare=False)
    a, b = Manifest.load(tmp_path / "a"), Manifest.load(tmp_path / "b")
    short, long = (whole_profile(a.model, a.graph, new=8, length=n) for n in (16, 32))
    cases = [(a, short, "sm89"), (b, short, "sm89"), (a, long, "sm89"), (a, short, "sm90")]
    folders = [locate_kept_engines(*case) for case in cases]
    assert len(set(folders)) == 4
    assert locate_kept_engines(a, short, "sm89") == folders[0]
    assert all(f.is_relative_to(tmp_path / "cache") for f in folders)
