"""`doctor BUNDLE`: what of a bundle runs here, and what the rest lacks."""

from __future__ import annotations

import dataclasses
import json

import pytest
from click.testing import CliRunner

from maskpro_deploy.commands.doctor import command
from maskpro_deploy.doctor import bundle as _doctor_bundle
from maskpro_deploy.doctor import machine as doctor
from maskpro_deploy.doctor.hardware import Gpu
from maskpro_deploy.errors import InputError
from maskpro_deploy.exporters import ExportConfig, export
from maskpro_deploy.manifest import EngineFile, Manifest, file_entry
from maskpro_deploy.system.extras import missing

pytestmark = pytest.mark.skipif(bool(missing("cpu")), reason="onnxruntime is not installed")
ADA = Gpu(name="L4", compute_capability="8.9", driver="580", memory="24 GiB")
HOPPER = Gpu(name="H100", compute_capability="9.0", driver="580", memory="80 GiB")
PROVIDERS = ("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider")


@pytest.fixture(scope="module")
def bundle(tiny_sparse, tmp_path_factory):
    """A bundle with two forms and two engines, which nobody could load."""
    folder = tmp_path_factory.mktemp("doctor") / "bundle"
    export(tiny_sparse, folder, ExportConfig(dtype="fp16", forms=("cat", "static")), compare=False)
    manifest, engines = Manifest.load(folder), []
    for library, version, target in (("tensorrt", "11.4.0.1", "sm89"), ("tensorrt-rtx", "1.7.1.116", "default")):
        path = folder / "engines" / f"{library}.engine"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
        described = {"library": library, "library_version": version, "target": target}
        engines.append(
            EngineFile(file=f"engines/{path.name}", dtype="fp16", sparse_kernels="", settings={"profiles": [{}]}, **described)
        )
    files = (*manifest.files, *(file_entry(folder, folder / e.file) for e in engines))
    dataclasses.replace(manifest, engines=tuple(engines), files=files).save(folder)
    return folder


@pytest.fixture
def look(bundle, monkeypatch):
    """The findings on a machine with these GPUs, providers and libraries."""

    def found(gpus, providers, installed, lacking=(), plugin=None):
        without = {"native": lacking, _doctor_bundle.RTX_EXTRA: () if plugin else ("the plug-in",)}
        monkeypatch.setattr(_doctor_bundle, "version", installed.get)
        monkeypatch.setattr(_doctor_bundle, "missing", lambda extra: without.get(extra, ()))
        monkeypatch.setattr(_doctor_bundle, "read_library_version", lambda: plugin)
        monkeypatch.setattr(_doctor_bundle, "onnxruntime_tensorrt", lambda: 10)
        diagnosis = dataclasses.replace(doctor.examine(), gpus=gpus, providers=providers)
        return _doctor_bundle.examine_bundle(bundle, diagnosis)

    return found


def test_without_a_gpu_graphs_run_on_the_cpu_and_engines_name_what_they_lack(look):
    cat, static, trt, rtx = look((), ("CPUExecutionProvider",), {"tensorrt-rtx": "1.7.1.116"}, lacking=("cuda.bindings",))
    assert (cat.ready, cat.detail, static.detail) == (True, "--provider cpu", "--provider cpu")
    assert not trt.ready
    assert not rtx.ready
    native, provider = trt.lacks
    assert "an NVIDIA GPU, cuda.bindings, it needs tensorrt 11.4.0.1, which is not installed" in native
    assert "onnxruntime-gpu" in provider
    assert "built for TensorRT 10" in provider
    assert rtx.lacks == (
        "for --provider trt-native: an NVIDIA GPU, cuda.bindings",
        "for --provider tensorrt-rtx: an NVIDIA GPU, the extra tensorrt-rtx-plugin",
    )


def test_on_a_gpu_with_the_libraries_everything_runs_where_it_can(look):
    cat, static, trt, rtx = look((ADA,), PROVIDERS, {"tensorrt": "11.4.0.1", "tensorrt-rtx": "1.7.1.116"})
    assert cat.detail == "--provider cpu, --provider cuda, --provider tensorrt"
    assert static.detail == "--provider cpu"
    assert trt.detail == rtx.detail == "--provider trt-native"


def test_with_the_plug_in_graphs_run_in_it_and_engines_of_its_version_and_form(look):
    cat, static, trt, rtx = look((ADA,), ("CPUExecutionProvider",), {}, plugin="1.7.1")
    assert cat.detail == "--provider cpu, --provider tensorrt-rtx"
    assert static.detail == "--provider cpu"
    assert [reason.split(":")[0] for reason in trt.lacks] == ["for --provider trt-native", "for --provider tensorrt"]
    assert "it needs tensorrt-rtx 1.7.1.116, which is not installed" in rtx.lacks[0]
    assert rtx.lacks[1] == "for --provider tensorrt-rtx: it has no EPContext file: build it again"
    *_, rtx = look((ADA,), ("CPUExecutionProvider",), {}, plugin="1.8.0")
    assert "it was built with tensorrt-rtx 1.7.1.116, and 1.8.0 is installed" in rtx.lacks[1]


def test_without_cuda_bindings_the_gpu_lane_of_a_graph_says_what_it_needs(look):
    cat, *_ = look((ADA,), PROVIDERS, {}, lacking=("cuda.bindings",))
    assert "--provider cuda (needs cuda-bindings: pip install 'maskpro-deploy[gpu]')" in cat.detail


def test_another_gpu_and_another_version_are_named(look):
    *_, trt, rtx = look((HOPPER,), PROVIDERS, {"tensorrt": "11.4.0.1", "tensorrt-rtx": "1.8.0"})
    assert "it was built for sm89, and this GPU is sm90" in trt.lacks[0]
    assert "it was built with tensorrt-rtx 1.7.1.116, and 1.8.0 is installed" in rtx.lacks[0]


def test_a_damaged_engine_is_named_with_the_way_out(look, bundle):
    engine = bundle / "engines" / "tensorrt.engine"
    engine.write_bytes(b"y")
    try:
        *_, trt, rtx = look((ADA,), PROVIDERS, {"tensorrt": "11.4.0.1", "tensorrt-rtx": "1.7.1.116"})
    finally:
        engine.write_bytes(b"x")
    assert "damaged" in trt.lacks[0]
    assert trt.install == f"maskpro-deploy build-engine {bundle}"
    assert rtx.ready


def test_the_command_adds_a_section_and_json_a_field(bundle):
    done = CliRunner().invoke(command, [str(bundle)])
    assert done.exit_code == 0
    assert f"\nBundle {bundle}\n  yes model.onnx (cat, fp16): --provider cpu" in done.stdout
    value = json.loads(CliRunner().invoke(command, [str(bundle), "--json"]).stdout)
    assert [item["name"].split()[0] for item in value["bundle"]][:2] == ["model.onnx", "model_static.onnx"]
    assert "bundle" not in json.loads(CliRunner().invoke(command, ["--json"]).stdout)


def test_a_folder_that_is_no_bundle_is_one_error(tiny_sparse):
    done = CliRunner().invoke(command, [str(tiny_sparse)])
    assert isinstance(done.exception, InputError)
    assert done.stdout == ""
