"""The EPContext file stands for the engine: same inputs and outputs, a relative path, and every attribute that providers read."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import onnx
import onnxruntime
import pytest
from engine_files import engine_file
from onnx import helper

from maskpro_deploy.backends.onnxruntime_ import linked_libraries as elf
from maskpro_deploy.errors import CheckFailed
from maskpro_deploy.exporters import EngineConfig, ExportConfig, build_engine, export
from maskpro_deploy.exporters.engines import ep_context
from maskpro_deploy.manifest import Manifest
from maskpro_deploy.system.extras import missing

ENGINE = engine_file(file="engines/tensorrt-sm89.engine")


def attributes(model):
    (node,) = model.graph.node
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def io(values):
    return [
        (v.name, v.type.tensor_type.elem_type, [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim]) for v in values
    ]


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("form", ["cat", "static"])
def test_inputs_and_outputs_are_the_graphs(dtype, form, tiny_sparse, tmp_path):
    export(tiny_sparse, tmp_path / "b", ExportConfig(dtype=dtype, forms=(form,)), compare=False)
    graph = tmp_path / "b" / Manifest.load(tmp_path / "b").graph.file
    source = onnx.load(graph, load_external_data=False)
    model = ep_context.context_model(graph, ENGINE)
    assert io(model.graph.input) == io(source.graph.input)
    assert io(model.graph.output) == io(source.graph.output)
    assert {t for _, t, _ in io(model.graph.input)} > {onnx.TensorProto.INT64}
    (node,) = model.graph.node
    assert list(node.input) == [v.name for v in source.graph.input]
    assert list(node.output) == [v.name for v in source.graph.output]
    onnx.checker.check_model(model)


def test_every_attribute_is_set_and_the_path_is_relative(half_bundle):
    found = attributes(ep_context.context_model(half_bundle / "model.onnx", ENGINE))
    notes = found.pop("notes")
    assert notes.startswith(b"maskpro-deploy")
    assert found == {
        "main_context": 1,
        "embed_mode": 0,
        "ep_cache_context": b"tensorrt-sm89.engine",
        "ep_sdk_version": b"10.16.1.11",
        "hardware_architecture": b"89",
        "partition_name": b"tensorrt-sm89",
        "source": b"TensorrtExecutionProvider",
        "onnx_model_filename": b"model.onnx",
    }


def test_hardware_compatibility_and_the_library_show(half_bundle):
    compatible = dataclasses.replace(ENGINE, settings={"hardware_compatibility": "ampere_plus"})
    assert attributes(ep_context.context_model(half_bundle / "model.onnx", compatible))["hardware_architecture"] == b"80+"
    rtx = dataclasses.replace(ENGINE, library="tensorrt-rtx", library_version="1.7.1.116", target="sm89,sm120")
    found = attributes(ep_context.context_model(half_bundle / "model.onnx", rtx))
    assert found["source"] == b"NvTensorRTRTXExecutionProvider"
    assert found["hardware_architecture"] == b"89,120"


def test_onnxruntime_takes_the_model_and_lacks_only_the_provider(half_bundle, tmp_path):
    """The graph resolves against onnxruntime's own schema of the operator; a CPU has no kernel for it."""
    model = ep_context.context_model(half_bundle / "model.onnx", ENGINE)
    onnx.save(model, tmp_path / "x_ctx.onnx")
    with pytest.raises(Exception, match=r"kernel for com\.microsoft\.EPContext"):
        onnxruntime.InferenceSession(str(tmp_path / "x_ctx.onnx"), providers=["CPUExecutionProvider"])


def test_a_wrong_node_does_not_get_that_far(half_bundle, tmp_path):
    """The test above can fail: another type of an attribute is refused by the schema."""
    model = ep_context.context_model(half_bundle / "model.onnx", ENGINE)
    attribute = next(a for a in model.graph.node[0].attribute if a.name == "embed_mode")
    attribute.CopyFrom(helper.make_attribute("embed_mode", "0"))
    onnx.save(model, tmp_path / "x_ctx.onnx")
    with pytest.raises(Exception, match="embed_mode"):
        onnxruntime.InferenceSession(str(tmp_path / "x_ctx.onnx"), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize(
    ("version", "linked", "works"),
    [("10.16.1.11", 10, True), ("11.4.0.106", 10, False), ("11.4.0.106", 11, True), ("11.4.0.106", None, True)],
)
def test_a_pair_that_cannot_work_is_refused_and_the_lane_named(version, linked, works, half_bundle, monkeypatch):
    monkeypatch.setattr(ep_context, "onnxruntime_tensorrt", lambda: linked)
    engine = dataclasses.replace(ENGINE, library_version=version)
    if works:
        ep_context.context_model(half_bundle / "model.onnx", engine)
        return
    with pytest.raises(CheckFailed, match="--provider trt-native"):
        ep_context.context_model(half_bundle / "model.onnx", engine)


def test_the_installed_onnxruntime_has_a_known_provider_or_none():
    assert elf.onnxruntime_tensorrt() in (None, 10, 11)


@pytest.mark.skipif(bool(missing("tensorrt-rtx")), reason="tensorrt-rtx is not installed")
def test_a_built_engine_has_its_wrapper_in_the_manifest_and_loses_it_with_the_engine(half_bundle: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(half_bundle, tmp_path / "bundle"))
    settings = EngineConfig(backend="tensorrt-rtx", targets=("sm89",), max_length=64)
    first = build_engine(bundle, settings).engine
    assert first.ep_context is not None
    manifest = Manifest.load(bundle)
    manifest.check_hashes(bundle)
    assert first.ep_context in {f.path for f in manifest.files}
    named = attributes(onnx.load(bundle / first.ep_context))["ep_cache_context"].decode()
    assert (bundle / first.ep_context).parent / named == bundle / first.file

    second = build_engine(bundle, EngineConfig(backend="tensorrt-rtx", targets=("sm89",), max_length=32)).engine
    assert second.ep_context != first.ep_context
    Manifest.load(bundle).check_hashes(bundle)
    assert not (bundle / first.ep_context).exists()
