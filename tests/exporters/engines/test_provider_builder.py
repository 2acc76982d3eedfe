"""Building through onnxruntime's TensorRT provider: options and refusals here; the build itself needs an NVIDIA GPU."""

from __future__ import annotations

import dataclasses

import onnx
import pytest
from onnx import helper

from maskpro_deploy.backends.cuda.driver import compute_capability
from maskpro_deploy.backends.onnxruntime_.linked_libraries import onnxruntime_tensorrt
from maskpro_deploy.errors import CheckFailed, ConfigError, MachineError, MissingExtraError
from maskpro_deploy.exporters import EngineConfig, build_engine
from maskpro_deploy.exporters.engines import provider_builder
from maskpro_deploy.exporters.engines.config import BuilderFlags
from maskpro_deploy.exporters.engines.profiles import profiles
from maskpro_deploy.manifest import Manifest

VIA = EngineConfig(via_onnxruntime=True, max_batch=2, max_length=64, max_prefill=16)


@pytest.fixture
def job(half_bundle, tmp_path, monkeypatch):
    """Options for the tiny bundle."""
    monkeypatch.setenv("MASKPRO_CACHE", str(tmp_path / "cache"))
    manifest = Manifest.load(half_bundle)

    def make(config=VIA, flags=None, sparse=True):
        shapes = profiles(manifest, config)
        return provider_builder.provider_job(tmp_path, manifest.graph, shapes, flags or BuilderFlags(), sparse=sparse)

    return make


def test_one_profile_covers_prompts_and_single_tokens(job):
    options = job()
    assert "input_ids:1x1," in options["trt_profile_min_shapes"]
    assert "input_ids:2x16," in options["trt_profile_max_shapes"]
    assert "past_key_values.0.key:2x2x63x8" in options["trt_profile_max_shapes"]
    assert (options["trt_sparsity_enable"], job(sparse=False)["trt_sparsity_enable"]) == ("1", "0")
    assert options["trt_dump_ep_context_model"] == "1"
    assert options["trt_ep_context_file_path"].endswith("provider/engine_ctx.onnx")


def test_several_profiles_are_refused(job):
    with pytest.raises(ConfigError, match=r"one profile, not 2.*\n.*mixed"):
        job(dataclasses.replace(VIA, max_batch=None, max_prefill=None, profiles="prefill:1x16 decode:2"))
    assert job(dataclasses.replace(VIA, max_batch=None, max_prefill=None, profiles="mixed:1x1/1x16/2x16")) == job()


def test_flags_that_the_provider_has_become_options_and_others_are_refused(job):
    flags = BuilderFlags(optimization_level=4, workspace_bytes=10**9, aux_streams=2, hardware_compatible="ampere+")
    assert (
        job(flags=flags).items()
        >= {
            "trt_builder_optimization_level": "4",
            "trt_max_workspace_size": "1000000000",
            "trt_auxiliary_streams": "2",
            "trt_engine_hw_compatible": "1",
        }.items()
    )
    for refused, flag in [
        (BuilderFlags(version_compatible=True), "--version-compatible"),
        (BuilderFlags(refit="identical"), "--refit"),
        (BuilderFlags(hardware_compatible="same-cc"), "--hardware-compatible same-cc"),
        (BuilderFlags(tiling="fast"), "--tiling"),
    ]:
        with pytest.raises(ConfigError, match=f"{flag}: onnxruntime's TensorRT provider has no such option"):
            job(flags=refused)


@pytest.mark.parametrize(
    ("settings", "flag"),
    [
        ({"backend": "tensorrt-rtx"}, "--backend tensorrt-rtx"),
        ({"targets": ("sm89",)}, "--target"),
        ({"form": "static"}, "--form static"),
        ({"compare_dense": True}, "--compare-dense"),
    ],
)
def test_what_does_not_go_with_it_is_named(settings, flag):
    with pytest.raises(ConfigError, match=f"{flag} does not go with --via-onnxruntime"):
        EngineConfig(via_onnxruntime=True, **settings)


def test_here_it_is_one_plain_error_and_the_bundle_stays_as_it_was(half_bundle):
    if onnxruntime_tensorrt() is not None:
        pytest.skip("this onnxruntime has a TensorRT provider")
    with pytest.raises(MissingExtraError, match=r"maskpro-deploy\[gpu,tensorrt\]"):
        build_engine(half_bundle, VIA)
    assert not (half_bundle / "engines").exists()


def test_without_a_gpu_too(half_bundle, monkeypatch):
    if compute_capability() is not None:
        pytest.skip("there is a GPU")
    monkeypatch.setattr(provider_builder, "onnxruntime_tensorrt", lambda: 10)
    with pytest.raises(MachineError, match=r"TensorRT 10 on an NVIDIA GPU.*\n.*tensorrt-rtx"):
        build_engine(half_bundle, VIA)


# -- what the provider writes ---------------------------------------------------------------------------------------------


def written(folder, *nodes):
    """A file as the provider writes it."""
    graph = helper.make_graph(list(nodes), "g", [], [])
    onnx.save(helper.make_model(graph), folder / "engine_ctx.onnx")
    return folder / "engine_ctx.onnx"


def context_node(name):
    return helper.make_node("EPContext", [], ["x"], domain="com.microsoft", embed_mode=0, ep_cache_context=name)


def test_the_engine_of_a_whole_graph_is_found(tmp_path, half_bundle):
    file = written(tmp_path, context_node("T_1.engine"))
    assert provider_builder.find_engine(file, half_bundle / "model.onnx") == tmp_path / "T_1.engine"


def test_a_graph_that_was_taken_in_part_is_refused(tmp_path, half_bundle):
    graph = half_bundle / "model.onnx"
    with pytest.raises(CheckFailed, match=r"only a part of model\.onnx.*kept: Gather, Cast"):
        provider_builder.find_engine(
            written(tmp_path, helper.make_node("Gather", [], ["a"]), context_node("a"), helper.make_node("Cast", [], ["b"])),
            graph,
        )
    with pytest.raises(CheckFailed, match="several parts"):
        provider_builder.find_engine(written(tmp_path, context_node("a"), context_node("b")), graph)
    with pytest.raises(CheckFailed, match="wrote no engine"):
        provider_builder.find_engine(tmp_path / "none.onnx", graph)
