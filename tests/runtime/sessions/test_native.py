"""Engines in their own library: chosen and checked before they are loaded, and the tokens are onnxruntime's.

The session, the choice of profiles and contexts, and the recording of steps run for real; the library and the GPU are stand-ins
that run the same graph (`library_on_host`).
"""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from library_on_host import GPU, VERSION, HostGpu, Library
from tiny_engines import ENGINE, LENGTH, engine_bundle_in

from maskpro_deploy.backends.profiles import engine_form, read_profiles
from maskpro_deploy.backends.tensorrt_ import executor
from maskpro_deploy.errors import FormatError, InputError, MachineError, MissingExtraError
from maskpro_deploy.manifest import Manifest, file_entry
from maskpro_deploy.runtime import RuntimeConfig, SamplingParams, SessionConfig, load, open_session
from maskpro_deploy.runtime.sessions import native
from maskpro_deploy.runtime.sessions.native import choose_engine, why_not_runnable

INSTALLED = {"tensorrt": VERSION}


@pytest.fixture(scope="module", params=["cat", "static"])
def engine_bundle(request, tiny_sparse: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with an engine, as build-engine leaves it."""
    return engine_bundle_in(tmp_path_factory.mktemp(f"native-{request.param}") / "bundle", request.param, tiny_sparse, GPU)


@pytest.fixture
def gpu(monkeypatch):
    device = HostGpu()
    monkeypatch.setattr(native, "CudaDevice", lambda: device)
    monkeypatch.setattr(native, "require", lambda extra, purpose: None)
    monkeypatch.setattr(native, "missing", lambda library: [] if library == "tensorrt" else [library])
    for module in (native, executor):
        monkeypatch.setattr(module, "load_library", lambda name: Library)
    return device


def native_session(bundle, **settings):
    return open_session(bundle, SessionConfig(provider="trt-native", **settings))


def test_tokens_are_onnxruntimes(engine_bundle, gpu, session):
    engine = native_session(engine_bundle)
    assert engine.providers == (f"tensorrt {VERSION}",)
    assert engine.limits.max_batch == 4
    assert engine.shape.max_length == LENGTH
    assert engine.greedy([3, 4, 5], 30) == session.greedy([3, 4, 5], 30)
    tokens = np.array([[1, 2, 3, 4, 5] * 8])
    np.testing.assert_allclose(engine.logits(tokens), session.logits(tokens), atol=1e-4)


def test_equal_steps_become_one_launch_where_the_cache_stays_in_place(engine_bundle, gpu):
    engine = native_session(engine_bundle)
    in_place = engine_form(Manifest.load(engine_bundle).engines[0]) == "static"
    launched = gpu.launched
    engine.greedy([3, 4, 5], 30)
    # of 29 steps one is run as it is, one binds the context that is recorded, the others are launched
    assert gpu.launched - launched == (27 if in_place else 0)
    assert gpu.recorded - gpu.discarded <= 8


def test_a_server_on_an_engine_answers_like_one_on_onnxruntime(engine_bundle, gpu, sparse_bundle):
    texts = ["the cat", "a dog and", "one", "two three four", "five"]
    answers = []
    for bundle, provider in ((engine_bundle, "trt-native"), (sparse_bundle, "cpu")):
        with load(bundle, RuntimeConfig(provider=provider, threads=1, chunk_tokens=24, max_model_len=48)) as engine:
            answers.append([c.text for c in engine.generate(texts, SamplingParams(max_tokens=12, temperature=0))])
            if provider == "trt-native":
                assert engine.config.max_num_seqs == 4  # what the engine was built for
    assert answers[0] == answers[1]


def test_a_changed_engine_is_refused_before_it_is_loaded(engine_bundle, gpu, tmp_path):
    bundle = Path(shutil.copytree(engine_bundle, tmp_path / "b"))
    file = bundle / ENGINE.file
    text = file.read_text()
    file.write_text(text.replace("graph", "grapf", 1))
    with pytest.raises(FormatError, match=r"one\.engine is missing, or differs from its SHA-256.*\n.*build-engine"):
        native_session(bundle)


def test_an_engine_that_the_library_refuses_is_told_with_its_reason(engine_bundle, gpu, tmp_path):
    bundle = Path(shutil.copytree(engine_bundle, tmp_path / "b"))
    (bundle / ENGINE.file).write_text("no engine")
    found = Manifest.load(engine_bundle)
    files = tuple(file_entry(bundle, bundle / f.path) for f in found.files)
    dataclasses.replace(found, files=files).save(bundle)
    with pytest.raises(FormatError, match="magic tag does not match"):
        native_session(bundle)


# -- what is decided from the manifest ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "installed", "gpu", "reason"),
    [
        ({}, INSTALLED, GPU, ""),
        ({}, {}, GPU, "needs tensorrt 11.4.0.106, which is not installed"),
        ({}, {"tensorrt": "10.16.1.11"}, GPU, "built with tensorrt 11.4.0.106, and 10.16.1.11 is installed"),
        ({}, {"tensorrt": "11.4.1.1"}, GPU, "and 11.4.1.1 is installed"),
        ({}, INSTALLED, "sm89", "built for sm90, and this GPU is sm89"),
        ({"settings": {"flags": {"version_compatible": True}}}, INSTALLED, GPU, "brings a library of its own"),
        ({"settings": {"flags": {"strip_weights": True}}}, INSTALLED, GPU, "weights were left out"),
        ({"library_version": "11.4.0"}, INSTALLED, GPU, ""),  # onnxruntime tells no build number
        ({"settings": {"flags": {"hardware_compatible": "ampere+"}}}, INSTALLED, "sm120", ""),
        ({"settings": {"flags": {"hardware_compatible": "ampere+"}}}, INSTALLED, "sm75", "this GPU is sm75"),
        ({"target": "sm89,sm120"}, INSTALLED, "sm120", ""),
        ({"target": "default"}, INSTALLED, "sm75", ""),  # the library itself knows its default
    ],
)
def test_why_an_engine_cannot_run_here(change, installed, gpu, reason):
    found = why_not_runnable(dataclasses.replace(ENGINE, **change), installed, gpu)
    assert reason in found
    assert bool(found) == bool(reason)


def with_engines(bundle, *engines):
    return dataclasses.replace(Manifest.load(bundle), engines=engines)


def test_the_best_engine_that_fits_is_taken_and_else_every_reason_told(sparse_bundle):
    static = {"sparse_weights": True, "profiles": [{"shapes": {"write_indices": [[1], [1], [1]]}}]}
    dense = dataclasses.replace(ENGINE, file="engines/dense.engine", settings={"sparse_weights": False, "profiles": {}})
    rtx = dataclasses.replace(ENGINE, file="engines/rtx.engine", library="tensorrt-rtx", library_version="1.7.1.116")
    in_place = dataclasses.replace(ENGINE, file="engines/static.engine", settings=static)
    everything = {**INSTALLED, "tensorrt-rtx": "1.7.1.116"}
    manifest = with_engines(sparse_bundle, dense, rtx, ENGINE, in_place)
    assert choose_engine(sparse_bundle, manifest, everything, GPU) == in_place
    assert choose_engine(sparse_bundle, manifest, everything, GPU, "dense.engine") == dense
    assert choose_engine(sparse_bundle, manifest, {"tensorrt-rtx": "1.7.1.116"}, GPU) == rtx
    with pytest.raises(MachineError, match=r"dense\.engine: it was built for sm90.*rtx\.engine: it needs.*\n.*build-engine"):
        choose_engine(sparse_bundle, manifest, INSTALLED, "sm86")
    with pytest.raises(InputError, match="no engine other"):
        choose_engine(sparse_bundle, manifest, INSTALLED, GPU, "other")
    with pytest.raises(InputError, match="has no engine"):
        choose_engine(sparse_bundle, with_engines(sparse_bundle), INSTALLED, GPU)


def test_profiles_are_read_in_both_ways_that_manifests_have_them():
    shape = {"input_ids": [[1, 1], [1, 8], [2, 8]]}
    expected = [{"input_ids": ((1, 1), (1, 8), (2, 8))}]
    for described in ({"prefill": shape}, [{"name": "prefill:2x8", "shapes": shape}]):
        assert read_profiles(dataclasses.replace(ENGINE, settings={"profiles": described})) == expected
    with pytest.raises(FormatError, match="cannot be read"):
        read_profiles(dataclasses.replace(ENGINE, settings={"profiles": {"prefill": {"input_ids": [[1, 1]]}}}))


# -- what this machine lacks ----------------------------------------------------------------------------------------------


def test_without_the_bindings_or_a_library_the_extra_is_named(sparse_bundle, monkeypatch):
    monkeypatch.setattr(native, "missing", lambda library: [library])
    with pytest.raises(MissingExtraError, match=r"maskpro-deploy\[(native|tensorrt)\]"):
        native_session(sparse_bundle)


def test_without_a_driver_there_is_one_plain_error(sparse_bundle):
    from maskpro_deploy.backends.cuda.driver import compute_capability
    from maskpro_deploy.system.extras import missing

    if missing("native") or missing("tensorrt-rtx") or compute_capability() is not None:
        pytest.skip("no cuda-bindings, no tensorrt-rtx, or there is a GPU")
    with pytest.raises(MachineError, match=r"no NVIDIA (driver|GPU) here.*"):
        native_session(sparse_bundle)


def test_the_real_library_tells_a_damaged_engine(tmp_path):
    """TensorRT-RTX checks an engine's header without a GPU; in a process of its own, as it keeps its first logger for good."""
    from maskpro_deploy.system.extras import missing

    if missing("tensorrt-rtx"):
        pytest.skip("tensorrt-rtx is not installed")
    (tmp_path / "x.engine").write_bytes(np.random.default_rng(0).bytes(3000))
    code = (
        "import pathlib, sys\n"
        "from maskpro_deploy.errors import FormatError\n"
        "from maskpro_deploy.backends.tensorrt_.executor import EngineExecutor\n"
        "try: EngineExecutor('tensorrt-rtx', pathlib.Path(sys.argv[1]), None)\n"
        "except FormatError as e: print(e)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "x.engine")], capture_output=True, text=True, check=True)
    assert "x.engine here: malformed engine." in done.stdout
    assert "build-engine" in done.stdout
