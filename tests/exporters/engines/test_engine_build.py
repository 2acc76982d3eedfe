"""Engines are built for real with TensorRT-RTX, which needs no GPU; what needs one is refused in plain words."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from maskpro_deploy.backends.cuda.driver import compute_capability
from maskpro_deploy.errors import CheckFailed, ConfigError, FormatError, MachineError, MissingExtraError
from maskpro_deploy.exporters import BuilderFlags, EngineConfig, ExportConfig, build_engine, export
from maskpro_deploy.exporters.engines import build as engine_module
from maskpro_deploy.exporters.engines.build import choose_library
from maskpro_deploy.exporters.engines.config import parse_bytes
from maskpro_deploy.exporters.engines.process import time_in_process
from maskpro_deploy.exporters.engines.profiles import profiles
from maskpro_deploy.exporters.engines.report import EngineReport
from maskpro_deploy.exporters.engines.store import install
from maskpro_deploy.manifest import EngineFile, Manifest, file_entry
from maskpro_deploy.pattern import NMPattern
from maskpro_deploy.system.extras import EXTRAS, missing
from maskpro_deploy.system.progress import SILENT

rtx = pytest.mark.skipif(bool(missing("tensorrt-rtx")), reason="tensorrt-rtx is not installed")
RTX = EngineConfig(backend="tensorrt-rtx")


@pytest.fixture
def bundle(half_bundle: Path, tmp_path: Path) -> Path:
    """A copy to build in."""
    return Path(shutil.copytree(half_bundle, tmp_path / "bundle"))


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# -- building -------------------------------------------------------------------------------------------------------------


@rtx
def test_a_built_engine_is_in_the_manifest_and_is_reused(bundle):
    report = build_engine(bundle, RTX)
    manifest = Manifest.load(bundle)
    manifest.check_hashes(bundle)
    assert manifest.engines == (report.engine,)
    engine = bundle / report.engine.file
    assert engine.read_bytes()[:4] in (b"vtrt", b"ftrt")
    assert engine.stat().st_size == report.bytes > 100_000
    assert report.engine.library == "tensorrt-rtx"
    assert report.engine.settings["sparse_weights"] is True
    assert "ahead of time" in report.engine.sparse_kernels
    assert len(report.layers) == 14
    assert all(row.eligible for row in report.layers)
    json.dumps(report.to_json(), allow_nan=False)

    before = contents(bundle)
    again = build_engine(bundle, RTX)
    assert again == dataclasses.replace(report, reused=True)
    assert contents(bundle) == before


@rtx
def test_other_settings_build_again_and_take_the_old_engines_place(bundle):
    first = build_engine(bundle, RTX)
    second = build_engine(bundle, dataclasses.replace(RTX, max_batch=2, max_length=64))
    assert not second.reused
    assert second.engine.file != first.engine.file
    manifest = Manifest.load(bundle)
    assert [e.file for e in manifest.engines] == [second.engine.file]
    assert {p.name for p in (bundle / "engines").iterdir()} == {
        Path(second.engine.file).name,
        Path(second.engine.file).with_suffix(".json").name,
        Path(second.engine.ep_context).name,
    }
    decode = second.engine.settings["profiles"][1]
    assert decode["name"] == "decode:2"
    assert decode["shapes"]["past_key_values.0.key"][2] == [2, 2, 63, 8]


@rtx
def test_engines_for_other_targets_and_dense_ones_stand_side_by_side(bundle):
    build_engine(bundle, dataclasses.replace(RTX, targets=("sm89",)))
    build_engine(bundle, dataclasses.replace(RTX, targets=("sm89",), dense=True))
    manifest = Manifest.load(bundle)
    assert [(e.target, e.settings["sparse_weights"]) for e in manifest.engines] == [("sm89", True), ("sm89", False)]
    manifest.check_hashes(bundle)


@rtx
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_the_other_dtypes_build_too(tiny_sparse, tmp_path, dtype):
    export(tiny_sparse, tmp_path / "b", ExportConfig(dtype=dtype))
    report = build_engine(tmp_path / "b", RTX)
    assert report.engine.dtype == dtype
    assert {row.eligible for row in report.layers} == {dtype == "bf16"}  # sparse tensor cores take no fp32


# -- pre-flight -----------------------------------------------------------------------------------------------------------


def test_a_dense_bundle_is_refused_without_dense(tiny_checkpoint, tmp_path):
    export(tiny_checkpoint, tmp_path / "b", ExportConfig(dtype="fp16"))
    with pytest.raises(CheckFailed, match="--dense"):
        build_engine(tmp_path / "b", RTX)
    assert not (tmp_path / "b" / "engines").exists()


def test_weights_changed_behind_the_manifest_are_found(bundle):
    data = bundle / "model.onnx.data"
    raw = bytearray(data.read_bytes())
    raw[-2:] = b"\x00\x3c"
    data.write_bytes(raw)
    with pytest.raises(FormatError, match="SHA-256"):
        build_engine(bundle, RTX)


def test_weights_without_the_pattern_are_found_whatever_the_manifest_says(bundle):
    model = onnx.load(bundle / "model.onnx", load_external_data=False)
    tensor = next(t for t in model.graph.initializer if t.name == "model.layers.1.mlp.down_proj.weight")
    offset = int(next(e.value for e in tensor.external_data if e.key == "offset"))
    raw = np.fromfile(bundle / "model.onnx.data", np.uint8)
    column = raw[offset:].view(np.float16)[: 64 * 32].reshape(64, 32)
    column[:4, 0] = 1.0
    raw.tofile(bundle / "model.onnx.data")
    manifest = Manifest.load(bundle)
    files = tuple(file_entry(bundle, bundle / f.path) for f in manifest.files)
    dataclasses.replace(manifest, files=files).save(bundle)
    with pytest.raises(CheckFailed, match=r"layers.1.mlp.down_proj.weight has 1 of 512 groups"):
        build_engine(bundle, RTX)


def test_a_bundle_of_another_pattern_needs_dense(bundle):
    dataclasses.replace(Manifest.load(bundle), sparsity="1:4").save(bundle)
    with pytest.raises(ConfigError, match="only 2:4 has sparse tensor cores"):
        build_engine(bundle, RTX)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sparsity": NMPattern(1, 4)}, "only 2:4 has sparse tensor cores"),
        ({"backend": "tvm"}, "--backend tvm"),
        ({"targets": ("ampere",)}, "--target ampere"),
        ({"max_batch": 0}, "--max-batch 0"),
        ({"max_length": 1}, "--max-length 1"),
        ({"max_prefill": 0}, "--max-prefill 0"),
        ({"form": "gqa"}, "--form gqa"),
        ({"profiles": "decode:1", "max_batch": 2}, "--profiles"),
        ({"compare_dense": True, "dense": True}, "--compare-dense"),
        ({"compare_budget_s": 0}, "--budget"),
        ({"timing_cache": Path("/")}, "--timing-cache / is a folder"),
        ({"flags": BuilderFlags(refit="all")}, "--refit all"),
    ],
)
def test_settings_out_of_range_name_the_flag(settings, message):
    with pytest.raises(ConfigError, match=message):
        EngineConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optimization_level": 6}, "--optimization-level 6"),
        ({"workspace_bytes": 0}, "--workspace 0"),
        ({"aux_streams": -1}, "--aux-streams -1"),
        ({"hardware_compatible": "hopper"}, "--hardware-compatible hopper"),
        ({"refit": "some"}, "--refit some"),
        ({"tiling": "deep"}, "--tiling deep"),
    ],
)
def test_builder_flags_out_of_range_are_named(settings, message):
    with pytest.raises(ConfigError, match=message):
        BuilderFlags(**settings)


@pytest.mark.parametrize(
    ("text", "size"), [("512MB", 512 * 10**6), ("4 GB", 4 * 10**9), ("2GiB", 2 * 2**30), ("1.5k", 1500), ("7", 7)]
)
def test_sizes_have_units(text, size):
    assert parse_bytes(text, "--workspace") == size
    with pytest.raises(ConfigError, match="--workspace"):
        parse_bytes(f"{text}?", "--workspace")


# -- which library --------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(compute_capability() is not None, reason="there is a GPU")
def test_tensorrt_without_a_gpu_names_the_other_lane():
    with pytest.raises(MachineError, match="tensorrt-rtx"):
        choose_library(EngineConfig(backend="tensorrt"))


@pytest.mark.parametrize(
    ("installed", "gpu", "targets", "expected"),
    [
        ({"tensorrt", "tensorrt-rtx"}, "sm90", (), ("tensorrt", "sm90")),
        ({"tensorrt", "tensorrt-rtx"}, None, (), ("tensorrt-rtx", "default")),
        ({"tensorrt", "tensorrt-rtx"}, "sm90", ("sm89", "sm120"), ("tensorrt-rtx", "sm89,sm120")),
        ({"tensorrt-rtx"}, "sm90", (), ("tensorrt-rtx", "default")),
        ({"tensorrt"}, None, (), MissingExtraError),
        (set(), "sm90", (), MissingExtraError),
    ],
)
def test_auto_takes_what_this_machine_can_do(monkeypatch, installed, gpu, targets, expected):
    monkeypatch.setattr(engine_module, "missing", lambda extra: [] if extra in installed else [extra])
    monkeypatch.setattr(engine_module, "compute_capability", lambda: gpu)
    config = EngineConfig(targets=targets)
    if isinstance(expected, tuple):
        assert choose_library(config) == expected
    else:
        with pytest.raises(expected, match="pip install"):
            choose_library(config)


@rtx
def test_a_target_that_the_library_lacks_is_named_with_those_it_has(bundle):
    before = contents(bundle)
    with pytest.raises(ConfigError, match=r"--target sm11.*Known: .*sm89"):
        build_engine(bundle, dataclasses.replace(RTX, targets=("sm11",)))
    assert contents(bundle) == before


@rtx
def test_flags_that_the_library_takes_are_in_the_key_and_one_it_drops_is_refused(bundle):
    """TensorRT-RTX has the name of the hardware level, and drops what is set."""
    small = dataclasses.replace(RTX, targets=("sm89",), profiles="mixed:1x16")
    first = build_engine(bundle, small)
    flags = BuilderFlags(optimization_level=2, workspace_bytes=1 << 28, aux_streams=0, tiling="none", strict_nans=True)
    second = build_engine(bundle, dataclasses.replace(small, flags=flags))
    assert second.engine.settings["key"] != first.engine.settings["key"]
    assert second.engine.settings["flags"]["optimization_level"] == 2
    with pytest.raises(ConfigError, match="--timing-cache: tensorrt-rtx"):
        build_engine(bundle, dataclasses.replace(small, timing_cache=bundle / "times"))
    before = contents(bundle)
    with pytest.raises(CheckFailed, match=r"libnvinfer_lean[^\n]*\n--version-compatible needs"):
        build_engine(bundle, dataclasses.replace(small, flags=BuilderFlags(version_compatible=True)))
    with pytest.raises(ConfigError, match=r"--hardware-compatible ampere\+: tensorrt_rtx .* does not take it"):
        build_engine(bundle, dataclasses.replace(small, flags=BuilderFlags(hardware_compatible="ampere+")))
    assert contents(bundle) == before


@rtx
def test_every_form_is_built_for_every_target_that_the_library_has(tiny_sparse, tmp_path):
    """Targets differ in kernels, so each has to be tried; all in one process, which loads the library once.

    The forms differ in how the cache grows: the second one is tried on the oldest and the newest target.
    """
    import tensorrt_rtx

    def number(target):
        return int(target[2:])

    targets = [n.lower() for n in dir(tensorrt_rtx.ComputeCapability) if n.startswith("SM")]
    assert len(targets) >= 4
    config = ExportConfig(dtype="fp16", forms=("cat", "static"), max_length=64)
    made = export(tiny_sparse, tmp_path / "b", config, compare=False)
    jobs = [
        (str(tmp_path / "b" / graph.file), profiles(made, EngineConfig(profiles="mixed:2x16"), graph), target)
        for graph in (made.graph, *made.siblings)
        for target in (targets if graph.form == "cat" else [min(targets, key=number), max(targets, key=number)])
    ]
    code = (
        "import json, pathlib, sys\n"
        "from maskpro_deploy.exporters.engines.builder import EngineBuilder\n"
        "library = EngineBuilder('tensorrt-rtx')\n"
        "for graph, shapes, target in json.load(sys.stdin):\n"
        "    engine = library.build(pathlib.Path(graph), [shapes[0]], sparse=True, targets=[target], timing_cache=None,\n"
        "                           on_step=lambda *_: None)\n"
        "    library.check_engine(engine)\n"
        "    print(engine.nbytes)\n"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, input=json.dumps(jobs), capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert [int(size) > 100_000 for size in done.stdout.split()] == [True] * len(jobs)


def test_a_form_that_the_bundle_lacks_names_the_flag_of_export(bundle):
    with pytest.raises(ConfigError, match=r"it has cat\.\nExport it again with --forms cat,static"):
        build_engine(bundle, dataclasses.replace(RTX, form="static"))


# -- beside the dense engine ----------------------------------------------------------------------------------------------


@rtx
def test_the_dense_engine_is_built_from_the_same_and_compared(bundle):
    report = build_engine(bundle, dataclasses.replace(RTX, targets=("sm89",), profiles="mixed:1x16", compare_dense=True))
    manifest = Manifest.load(bundle)
    manifest.check_hashes(bundle)
    sparse, dense = sorted(manifest.engines, key=lambda e: not e.settings["sparse_weights"])
    assert (sparse.settings["sparse_weights"], dense.settings["sparse_weights"]) == (True, False)
    assert sparse.settings["profiles"] == dense.settings["profiles"]
    comparison = report.comparison
    assert comparison.dense_file == dense.file
    assert comparison.dense_bytes == (bundle / dense.file).stat().st_size
    assert json.loads((bundle / sparse.file).with_suffix(".json").read_text())["comparison"]["dense_file"] == dense.file
    if compute_capability() is None:
        assert report.gain.startswith("not measured (no GPU)")
    assert build_engine(bundle, dataclasses.replace(RTX, targets=("sm89",), profiles="mixed:1x16")).comparison == comparison


# -- when it goes wrong ---------------------------------------------------------------------------------------------------


@rtx
def test_the_library_is_asked_whether_the_engine_is_one():
    code = (
        "from maskpro_deploy.errors import CheckFailed\n"
        "from maskpro_deploy.exporters.engines.builder import EngineBuilder\n"
        "try: EngineBuilder('tensorrt-rtx').check_engine(memoryview(b'x' * 4096))\n"
        "except CheckFailed as e: print(e)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert "malformed" in done.stdout


@rtx
@pytest.mark.skipif(compute_capability() is not None, reason="there is a GPU")
def test_without_a_gpu_an_engine_is_not_timed(tmp_path):
    with pytest.raises(MachineError, match="no NVIDIA driver"):
        time_in_process(tmp_path, "tensorrt-rtx", {"sparse": tmp_path / "engine"}, [], {}, 10, 1.0, SILENT)


@rtx
@pytest.mark.parametrize("damage", [lambda p: p.write_bytes(b"x" * 1000), lambda p: p.unlink()])
def test_a_damaged_engine_is_named_with_the_way_out_and_built_again(bundle, damage):
    config = dataclasses.replace(RTX, targets=("sm89",), profiles="mixed:1x16")
    first = build_engine(bundle, config)
    damage(bundle / first.engine.file)
    with pytest.raises(FormatError, match=r"build.* engine again with `maskpro-deploy build-engine`|Build the engine again"):
        Manifest.load(bundle)
    again = build_engine(bundle, config)
    assert not again.reused
    assert again.engine.file == first.engine.file
    Manifest.load(bundle).check_hashes(bundle)


@rtx
def test_builds_that_end_at_the_same_time_are_all_in_the_manifest(bundle):
    commands = [
        [sys.executable, "-m", "maskpro_deploy", "build-engine", str(bundle), "--backend", "tensorrt-rtx",
         "--profiles", "mixed:1x16", "--target", target]
        for target in ("sm86", "sm89", "sm120")
    ]  # fmt: skip
    running = [subprocess.Popen(c, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for c in commands]
    for process in running:
        _, stderr = process.communicate(timeout=120)
        assert process.returncode == 0, stderr
    manifest = Manifest.load(bundle)
    manifest.check_hashes(bundle)
    assert {e.target for e in manifest.engines} == {"sm86", "sm89", "sm120"}
    assert {p.name for p in bundle.iterdir() if p.name.startswith(".")} == set()


def test_a_bundle_that_is_exported_anew_during_the_build_does_not_get_the_engine(bundle, tiny_sparse):
    report = EngineReport(
        engine=EngineFile(
            file="engines/x.engine", library="tensorrt", library_version="11", target="sm90", dtype="fp16",
            sparse_kernels="", settings={},
        ),
        bytes=1, reused=False, build_s=1.0, peak_rss_bytes=1, warnings=(), layers=(), spoiled={},
    )  # fmt: skip
    before = Manifest.load(bundle)
    shutil.rmtree(bundle)
    export(tiny_sparse, bundle, ExportConfig(dtype="bf16"), compare=False)
    engine = bundle.parent / "engine"
    engine.write_bytes(b"x")
    with pytest.raises(CheckFailed, match="exported again"):
        install(bundle, before, engine, report)
    assert not (bundle / "engines").exists()


def test_what_timing_needs_is_asked_for_before_anything_is_built(bundle, monkeypatch):
    monkeypatch.setattr(engine_module, "compute_capability", lambda: "sm89")
    monkeypatch.setattr(engine_module, "choose_library", lambda config: ("tensorrt", "sm89"))
    monkeypatch.setitem(EXTRAS, "native", ("no_such_module",))
    before = contents(bundle)
    with pytest.raises(MissingExtraError, match=r"timing engines \(--compare-dense\) needs no_such_module"):
        build_engine(bundle, EngineConfig(compare_dense=True))
    assert contents(bundle) == before


def test_a_crash_of_the_library_is_one_error_and_leaves_the_bundle_as_it_was(bundle, tmp_path, monkeypatch):
    crashing = tmp_path / "python"
    crashing.write_text("#!/bin/sh\necho 'the last words' >&2\nkill -SEGV $$\n")
    crashing.chmod(0o755)
    monkeypatch.setattr(engine_module, "choose_library", lambda config: ("tensorrt-rtx", "default"))
    monkeypatch.setattr(sys, "executable", str(crashing))
    before = contents(bundle)
    with pytest.raises(MachineError, match=r"signal 11[\s\S]*the last words") as caught:
        build_engine(bundle, RTX)
    assert len(str(caught.value).splitlines()) == 2
    assert contents(bundle) == before


def test_an_interrupt_ends_the_building_process_and_leaves_the_bundle_as_it_was(bundle, tmp_path, monkeypatch):
    endless = tmp_path / "python"
    endless.write_text(f'#!/bin/sh\necho $$ > {tmp_path}/pid\necho \'{{"percent": 1, "phase": "x"}}\'\nexec sleep 60\n')
    endless.chmod(0o755)
    monkeypatch.setattr(engine_module, "choose_library", lambda config: ("tensorrt-rtx", "default"))
    monkeypatch.setattr(sys, "executable", str(endless))

    class Interrupting:
        def update(self, done, total, note=""):
            raise KeyboardInterrupt

        def close(self):
            pass

    before = contents(bundle)
    with pytest.raises(KeyboardInterrupt):
        build_engine(bundle, RTX, Interrupting())
    assert contents(bundle) == before
    assert ends(int((tmp_path / "pid").read_text()))


def ends(pid):
    """Whether a process is gone within a second."""
    for _ in range(100):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state == "Z":  # nobody has asked for its exit code
            return True
        time.sleep(0.01)
    return False


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent")
@pytest.mark.parametrize("tied", [True, False])
def test_the_building_process_ends_with_the_one_that_started_it(tied):
    tie = "from maskpro_deploy.exporters.engines import worker; worker._end_with_parent(os.getppid())" if tied else "pass"
    inner = f"import os, time; {tie}; print(os.getpid(), flush=True); time.sleep(20)"
    outer = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}], start_new_session=True)"
    parent = subprocess.Popen([sys.executable, "-c", outer], stdout=subprocess.PIPE)
    pid = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert ends(pid) == tied
    if not tied:
        os.kill(pid, signal.SIGKILL)


def attention_graph(path, opset, **attributes):
    """One Attention node named /bad/attention."""
    length = attributes.pop("length", None)
    shape, half = ["b", 2, "s", 64], TensorProto.FLOAT16
    inputs = [helper.make_tensor_value_info(n, half, shape) for n in ("q", "k", "v")]
    names = ["q", "k", "v"]
    if length:
        inputs.append(helper.make_tensor_value_info("len", TensorProto.INT64, ["b"]))
        names += ["", "", "", "len"]
    node = helper.make_node("Attention", names, ["y"], name="/bad/attention", **attributes)
    graph = helper.make_graph([node], "g", inputs, [helper.make_tensor_value_info("y", half, shape)])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=11), path)
    return [v.name for v in inputs]


def work(tmp_path, inputs):
    """Run the worker on a graph as `build_engine` does."""
    at = {name: [[1], [1], [2]] if name == "len" else [[1, 2, 1, 64], [1, 2, 8, 64], [2, 2, 16, 64]] for name in inputs}
    job = {
        "library": "tensorrt-rtx",
        "graph": str(tmp_path / "g.onnx"),
        "engine": str(tmp_path / "engine"),
        "result": str(tmp_path / "result.json"),
        "profiles": [at],
        "sparse": False,
        "targets": ["sm89"],
        "timing_cache": None,
        "task": "build",
        "flags": dataclasses.asdict(BuilderFlags()),
    }
    (tmp_path / "job.json").write_text(json.dumps(job))
    command = [sys.executable, "-m", "maskpro_deploy.exporters.engines.worker", str(tmp_path / "job.json")]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    return json.loads((tmp_path / "result.json").read_text())


@rtx
def test_a_sound_graph_passes_the_worker(tmp_path):
    facts = work(tmp_path, attention_graph(tmp_path / "g.onnx", 23))
    assert facts["build_s"] > 0
    assert (tmp_path / "engine").stat().st_size > 1000


@rtx
def test_a_node_that_the_parser_refuses_is_named(tmp_path):
    facts = work(tmp_path, attention_graph(tmp_path / "g.onnx", 23, softcap=5.0))
    assert facts["kind"] == "CheckFailed"
    assert "node /bad/attention" in facts["error"]
    assert not (tmp_path / "engine").exists()


@rtx
def test_an_input_that_the_library_would_drop_is_an_error(tmp_path):
    facts = work(tmp_path, attention_graph(tmp_path / "g.onnx", 24, length=True))
    assert facts["kind"] == "CheckFailed"
    assert "leave out" in facts["error"]
    assert "len" in facts["error"]
