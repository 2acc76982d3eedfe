"""What onnxruntime's TensorRT provider is given: a fitting engine by its EPContext file, else the graph with one profile."""

from __future__ import annotations

import dataclasses
import logging
import re
import shutil
from pathlib import Path

import pytest
from engine_files import engine_file

from maskpro_deploy.backends.cuda.driver import compute_capability
from maskpro_deploy.backends.profiles import ProfileCoverage
from maskpro_deploy.errors import FormatError, InputError, MachineError
from maskpro_deploy.manifest import EngineFile, Manifest, file_entry
from maskpro_deploy.runtime import SessionConfig
from maskpro_deploy.runtime.sessions import session, tensorrt_lane
from maskpro_deploy.runtime.sessions.tensorrt_lane import ProviderInput, choose_input, why_not_loadable

PROFILE = {
    "input_ids": [[1, 1], [1, 32], [4, 32]],
    "attention_mask": [[1, 1], [1, 32], [4, 95]],
    "past_key_values.0.key": [[1, 2, 0, 8], [1, 2, 0, 8], [4, 2, 63, 8]],
}
ENGINE = engine_file(
    dtype="fp32",
    settings={"sparse_weights": True, "profiles": [{"name": "mixed:4x32", "shapes": PROFILE}]},
    ep_context="engines/x_ctx.onnx",
)


@pytest.fixture
def bundle(sparse_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle with an engine of TensorRT 10 and its wrapper, on a machine whose onnxruntime is linked with TensorRT 10."""
    monkeypatch.setattr(tensorrt_lane, "onnxruntime_tensorrt", lambda: 10)
    monkeypatch.setattr(tensorrt_lane, "compute_capability", lambda: "sm89")
    monkeypatch.setenv("MASKPRO_CACHE", str(tmp_path / "cache"))
    folder = Path(shutil.copytree(sparse_bundle, tmp_path / "bundle"))
    (folder / "engines").mkdir()
    for name in (ENGINE.file, ENGINE.ep_context):
        (folder / name).write_bytes(b"as built")
    with_engine(folder, ENGINE)
    return folder


def with_engine(bundle: Path, *engines: EngineFile) -> Manifest:
    manifest = Manifest.load(bundle)
    listed = {f.path for f in manifest.files}
    new = [file_entry(bundle, bundle / p) for e in engines for p in (e.file, e.ep_context) if p and p not in listed]
    manifest = dataclasses.replace(manifest, engines=engines, files=(*manifest.files, *new))
    manifest.save(bundle)
    return manifest


def planned(bundle: Path, wanted: str | None = None) -> ProviderInput:
    manifest = Manifest.load(bundle)
    return choose_input(bundle, manifest, manifest.graph, wanted)


def test_a_fitting_engine_is_run_by_its_wrapper(bundle: Path) -> None:
    served = planned(bundle)
    assert served.model == bundle / "engines" / "x_ctx.onnx"
    others = ("CUDAExecutionProvider", "CPUExecutionProvider")
    assert served.providers == (("TensorrtExecutionProvider", {"device_id": "0"}), *others)
    coverage = ProfileCoverage.of(served.profile)
    assert (coverage.rows, coverage.new, coverage.past) == ((1, 4), (1, 32), (0, 63))


@pytest.mark.parametrize(
    ("change", "linked", "gpu", "reason"),
    [
        ({}, 10, "sm89", ""),
        ({}, None, "sm89", ""),
        ({"library_version": "11.4.0.106"}, 10, "sm89", "is built for TensorRT 10.*--provider trt-native.*'tensorrt<11'"),
        ({}, 11, "sm89", "is built for TensorRT 11"),
        ({"library": "tensorrt-rtx"}, 10, "sm89", "trt-native"),
        ({}, 10, "sm90", "this GPU is sm90"),
        ({"ep_context": None}, 10, "sm89", "no EPContext file"),
        ({"settings": {"profiles": [{"shapes": {"write_indices": [[1]] * 3}}]}}, 10, "sm89", "fixed length.*trt-native"),
        (
            {"settings": {"profiles": [{"shapes": {**PROFILE, "input_ids": [[1, 8], [1, 8], [1, 8]]}}]}},
            10,
            "sm89",
            "first profile only.*mixed",
        ),
    ],
)
def test_pairs_that_cannot_work_are_refused_and_what_can_is_named(change, linked, gpu, reason):
    found = why_not_loadable(dataclasses.replace(ENGINE, **change), linked, gpu)
    assert bool(found) == bool(reason)
    assert re.search(reason, found)


def test_without_a_fitting_engine_the_graph_is_given_with_its_profile(bundle: Path, caplog: pytest.LogCaptureFixture) -> None:
    with_engine(bundle, dataclasses.replace(ENGINE, library_version="11.4.0.106"))
    with caplog.at_level(logging.WARNING):
        served = planned(bundle)
    assert "trt-native" in caplog.text
    assert "takes minutes" in caplog.text
    assert served.model == bundle / "model.onnx"
    (name, options), *_ = served.providers
    assert name == "TensorrtExecutionProvider"
    assert options["trt_profile_max_shapes"].startswith("input_ids:8x")
    assert Path(options["trt_engine_cache_path"]).is_dir()
    assert ProfileCoverage.of(served.profile).past[1] == Manifest.load(bundle).model.max_length - 1


def test_an_engine_that_was_asked_for_is_run_or_refused(bundle: Path) -> None:
    assert planned(bundle, "x.engine").model.name == "x_ctx.onnx"
    with pytest.raises(InputError, match="no engine other"):
        planned(bundle, "other")
    with_engine(bundle, dataclasses.replace(ENGINE, library_version="11.4.0.106"))
    with pytest.raises(MachineError, match="--provider trt-native"):
        planned(bundle, "x.engine")


@pytest.mark.parametrize("name", [ENGINE.file, ENGINE.ep_context])
def test_a_changed_engine_or_wrapper_is_refused(bundle: Path, name: str) -> None:
    (bundle / name).write_bytes(b"not such")
    with pytest.raises(FormatError, match=r"SHA-256.*\n.*build-engine"):
        planned(bundle)


def test_without_a_gpu_there_is_one_plain_error(sparse_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """onnxruntime-gpu lists the provider on any machine, and would go on without it."""
    import onnxruntime

    if compute_capability() is not None:
        pytest.skip("there is a GPU")
    names = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: names)
    with pytest.raises(MachineError, match="needs an NVIDIA GPU"):
        session.open_session(sparse_bundle, SessionConfig(provider="tensorrt"))


def test_a_provider_that_does_not_start_is_an_error_and_no_silent_fall_back(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """onnxruntime goes on with the providers that start; here none but the CPU's exists."""
    import onnxruntime

    names = ["TensorrtExecutionProvider", "CPUExecutionProvider"]
    if names[0] in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has a TensorRT provider")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: names)
    monkeypatch.setattr(session, "compute_capability", lambda: "sm89")
    with_engine(bundle)
    with pytest.raises(MachineError, match=r"does not start.*\n.*'tensorrt<11'"):
        session.open_session(bundle, SessionConfig(provider="tensorrt", threads=1))
